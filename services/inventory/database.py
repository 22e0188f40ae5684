"""The warehouse: how much of each item is there, and for whom it was put aside.

A reservation's key is the idempotency key of the step that made it. It is made once, however often the step is
delivered, and undone once, however often the compensation is. Its state only moves on:

    (no row) ──reserve──▶ standing ──release──▶ undone
    (no row) ──release──▶ barred                          a tombstone: the step may still come, and is refused
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

DELIVERED = {"teapot": 100_000, "kettle": 10_000, "unobtainium": 0}

SCHEMA = """
CREATE TABLE IF NOT EXISTS stock (
    item TEXT PRIMARY KEY,
    delivered INTEGER NOT NULL,
    on_hand INTEGER NOT NULL CHECK (on_hand >= 0)
) STRICT;
CREATE TABLE IF NOT EXISTS reservations (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    saga_id TEXT NOT NULL,
    item TEXT NOT NULL,
    quantity INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('standing', 'undone', 'barred')),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    undone_at TEXT
) STRICT;
"""


class OutOfStock(Exception):  # noqa: N818 -- reads as the failure's code does
    """There is less on hand than was ordered."""


class Compensated(Exception):  # noqa: N818 -- says what has happened
    """The step was undone before it came; doing it now would leave an effect that nobody undoes."""


class Warehouse:
    """The service's own database. May be used from several threads and processes."""

    def __init__(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()  # one connection, so one transaction at a time
        self._connection = sqlite3.connect(path, timeout=30, isolation_level="IMMEDIATE", check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.executescript(SCHEMA)
        with self._connection as db:
            db.executemany(
                "INSERT INTO stock (item, delivered, on_hand) VALUES (?1, ?2, ?2) ON CONFLICT DO NOTHING",
                DELIVERED.items(),
            )

    def close(self) -> None:
        self._connection.close()

    def reserve(self, key: str, saga_id: str, item: str, quantity: int) -> int:
        """Put items aside and give the reservation's number; the same key again gives the same number.

        Raises:
            OutOfStock: there are too few; nothing was changed.
            Compensated: the key has been released already.
        """
        with self._lock, self._connection as db:
            made = db.execute(
                "INSERT INTO reservations (key, saga_id, item, quantity, state) VALUES (?, ?, ?, ?, 'standing')"
                " ON CONFLICT (key) DO NOTHING",
                (key, saga_id, item, quantity),
            ).rowcount
            number, state = db.execute("SELECT id, state FROM reservations WHERE key = ?", (key,)).fetchone()
            if state != "standing":
                raise Compensated(f"the reservation was released before: it is {state}")
            if made:
                taken = db.execute(
                    "UPDATE stock SET on_hand = on_hand - ?1 WHERE item = ?2 AND on_hand >= ?1", (quantity, item)
                ).rowcount
                if not taken:
                    raise OutOfStock(f"fewer than {quantity} of {item!r} are in stock")
            return int(number)

    def release(self, key: str, saga_id: str) -> bool:
        """Put a reservation's items back, once. Returns whether there was a reservation."""
        with self._lock, self._connection as db:
            # Where nothing stands, the step may have been cut off half-way or may still be on its way to us. The
            # tombstone bars it: a step that came after its own compensation would stand for ever.
            db.execute(
                "INSERT INTO reservations (key, saga_id, item, quantity, state) VALUES (?, ?, '', 0, 'barred')"
                " ON CONFLICT (key) DO NOTHING",
                (key, saga_id),
            )
            undone = db.execute(
                "UPDATE reservations SET state = 'undone', undone_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
                " WHERE key = ? AND state = 'standing' RETURNING item, quantity",
                (key,),
            ).fetchone()
            if undone is not None:
                item, quantity = undone
                db.execute("UPDATE stock SET on_hand = on_hand + ? WHERE item = ?", (quantity, item))
            (state,) = db.execute("SELECT state FROM reservations WHERE key = ?", (key,)).fetchone()
            return bool(state == "undone")
