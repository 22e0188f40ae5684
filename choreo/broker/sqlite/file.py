"""The database file: its place, its tables, and what can be wrong with it."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from choreo.errors import BrokerError, BrokerUnavailable, ChoreoError, ConfigurationError

T = TypeVar("T")

APPLICATION_ID = 0x63686F72  # "chor", in the file's header; `file` and we can tell a log from other databases
SCHEMA_VERSION = 1

LOCK_DEADLINE_S = 30.0  # others hold the write lock for milliseconds, seconds under load
_LOCK_PAUSE_S_BASE, _LOCK_PAUSE_S_MAX = 0.000_25, 0.002

_SCHEMA = """
CREATE TABLE topics (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    partitions INTEGER NOT NULL,
    retention_ms INTEGER,
    compacted INTEGER NOT NULL,
    message_bytes_max INTEGER NOT NULL
) STRICT;

CREATE TABLE partitions (
    id INTEGER PRIMARY KEY,
    topic_id INTEGER NOT NULL REFERENCES topics,
    number INTEGER NOT NULL,
    offset_next INTEGER NOT NULL,  -- grows even when all records are deleted
    appended_ms INTEGER NOT NULL,  -- append time of the last record
    UNIQUE (topic_id, number)
) STRICT;

CREATE TABLE records (
    id INTEGER PRIMARY KEY,  -- in the order of all appends, so that the table grows at its end
    partition_id INTEGER NOT NULL REFERENCES partitions,
    offset INTEGER NOT NULL,
    timestamp_ms INTEGER NOT NULL,
    key BLOB,
    value BLOB NOT NULL,
    headers BLOB NOT NULL,  -- MessagePack: an array of [name, content]
    UNIQUE (partition_id, offset)
) STRICT;

CREATE TABLE consumer_groups (
    name TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    state TEXT NOT NULL  -- JSON of choreo.broker.embedded.group.Group
) STRICT;

CREATE TABLE commits (
    group_name TEXT NOT NULL,
    partition_id INTEGER NOT NULL REFERENCES partitions,
    offset INTEGER NOT NULL,  -- the next to read
    metadata TEXT NOT NULL,
    PRIMARY KEY (group_name, partition_id)
) STRICT, WITHOUT ROWID;
"""


class LogFile:
    """Where the log is, and how to connect to it."""

    def __init__(self, path: Path, *, synchronous: str = "full") -> None:
        self.path = path
        self._synchronous = synchronous

    def create(self) -> sqlite3.Connection:
        """Connect, and make the tables if the file is new or empty.

        Raises:
            ConfigurationError: the path cannot be a log of ours; the message says why.
            BrokerUnavailable: other processes keep the file locked.
        """
        if not self.path.parent.is_dir():
            raise ConfigurationError(f"cannot create {self.path}: there is no directory {self.path.parent}")
        if self.path.is_dir():
            raise ConfigurationError(f"{self.path} is a directory; the URL must name a file in it")
        try:
            connection = self.connect()
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise self.translated(error) from error
        return connection

    def connect(self) -> sqlite3.Connection:
        """Connect to a log that is there. Raises ``sqlite3.Error``."""
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            patiently(connection, lambda: connection.execute(f"PRAGMA synchronous = {self._synchronous}"))
        except BaseException:
            connection.close()
            raise
        return connection

    def translated(self, error: sqlite3.Error) -> ChoreoError:
        """What an error of SQLite means to those who use the log."""
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the primary code; the rest are details
            case sqlite3.SQLITE_NOTADB:
                return ConfigurationError(f"{self.path} is not a SQLite database; name another file")
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                return ConfigurationError(
                    f"cannot write {self.path}: {error}. The file and its directory must be writable, because "
                    "SQLite keeps two more files beside it"
                )
            case sqlite3.SQLITE_CORRUPT:
                return ConfigurationError(f"{self.path} is damaged: {error}. Restore it from a backup")
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return BrokerUnavailable(
                    f"{self.path} has been locked for {LOCK_DEADLINE_S:.0f} s; is a tool holding a transaction open?"
                )
            case sqlite3.SQLITE_FULL:
                return BrokerUnavailable(f"no room left for {self.path}: {error}")
            case sqlite3.SQLITE_IOERR:
                return BrokerUnavailable(f"cannot read or write {self.path}: {error}")
            case _:
                return BrokerError(f"SQLite fails on {self.path}: {error}")

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Looked at before anything is written: a database of another program must stay as it is.
        if in_transaction(connection, "DEFERRED", lambda: self._is_ours(connection)):
            return
        (mode,) = patiently(connection, lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone())
        if mode != "wal":
            raise ConfigurationError(f"{self.path}: no write-ahead log there; is it on a network share?")
        in_transaction(connection, "IMMEDIATE", lambda: self._make_tables(connection))

    def _make_tables(self, connection: sqlite3.Connection) -> None:
        if self._is_ours(connection):
            return  # another process was quicker
        for statement in _SCHEMA.split(";\n\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _is_ours(self, connection: sqlite3.Connection) -> bool:
        """False for an empty file. Raises ``ConfigurationError`` for what belongs to others. In a transaction only."""
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application_id == APPLICATION_ID and version == SCHEMA_VERSION:
            return True
        if application_id == APPLICATION_ID:
            raise ConfigurationError(
                f"{self.path} has schema version {version}, this release reads {SCHEMA_VERSION}; use the release that "
                "wrote it, or begin a new file"
            )
        if tables:
            raise ConfigurationError(f"{self.path} is the database of another program; name another file")
        return False


def patiently(connection: sqlite3.Connection, work: Callable[[], T]) -> T:
    """Do ``work`` again as long as other processes have the lock it needs, up to ``LOCK_DEADLINE_S``.

    SQLite's own wait grows to a tenth of a second and knows no jitter; between writers that hold the lock for a
    millisecond that is both slow and unfair.
    """
    waited_s, pause_s_max = 0.0, _LOCK_PAUSE_S_BASE
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            locked = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not locked or waited_s > LOCK_DEADLINE_S:
                raise
        pause_s = random.uniform(0, pause_s_max)  # noqa: S311 - jitter, not a secret
        pause_s_max = min(pause_s_max * 2, _LOCK_PAUSE_S_MAX)
        waited_s += pause_s
        time.sleep(pause_s)


def in_transaction(connection: sqlite3.Connection, mode: str, work: Callable[[], T]) -> T:
    """Do ``work`` in a transaction (mode ``DEFERRED`` to read, ``IMMEDIATE`` to write); all of it or nothing.

    ``work`` may run several times. Raises ``sqlite3.Error``, and what ``work`` raises.
    """

    def attempt() -> T:
        connection.execute(f"BEGIN {mode}")
        try:
            result = work()
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return result

    return patiently(connection, attempt)
