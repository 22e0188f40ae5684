"""Looking into a store in PostgreSQL, in transactions that can only read."""

from __future__ import annotations

from typing import Self

import asyncpg

from choreo.broker.port import TopicPartition
from choreo.store.inspection import Contents, Overview
from choreo.store.port import Checkpoint, Row
from choreo.store.postgres_link import LONG_TIMEOUT_S, Link, address_of
from choreo.store.postgres_schema import FORMAT

_FIELDS = ", ".join(Row.__struct_fields__)
_ROWS = f"SELECT {_FIELDS} FROM sagas WHERE topic = $1 AND partition = $2"  # noqa: S608 -- columns
_UNFINISHED = (
    "SELECT version, phase, count(*) AS sagas FROM sagas WHERE topic = $1 AND NOT resting GROUP BY version, phase"
)


class PostgresInspection:
    """A schema that is only read."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @classmethod
    async def open(cls, url: str) -> Self:
        inspection = cls(Link(address_of(url), inspecting=True))
        await inspection._link.open()
        return inspection

    async def contents(self, tp: TopicPartition) -> Contents:
        async def read(connection: asyncpg.Connection) -> Contents:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                place = await connection.fetchrow(
                    "SELECT next_offset, mark, type_pause, format FROM partitions WHERE topic = $1 AND number = $2", *tp
                )
                rows = [Row(**dict(row)) for row in await connection.fetch(_ROWS, *tp, timeout=LONG_TIMEOUT_S)]
                waiting = await connection.fetch(
                    "SELECT saga_id, array_agg(record_offset) AS offsets FROM parked "
                    "WHERE topic = $1 AND partition = $2 GROUP BY saga_id",
                    *tp,
                )
            return Contents(
                None if place is None else Checkpoint(place["next_offset"], place["mark"], place["type_pause"]),
                {row.saga_id: row for row in rows},
                {row["saga_id"]: frozenset(row["offsets"]) for row in waiting},
                of_another_release=place is not None and place["format"] != FORMAT,
            )

        return await self._link.call(read)

    async def overview(self, topic: str) -> Overview:
        async def read(connection: asyncpg.Connection) -> Overview:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                places = await connection.fetch("SELECT number, next_offset FROM partitions WHERE topic = $1", topic)
                counts = await connection.fetch(_UNFINISHED, topic, timeout=LONG_TIMEOUT_S)
            return Overview(
                {row["number"]: row["next_offset"] for row in places},
                {(row["version"], row["phase"]): row["sagas"] for row in counts},
            )

        return await self._link.call(read)

    async def close(self) -> None:
        await self._link.close()
