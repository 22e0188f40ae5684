"""The carrier: somebody else's system, reached by calls that no transaction of ours can take back. Here it is played.

Like any provider worth its money it takes an idempotency key: the same key again gives the same booking. Its states
only move on: ``standing`` to ``undone``; or, where the cancellation comes first, ``barred``, which refuses the late
booking.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS bookings (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    saga_id TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('standing', 'undone', 'barred')),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    undone_at TEXT
) STRICT;
"""


class Cancelled(Exception):  # noqa: N818 -- says what has happened
    """The booking was cancelled before it came."""


class Carrier:
    """May be used from several threads and processes."""

    def __init__(self, path: str | Path) -> None:
        self._lock = threading.Lock()  # one connection, so one transaction at a time
        self._connection = sqlite3.connect(path, timeout=30, isolation_level="IMMEDIATE", check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.executescript(SCHEMA)

    def close(self) -> None:
        self._connection.close()

    def book(self, key: str, saga_id: str) -> int:
        """Make a booking and give its number; the same key again gives the same number.

        Raises:
            Cancelled: the key has been cancelled already.
        """
        with self._lock, self._connection as db:
            db.execute(
                "INSERT INTO bookings (key, saga_id, state) VALUES (?, ?, 'standing') ON CONFLICT (key) DO NOTHING",
                (key, saga_id),
            )
            number, state = db.execute("SELECT id, state FROM bookings WHERE key = ?", (key,)).fetchone()
            if state != "standing":
                raise Cancelled(f"the booking was cancelled before: it is {state}")
            return int(number)

    def cancel(self, key: str, saga_id: str) -> bool:
        """Cancel a booking, once. Returns whether there was one."""
        with self._lock, self._connection as db:
            # Where nothing stands, the booking may still be on its way: from a handler, say, that was cut off. Barred,
            # it cannot come any more; it would stand for ever.
            db.execute(
                "INSERT INTO bookings (key, saga_id, state) VALUES (?, ?, 'barred') ON CONFLICT (key) DO NOTHING",
                (key, saga_id),
            )
            db.execute(
                "UPDATE bookings SET state = 'undone', undone_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
                " WHERE key = ? AND state = 'standing'",
                (key,),
            )
            (state,) = db.execute("SELECT state FROM bookings WHERE key = ?", (key,)).fetchone()
            return bool(state == "undone")
