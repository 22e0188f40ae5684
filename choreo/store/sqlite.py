"""The store in a file of this machine: SQLite, in one thread of its own.

``sqlite_file`` opens the file and makes its tables; what stands in them is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from choreo.broker.port import Headers, Message, TopicPartition
from choreo.core import SagaState
from choreo.errors import ConfigurationError, StoreConflict, StoreError
from choreo.store.port import KEY_OF_ROW, PAGE, PAGE_OF_IDS, Activity, Advance, Checkpoint, Query, Row
from choreo.store.projection import state_of
from choreo.store.sqlite_file import SCHEMA_VERSION, connect, is_damage, put_aside, transaction
from choreo.store.sqlite_queries import SqliteQueries

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A row that is there already is changed where it is: one put in its place would be new to every index.
_SAVE_ROW = (
    f"INSERT INTO sagas ({', '.join(Row.__struct_fields__)}) "  # noqa: S608 -- columns and marks
    f"VALUES ({', '.join('?' * len(Row.__struct_fields__))}) ON CONFLICT (topic, partition, saga_id) DO UPDATE SET "
    + ", ".join(f"{field} = excluded.{field}" for field in Row.__struct_fields__ if field not in KEY_OF_ROW)
)

_LOAD = "SELECT saga_id, blob FROM sagas WHERE topic = ? AND partition = ? AND saga_id IN"
_DROPPED_AT_ONCE = 5_000
_VARIABLES_MAX = 500  # SQLite takes 999 in its oldest builds

_headers_decoder = msgspec.msgpack.Decoder(Headers)


class SqliteStore:
    """States in a file. Several processes of one machine may share it."""

    def __init__(self, path: Path, thread: ThreadPoolExecutor) -> None:
        self._path = path
        self._thread = thread
        self._queries = SqliteQueries(path)
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: str) -> Self:
        """Open the file, made if there is none.

        Raises:
            ConfigurationError: the file cannot be opened, or is another program's.
        """
        store = cls(Path(path), ThreadPoolExecutor(1, thread_name_prefix="choreo-store"))
        try:
            await asyncio.get_running_loop().run_in_executor(store._thread, store._open)
        except BaseException:
            store._thread.shutdown(wait=False)
            raise
        return store

    async def checkpoint(self, tp: TopicPartition) -> Checkpoint | None:
        def read(connection: sqlite3.Connection) -> Checkpoint | None:
            found = connection.execute(
                "SELECT offset, mark, type_pause FROM partitions WHERE topic = ? AND number = ?", tp
            )
            row = found.fetchone()
            return None if row is None else Checkpoint(*row)

        return await self._call(read)

    async def load_active(self, tp: TopicPartition, *, after: str = "") -> Sequence[SagaState]:
        query = (
            "SELECT blob FROM sagas WHERE topic = ? AND partition = ? AND resting = 0 AND saga_id > ? "
            "ORDER BY saga_id LIMIT ?"
        )
        values = (*tp, after, PAGE)
        return await self._call(lambda connection: [state_of(blob) for (blob,) in connection.execute(query, values)])

    async def saga_ids(self, tp: TopicPartition, *, after: str = "") -> Sequence[str]:
        query = "SELECT saga_id FROM sagas WHERE topic = ? AND partition = ? AND saga_id > ? ORDER BY saga_id LIMIT ?"
        values = (*tp, after, PAGE_OF_IDS)
        return await self._call(lambda connection: [saga_id for (saga_id,) in connection.execute(query, values)])

    async def load(self, tp: TopicPartition, saga_ids: Collection[str]) -> Mapping[str, SagaState]:
        wanted = list(saga_ids)

        def read(connection: sqlite3.Connection) -> dict[str, SagaState]:
            found: dict[str, SagaState] = {}
            for first in range(0, len(wanted), _VARIABLES_MAX):
                part = wanted[first : first + _VARIABLES_MAX]
                marks = ", ".join("?" * len(part))
                for saga_id, blob in connection.execute(f"{_LOAD} ({marks})", (*tp, *part)):
                    found[saga_id] = state_of(blob)
            return found

        return await self._call(read)

    async def parked_sagas(self, tp: TopicPartition) -> Mapping[str, int]:
        query = "SELECT saga_id, count(*) FROM parked WHERE topic = ? AND partition = ? GROUP BY saga_id"
        return await self._call(lambda connection: dict(connection.execute(query, tp).fetchall()))

    async def load_parked(self, tp: TopicPartition, saga_id: str) -> Sequence[Message]:
        query = (
            "SELECT offset, timestamp_ms, key, value, headers FROM parked "
            "WHERE topic = ? AND partition = ? AND saga_id = ? ORDER BY offset"
        )
        return await self._call(
            lambda connection: [
                Message(tp.topic, tp.partition, offset, timestamp_ms, key, value, _headers_decoder.decode(headers))
                for offset, timestamp_ms, key, value, headers in connection.execute(query, (*tp, saga_id))
            ]
        )

    async def save(self, advances: Sequence[Advance]) -> None:
        def write(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                for advance in advances:
                    _advance(connection, advance)

        await self._call(write)

    async def wipe(self, tp: TopicPartition) -> None:
        def write(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.execute("DELETE FROM partitions WHERE topic = ? AND number = ?", tp)
                connection.execute("DELETE FROM sagas WHERE topic = ? AND partition = ?", tp)
                connection.execute("DELETE FROM parked WHERE topic = ? AND partition = ?", tp)

        await self._call(write)

    async def drop_resting(self, before_ms: int) -> int:
        old = "SELECT rowid FROM sagas WHERE resting = 1 AND updated_ms < ? LIMIT ?"
        query = f"DELETE FROM sagas WHERE rowid IN ({old})"  # noqa: S608 -- no value of anybody's
        too_old = "SELECT rowid FROM parked WHERE timestamp_ms < ? LIMIT ?"
        unpark = f"DELETE FROM parked WHERE rowid IN ({too_old})"  # noqa: S608 -- the same
        limits = (before_ms, _DROPPED_AT_ONCE)
        return await self._call(
            lambda connection: sum(connection.execute(each, limits).rowcount for each in (query, unpark))
        )

    async def find(self, saga: str, saga_id: str) -> SagaState | None:
        return await self._queries.find(saga, saga_id)

    async def search(self, query: Query) -> Sequence[Row]:
        return await self._queries.search(query)

    async def counts(self) -> Mapping[tuple[str, str], int]:
        return await self._queries.counts()

    async def activity(self, since_ms: int, stretch_ms: int) -> Sequence[Activity]:
        return await self._queries.activity(since_ms, stretch_ms)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._queries.close()
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown()

    async def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StoreError(f"the store {self._path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)

    # What follows runs in the thread.

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            raise StoreError(f"the store {self._path} could not be opened again after damage")
        try:
            return work(self._connection)
        except msgspec.MsgspecError as error:
            raise self._begin_anew(error) from error
        except sqlite3.Error as error:
            if is_damage(error):
                raise self._begin_anew(error) from error
            raise StoreError(f"the store {self._path} cannot be used: {error}") from error

    def _open(self) -> None:
        try:
            self._connection = connect(self._path)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise ConfigurationError(f"the store {self._path} cannot be opened: {error}") from error
            self._begin_anew(error)
        else:
            found = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if found != SCHEMA_VERSION:
                self._begin_anew(f"it has schema {found}, this release has {SCHEMA_VERSION}")

    def _begin_anew(self, why: object) -> StoreConflict:
        """Put the file aside. Under another name, because the name may have been a mistake."""
        self._close()
        aside = put_aside(self._path)
        self._connection = connect(self._path)
        text = f"the store {self._path} could not be used ({why}); it was moved to {aside} and is rebuilt from the log"
        logger.warning("%s", text)
        return StoreConflict(text)

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _advance(connection: sqlite3.Connection, advance: Advance) -> None:
    tp, checkpoint = advance.tp, advance.checkpoint
    if advance.expected is None:
        moved = connection.execute("INSERT OR IGNORE INTO partitions VALUES (?, ?, ?, ?, ?)", (*tp, *checkpoint))
    else:
        moved = connection.execute(
            "UPDATE partitions SET offset = ?, mark = ?, type_pause = ? WHERE topic = ? AND number = ? AND offset = ?",
            (*checkpoint, *tp, advance.expected),
        )
    if moved.rowcount != 1:
        raise StoreConflict(f"{tp}: the checkpoint is not at {advance.expected}; another instance has moved it")
    connection.executemany(_SAVE_ROW, map(msgspec.structs.astuple, advance.rows))
    connection.executemany(
        "DELETE FROM parked WHERE topic = ? AND partition = ? AND saga_id = ?",
        [(*tp, saga_id) for saga_id in advance.released],
    )
    connection.executemany(
        "INSERT OR REPLACE INTO parked VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (*tp, each.offset, (each.key or b"").decode(), each.timestamp_ms, each.key, each.value, _packed(each))
            for each in advance.parked
        ],
    )


def _packed(message: Message) -> bytes:
    return msgspec.msgpack.encode(message.headers)
