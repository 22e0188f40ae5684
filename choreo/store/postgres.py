"""The store in PostgreSQL: one for several saga-log instances, on one machine or many.

``postgres_link`` holds the connection, ``postgres_schema`` the tables; what stands in them is here. A checkpoint is
moved by an ``UPDATE`` that names the offset it expects, so the row's lock lets one of two instances wait for the other,
and then the expectation of the second is false.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from typing import Self, TypeVar

import asyncpg
import msgspec

from choreo.broker.port import Headers, Message, TopicPartition
from choreo.broker.topics import saga_topic
from choreo.core import SagaState
from choreo.errors import StoreConflict
from choreo.store.port import PAGE, PAGE_OF_IDS, Activity, Advance, Checkpoint, Query, Row
from choreo.store.postgres_link import LONG_TIMEOUT_S, Address, Link, address_of
from choreo.store.postgres_schema import FORMAT
from choreo.store.projection import state_of
from choreo.store.query import ACTIVITY, activities, select

logger = logging.getLogger(__name__)

T = TypeVar("T")

_COLUMNS = ", ".join(Row.__struct_fields__)
_TYPES = {str: "text", int: "bigint", bool: "boolean", bytes: "bytea", int | None: "bigint"}
_values_of = attrgetter(*Row.__struct_fields__)

# One array for each column: a statement for a batch, whatever its size.
_SAVE_ROWS = (
    f"INSERT INTO sagas ({_COLUMNS}) SELECT * FROM unnest("  # noqa: S608 -- columns and their types
    + ", ".join(
        f"${number}::{_TYPES[field.type]}[]" for number, field in enumerate(msgspec.structs.fields(Row), start=1)
    )
    + ") ON CONFLICT (topic, saga_id) DO UPDATE SET "
    + ", ".join(f"{field} = excluded.{field}" for field in Row.__struct_fields__ if field not in ("topic", "saga_id"))
)
_MOVE = (
    "UPDATE partitions p SET next_offset = n.next_offset, mark = n.mark, type_pause = n.type_pause "
    "FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::text[], $6::text[]) "
    "AS n(topic, number, expected, next_offset, mark, type_pause) "
    "WHERE p.topic = n.topic AND p.number = n.number AND p.next_offset = n.expected AND p.format = $7 "
    "RETURNING p.topic, p.number"
)
_BEGIN = (
    "INSERT INTO partitions (topic, number, next_offset, mark, type_pause, format) SELECT n.*, $6::bigint "
    "FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::text[], $5::text[]) AS n "
    "ON CONFLICT DO NOTHING RETURNING topic, number"
)
_RELEASE = (
    "DELETE FROM parked p USING unnest($1::text[], $2::integer[], $3::text[]) AS n(topic, partition, saga_id) "
    "WHERE p.topic = n.topic AND p.partition = n.partition AND p.saga_id = n.saga_id"
)
_PARK = (
    "INSERT INTO parked VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (topic, partition, record_offset) "
    "DO UPDATE SET saga_id = excluded.saga_id, timestamp_ms = excluded.timestamp_ms, key = excluded.key, "
    "value = excluded.value, headers = excluded.headers"
)
_DROP = (
    # Rows that somebody is writing are passed over, so that nobody waits for whom he keeps waiting.
    "DELETE FROM sagas WHERE ctid = ANY (ARRAY("
    "SELECT ctid FROM sagas WHERE rested_ms < $1 LIMIT $2 FOR UPDATE SKIP LOCKED))"
)
_DROP_PARKED = (
    "DELETE FROM parked WHERE ctid = ANY (ARRAY("
    "SELECT ctid FROM parked WHERE timestamp_ms < $1 LIMIT $2 FOR UPDATE SKIP LOCKED))"
)
_DROPPED_AT_ONCE = 5_000

_headers_decoder = msgspec.msgpack.Decoder(Headers)


class PostgresStore:
    """States in a database that several instances share."""

    def __init__(self, address: Address) -> None:
        self._link = Link(address)
        self._questions = Link(address, inspecting=True)  # a search may take its time; a batch must not wait for it
        self._begun: set[TopicPartition] = set()  # partitions that had a checkpoint when we last looked

    def __repr__(self) -> str:
        return f"PostgresStore({self._link.address.shown!r})"

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect, and make the schema if there is none.

        Raises:
            ConfigurationError: the URL or the server's answer to it is no; or the schema is another program's, or a
                newer release's.
            StoreUnavailable: no server answers.
        """
        store = cls(address_of(url))
        await store._link.open()
        return store

    async def checkpoint(self, tp: TopicPartition) -> Checkpoint | None:
        query = "SELECT next_offset, mark, type_pause, format FROM partitions WHERE topic = $1 AND number = $2"
        row = await self._link.call(lambda connection: connection.fetchrow(query, *tp))
        self._begun.discard(tp)
        if row is None:
            return None
        offset, mark, type_pause, written_in = row
        if written_in != FORMAT:
            logger.warning("what the store has of %s was written by another release; rebuilding from the log", tp)
            await self.wipe(tp)
            return None
        self._begun.add(tp)
        return Checkpoint(offset, mark, type_pause)

    async def load_active(self, tp: TopicPartition, *, after: str = "") -> Sequence[SagaState]:
        query = (
            "SELECT blob FROM sagas WHERE topic = $1 AND partition = $2 AND NOT resting AND saga_id > $3 "
            "ORDER BY saga_id LIMIT $4"
        )
        rows = await self._link.call(
            lambda connection: connection.fetch(query, *tp, after, PAGE, timeout=LONG_TIMEOUT_S)
        )
        return await self._decoded(tp, lambda: [state_of(row["blob"]) for row in rows])

    async def saga_ids(self, tp: TopicPartition, *, after: str = "") -> Sequence[str]:
        query = (
            "SELECT saga_id FROM sagas WHERE topic = $1 AND partition = $2 AND saga_id > $3 ORDER BY saga_id LIMIT $4"
        )
        rows = await self._link.call(
            lambda connection: connection.fetch(query, *tp, after, PAGE_OF_IDS, timeout=LONG_TIMEOUT_S)
        )
        return [row["saga_id"] for row in rows]

    async def load(self, tp: TopicPartition, saga_ids: Collection[str]) -> Mapping[str, SagaState]:
        wanted = [each for each in saga_ids if "\0" not in each]  # PostgreSQL has no such text, so no such saga
        query = (
            "SELECT s.saga_id, s.blob FROM partitions p "
            "LEFT JOIN sagas s ON s.topic = p.topic AND s.saga_id = ANY ($3::text[]) "
            "WHERE p.topic = $1 AND p.number = $2"
        )
        rows = await self._link.call(lambda connection: connection.fetch(query, *tp, wanted))
        if not rows and tp in self._begun:
            # A saga that is not there would pass for a new one.
            raise StoreConflict(f"{tp}: the checkpoint is gone; another instance, or an administrator, has wiped it")
        return await self._decoded(tp, lambda: {name: state_of(blob) for name, blob in rows if name is not None})

    async def parked_sagas(self, tp: TopicPartition) -> Mapping[str, int]:
        query = "SELECT saga_id, count(*) FROM parked WHERE topic = $1 AND partition = $2 GROUP BY saga_id"
        rows = await self._link.call(lambda connection: connection.fetch(query, *tp))
        return {row["saga_id"]: row["count"] for row in rows}

    async def load_parked(self, tp: TopicPartition, saga_id: str) -> Sequence[Message]:
        query = (
            "SELECT record_offset, timestamp_ms, key, value, headers FROM parked "
            "WHERE topic = $1 AND partition = $2 AND saga_id = $3 ORDER BY record_offset"
        )
        rows = await self._link.call(lambda connection: connection.fetch(query, *tp, saga_id))
        return await self._decoded(
            tp,
            lambda: [
                Message(*tp, offset, timestamp_ms, key, value, _headers_decoder.decode(headers))
                for offset, timestamp_ms, key, value, headers in rows
            ],
        )

    async def save(self, advances: Sequence[Advance]) -> None:
        async def write(connection: asyncpg.Connection) -> None:
            async with connection.transaction():
                await _move(connection, advances)
                await _save_rows(connection, advances)
                await _save_parked(connection, advances)

        await self._link.call(write)
        self._begun.update(advance.tp for advance in advances)

    async def wipe(self, tp: TopicPartition) -> None:
        async def write(connection: asyncpg.Connection) -> None:
            async with connection.transaction():
                # The checkpoint first: who saves in the partition waits for its row, or we for him.
                await connection.execute("DELETE FROM partitions WHERE topic = $1 AND number = $2", *tp)
                for table in ("sagas", "parked"):
                    query = f"DELETE FROM {table} WHERE topic = $1 AND partition = $2"  # noqa: S608 -- no value
                    await connection.execute(query, *tp, timeout=LONG_TIMEOUT_S)

        await self._link.call(write)
        self._begun.discard(tp)

    async def drop_resting(self, before_ms: int) -> int:
        dropped = 0
        for statement in (_DROP, _DROP_PARKED):
            done = await self._link.call(
                lambda connection, statement=statement: connection.execute(  # type: ignore[misc]
                    statement, before_ms, _DROPPED_AT_ONCE, timeout=LONG_TIMEOUT_S
                )
            )
            dropped += int(done.rpartition(" ")[2])  # "DELETE 17"
        return dropped

    async def find(self, saga: str, saga_id: str) -> SagaState | None:
        query = (
            "SELECT s.topic, s.partition, s.blob FROM sagas s "
            "JOIN partitions p ON p.topic = s.topic AND p.number = s.partition AND p.format = $3 "
            "WHERE s.topic = $4 AND s.saga = $1 AND s.saga_id = $2"
        )
        row = await self._questions.call(
            lambda connection: connection.fetchrow(query, saga, saga_id, FORMAT, saga_topic(saga))
        )
        if row is None:
            return None
        topic, partition, blob = row
        return await self._decoded(TopicPartition(topic, partition), lambda: state_of(blob))

    async def search(self, query: Query) -> Sequence[Row]:
        if any("\0" in text for text in (query.saga, query.step, query.code, query.text, *query.phases) if text):
            return []  # PostgreSQL has no such text
        text, values = select(query, "${}".format, "strpos")
        rows = await self._questions.call(lambda connection: connection.fetch(text, *values, timeout=LONG_TIMEOUT_S))
        return [Row(**dict(row)) for row in rows]

    async def counts(self) -> Mapping[tuple[str, str], int]:
        query = "SELECT saga, phase, count(*) FROM sagas GROUP BY saga, phase"
        rows = await self._questions.call(lambda connection: connection.fetch(query, timeout=LONG_TIMEOUT_S))
        return {(saga, phase): number for saga, phase, number in rows}

    async def activity(self, since_ms: int, stretch_ms: int) -> Sequence[Activity]:
        query = ACTIVITY.format(int(since_ms), int(stretch_ms))
        rows = await self._questions.call(lambda connection: connection.fetch(query, timeout=LONG_TIMEOUT_S))
        return activities([tuple(row) for row in rows])

    async def close(self) -> None:
        await self._questions.close()
        await self._link.close()

    async def _decoded(self, tp: TopicPartition, read: Callable[[], T]) -> T:
        """What ``read`` decodes. A partition with bytes that are no state is begun anew, the others are left alone."""
        try:
            return read()
        except msgspec.MsgspecError as error:
            await self.wipe(tp)
            text = f"what {self._link.address.shown} has of {tp} is damaged ({error}); it is rebuilt from the log"
            logger.warning("%s", text)
            raise StoreConflict(text) from error


