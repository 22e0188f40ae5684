"""The store's file: whose it is, what tables it has, and what happens when it cannot be used.

The file is a checkpoint that may lag, so an operating system that loses its last moments does no harm
(``synchronous=NORMAL``). A file that is damaged, or that another release has written, is put aside and begun anew:
the log is the truth. A file of another program is left alone.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from zlib import crc32

import msgspec

from choreo.core import SagaState
from choreo.errors import ConfigurationError

_TABLES = """
CREATE TABLE partitions (topic TEXT, number INTEGER, offset INTEGER NOT NULL, mark TEXT NOT NULL,
    type_pause TEXT NOT NULL, PRIMARY KEY (topic, number));
CREATE TABLE sagas (topic TEXT, partition INTEGER NOT NULL, saga TEXT NOT NULL, saga_id TEXT, version INTEGER NOT NULL,
    phase TEXT NOT NULL, round INTEGER NOT NULL, resting INTEGER NOT NULL, started_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL, finished_ms INTEGER NOT NULL, step TEXT NOT NULL, code TEXT NOT NULL,
    due_ms INTEGER NOT NULL, timer_ms INTEGER, message TEXT NOT NULL, busy TEXT NOT NULL, paused INTEGER NOT NULL,
    blob BLOB NOT NULL,
    PRIMARY KEY (topic, partition, saga_id));
CREATE INDEX active ON sagas (topic, partition, saga_id) WHERE resting = 0;
CREATE INDEX resting ON sagas (updated_ms) WHERE resting = 1;
CREATE INDEX listed ON sagas (saga, phase, started_ms);
CREATE INDEX in_order ON sagas (started_ms, saga_id, saga);
CREATE INDEX failed ON sagas (code, started_ms) WHERE code <> '';
CREATE INDEX finished ON sagas (finished_ms) WHERE finished_ms > 0;
CREATE TABLE parked (topic TEXT, partition INTEGER, offset INTEGER, saga_id TEXT NOT NULL,
    timestamp_ms INTEGER NOT NULL, key BLOB, value BLOB NOT NULL, headers BLOB NOT NULL,
    PRIMARY KEY (topic, partition, offset));
CREATE INDEX parked_of ON parked (topic, partition, saga_id);
"""

APPLICATION_ID = 0x63_68_6F_72  # "chor", as SQLite's own field for whose file it is
# Whatever changes the tables or the type in the blobs gives another number, without anybody having to think of it.
SCHEMA_VERSION = crc32((_TABLES + repr(msgspec.inspect.type_info(SagaState))).encode()) & 0x7FFF_FFFF

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file and, if it is new, make the tables. Raises ``ConfigurationError`` for a file of another program."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
    try:
        _check_owner(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        with transaction(connection):  # two processes may find the file new at once
            if not _tables(connection):
                for statement in _TABLES.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open the file for reading alone, beside the connection that writes to it."""
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None, timeout=10, check_same_thread=False
    )


def put_aside(path: Path) -> Path:
    """Rename a file that cannot be used, rather than delete it: its name may have been a mistake. The new name."""
    aside = path.with_name(f"{path.name}.aside")
    with contextlib.suppress(FileNotFoundError):  # another process may have been faster
        path.replace(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return aside


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file, not what was asked of it, is at fault."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of the block or nothing. Waits for other writers to finish first."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _tables(connection: sqlite3.Connection) -> int:
    found: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return found


def _check_owner(connection: sqlite3.Connection, path: Path) -> None:
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    if owner != APPLICATION_ID and _tables(connection):
        raise ConfigurationError(f"{path} is a database of another program; give the store a file of its own")
