"""Questions to the store in a file, in a thread and over a connection of their own.

A search through many sagas may take its time; a batch that has to be saved meanwhile must not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from choreo.broker.topics import saga_topic
from choreo.core import SagaState
from choreo.errors import StoreError
from choreo.store.port import Activity, Query, Row
from choreo.store.projection import state_of
from choreo.store.query import ACTIVITY, FLAGS, LISTED, activities, select
from choreo.store.sqlite_file import connect_to_read

T = TypeVar("T")


class SqliteQueries:
    """Reads the file as it is when it is asked. Damage is the writer's to mend: here it is an error and no more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="choreo-store-queries")
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None

    async def find(self, saga: str, saga_id: str) -> SagaState | None:
        def read(connection: sqlite3.Connection) -> SagaState | None:
            query = (
                "SELECT blob FROM partitions p JOIN sagas s ON s.topic = p.topic AND s.partition = p.number "
                "WHERE p.topic = ? AND s.saga_id = ? AND s.saga = ?"
            )
            row = connection.execute(query, (saga_topic(saga), saga_id, saga)).fetchone()
            return None if row is None else state_of(row[0])

        return await self._ask(read)

    async def search(self, query: Query) -> Sequence[Row]:
        text, values = select(query, lambda _: "?", "instr")

        def read(connection: sqlite3.Connection) -> Sequence[Row]:
            rows = (dict(zip(LISTED, row, strict=True)) for row in connection.execute(text, values))
            return [Row(**(row | {name: bool(row[name]) for name in FLAGS})) for row in rows]

        return await self._ask(read)

    async def counts(self) -> Mapping[tuple[str, str], int]:
        query = "SELECT saga, phase, count(*) FROM sagas GROUP BY saga, phase"
        return await self._ask(
            lambda connection: {(saga, phase): number for saga, phase, number in connection.execute(query)}
        )

    async def activity(self, since_ms: int, stretch_ms: int) -> Sequence[Activity]:
        query = ACTIVITY.format(int(since_ms), int(stretch_ms))
        return await self._ask(lambda connection: activities(connection.execute(query).fetchall()))

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    async def _ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)
        except RuntimeError as error:
            raise StoreError(f"the store {self._path} is closed") from error

    # What follows runs in the thread.

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return work(self._connected())
        except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            self._close()
            raise StoreError(f"the store {self._path} cannot be read: {error}") from error

    def _connected(self) -> sqlite3.Connection:
        """The connection, made again if the writer has put the file aside and begun another."""
        status = self._path.stat()
        if self._connection is None or self._opened != (status.st_dev, status.st_ino):
            self._close()
            self._connection = connect_to_read(self._path)
            self._opened = (status.st_dev, status.st_ino)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