async def _move(connection: asyncpg.Connection, advances: Sequence[Advance]) -> None:
    moved: set[tuple[str, int]] = set()
    known = [each for each in advances if each.expected is not None]
    if known:
        columns = zip(*((*each.tp, each.expected, *each.checkpoint) for each in known), strict=True)
        moved.update(tuple(row) for row in await connection.fetch(_MOVE, *map(list, columns), FORMAT))
    fresh = [each for each in advances if each.expected is None]
    if fresh:
        columns = zip(*((*each.tp, *each.checkpoint) for each in fresh), strict=True)
        moved.update(tuple(row) for row in await connection.fetch(_BEGIN, *map(list, columns), FORMAT))
    for each in advances:
        if each.tp not in moved:
            raise StoreConflict(f"{each.tp}: the checkpoint is not at {each.expected}; another instance has moved it")


async def _save_rows(connection: asyncpg.Connection, advances: Sequence[Advance]) -> None:
    rows = {(row.topic, row.saga_id): row for advance in advances for row in advance.rows}
    if rows:
        columns = list(map(list, zip(*map(_values_of, rows.values()), strict=True)))
        for place in map(Row.__struct_fields__.index, ("code", "message")):  # users' text
            columns[place] = [text.replace("\0", "\N{REPLACEMENT CHARACTER}") for text in columns[place]]
        await connection.execute(_SAVE_ROWS, *columns)


async def _save_parked(connection: asyncpg.Connection, advances: Sequence[Advance]) -> None:
    released = [(*advance.tp, saga_id) for advance in advances for saga_id in advance.released]
    if released:
        await connection.execute(_RELEASE, *map(list, zip(*released, strict=True)))
    parked = [
        (*advance.tp, each.offset, (each.key or b"").decode(), each.timestamp_ms, each.key, each.value, _packed(each))
        for advance in advances
        for each in advance.parked
    ]
    if parked:
        await connection.executemany(_PARK, parked)


def _packed(message: Message) -> bytes:
    return msgspec.msgpack.encode(message.headers)
