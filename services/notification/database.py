"""The outbox: mails to customers, in the order in which they go out.

A mail cannot be taken back. So a notice that is undone stays where it is, and an apology goes out after it, once.
A notice's key is the idempotency key of the step that sent it; where the compensation comes first, its row is
``barred``, a tombstone: the late notice is not sent, and nobody gets an apology for a mail that they never had.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS notices (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    saga_id TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('standing', 'undone', 'barred')),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    undone_at TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS mails (
    id INTEGER PRIMARY KEY,
    saga_id TEXT NOT NULL,
    email TEXT NOT NULL,
    text TEXT NOT NULL,
    sent_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;
"""


class Compensated(Exception):  # noqa: N818 -- says what has happened
    """The notice was apologised for before it came."""


class Outbox:
    """The service's own database. May be used from several threads and processes."""

    def __init__(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()  # one connection, so one transaction at a time
        self._connection = sqlite3.connect(path, timeout=30, isolation_level="IMMEDIATE", check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.executescript(SCHEMA)

    def close(self) -> None:
        self._connection.close()

    def send_notice(self, key: str, saga_id: str, email: str, text: str) -> int:
        """Send a mail and give its notice's number; the same key again sends nothing and gives the same number.

        Raises:
            Compensated: the key has been apologised for already.
        """
        with self._lock, self._connection as db:
            sent = db.execute(
                "INSERT INTO notices (key, saga_id, state) VALUES (?, ?, 'standing') ON CONFLICT (key) DO NOTHING",
                (key, saga_id),
            ).rowcount
            number, state = db.execute("SELECT id, state FROM notices WHERE key = ?", (key,)).fetchone()
            if state != "standing":
                raise Compensated(f"the notice was withdrawn before: it is {state}")
            if sent:
                db.execute("INSERT INTO mails (saga_id, email, text) VALUES (?, ?, ?)", (saga_id, email, text))
            return int(number)

    def send_apology(self, key: str, saga_id: str, email: str, text: str) -> bool:
        """Apologise for a notice, once. Returns whether there was one."""
        with self._lock, self._connection as db:
            db.execute(
                "INSERT INTO notices (key, saga_id, state) VALUES (?, ?, 'barred') ON CONFLICT (key) DO NOTHING",
                (key, saga_id),
            )
            undone = db.execute(
                "UPDATE notices SET state = 'undone', undone_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
                " WHERE key = ? AND state = 'standing'",
                (key,),
            ).rowcount
            if undone:
                db.execute("INSERT INTO mails (saga_id, email, text) VALUES (?, ?, ?)", (saga_id, email, text))
            (state,) = db.execute("SELECT state FROM notices WHERE key = ?", (key,)).fetchone()
            return bool(state == "undone")
