"""Looking into a store in a file. It is opened for reading alone, beside a saga-log that may be writing to it."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Self

from choreo.broker.port import TopicPartition
from choreo.errors import ConfigurationError, StoreError
from choreo.store.inspection import Contents, Overview
from choreo.store.port import Checkpoint, Row
from choreo.store.query import FLAGS
from choreo.store.sqlite_file import APPLICATION_ID, SCHEMA_VERSION, connect_to_read

_FIELDS = Row.__struct_fields__
_ROWS = f"SELECT {', '.join(_FIELDS)} FROM sagas WHERE topic = ? AND partition = ?"  # noqa: S608 -- columns
_UNFINISHED = "SELECT version, phase, count(*) FROM sagas WHERE topic = ? AND NOT resting GROUP BY version, phase"


class SqliteInspection:
    """A file that is only read."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection

    @classmethod
    async def open(cls, path: str) -> Self:
        return cls(Path(path), await asyncio.to_thread(_connect, Path(path)))

    async def contents(self, tp: TopicPartition) -> Contents:
        try:
            return await asyncio.to_thread(self._contents, tp)
        except sqlite3.Error as error:
            raise StoreError(f"the store {self._path} cannot be read: {error}") from error

    async def overview(self, topic: str) -> Overview:
        try:
            return await asyncio.to_thread(self._overview, topic)
        except sqlite3.Error as error:
            raise StoreError(f"the store {self._path} cannot be read: {error}") from error

    async def close(self) -> None:
        self._connection.close()

    def _overview(self, topic: str) -> Overview:
        execute = self._connection.execute
        execute("BEGIN")
        try:
            places = execute("SELECT number, offset FROM partitions WHERE topic = ?", (topic,)).fetchall()
            counts = execute(_UNFINISHED, (topic,)).fetchall()
        finally:
            execute("ROLLBACK")
        return Overview(dict(places), {(version, phase): count for version, phase, count in counts})

    def _contents(self, tp: TopicPartition) -> Contents:
        execute = self._connection.execute
        execute("BEGIN")
        try:
            place = execute(
                "SELECT offset, mark, type_pause FROM partitions WHERE topic = ? AND number = ?", tp
            ).fetchone()
            rows = {}
            for values in execute(_ROWS, tp):
                row = dict(zip(_FIELDS, values, strict=True))
                rows[row["saga_id"]] = Row(**(row | {name: bool(row[name]) for name in FLAGS}))
            parked: dict[str, set[int]] = {}
            query = "SELECT saga_id, offset FROM parked WHERE topic = ? AND partition = ?"
            for saga_id, offset in execute(query, tp):
                parked.setdefault(saga_id, set()).add(offset)
        finally:
            execute("ROLLBACK")
        return Contents(None if place is None else Checkpoint(*place), rows, parked)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = connect_to_read(path)
    except sqlite3.Error as error:
        raise ConfigurationError(f"the store {path} cannot be opened: {error}") from error
    try:
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        found = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        connection.close()
        raise ConfigurationError(f"the store {path} cannot be read: {error}") from error
    if owner != APPLICATION_ID or found != SCHEMA_VERSION:
        connection.close()
        whose = "of another program" if owner != APPLICATION_ID else "of another release; its saga-log begins it anew"
        raise ConfigurationError(f"{path} is a database {whose}: there is nothing to compare")
    return connection
