"""The ledger: what was charged to whom, and the invoices.

A row's key is the idempotency key of the step that made it, so a second delivery finds the first one's row. States
only move on: ``standing`` to ``undone``; or, where the compensation comes first, ``barred``, a tombstone that refuses
the late step. Rows are never deleted: a refund is a fact beside the charge, and a voided invoice keeps its number.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Literal

Table = Literal["charges", "invoices"]

SCHEMA = "".join(
    f"""
CREATE TABLE IF NOT EXISTS {table} (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    saga_id TEXT NOT NULL,
    amount_cents INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('standing', 'undone', 'barred')),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    undone_at TEXT
) STRICT;
"""
    for table in ("charges", "invoices")
)


class Compensated(Exception):  # noqa: N818 -- says what has happened
    """The step was undone before it came; doing it now would leave an effect that nobody undoes."""


class Ledger:
    """The service's own database. May be used from several threads and processes."""

    def __init__(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()  # one connection, so one transaction at a time
        self._connection = sqlite3.connect(path, timeout=30, isolation_level="IMMEDIATE", check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.executescript(SCHEMA)

    def close(self) -> None:
        self._connection.close()

    def enter(self, table: Table, key: str, saga_id: str, amount_cents: int) -> int:
        """Enter an amount and give the row's number; the same key again gives the same number.

        Raises:
            Compensated: the key has been reversed already.
        """
        with self._lock, self._connection as db:
            db.execute(
                f"INSERT INTO {table} (key, saga_id, amount_cents, state) VALUES (?, ?, ?, 'standing')"  # noqa: S608
                " ON CONFLICT (key) DO NOTHING",
                (key, saga_id, amount_cents),
            )
            number, state = db.execute(
                f"SELECT id, state FROM {table} WHERE key = ?",  # noqa: S608 -- of a closed set of names
                (key,),
            ).fetchone()
            if state != "standing":
                raise Compensated(f"the entry was reversed before: it is {state}")
            return int(number)

    def reverse(self, table: Table, key: str, saga_id: str) -> bool:
        """Reverse an entry, once. Returns whether there was one."""
        with self._lock, self._connection as db:
            # Where nothing stands, the step may have been cut off half-way or may still be on its way to us. The
            # tombstone bars it: a charge that came after its own refund would stand for ever.
            db.execute(
                f"INSERT INTO {table} (key, saga_id, amount_cents, state) VALUES (?, ?, 0, 'barred')"  # noqa: S608
                " ON CONFLICT (key) DO NOTHING",
                (key, saga_id),
            )
            db.execute(
                f"UPDATE {table} SET state = 'undone', undone_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"  # noqa: S608
                " WHERE key = ? AND state = 'standing'",
                (key,),
            )
            (state,) = db.execute(f"SELECT state FROM {table} WHERE key = ?", (key,)).fetchone()  # noqa: S608
            return bool(state == "undone")
