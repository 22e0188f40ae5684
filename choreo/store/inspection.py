"""Looking into a store without touching it: no file is made, moved or mended, no schema is brought up to date.

A saga-log that finds its store damaged begins it anew. Whoever wants to know whether it is damaged must not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol
from urllib.parse import unquote

from choreo.broker.port import TopicPartition
from choreo.errors import ConfigurationError
from choreo.store import need_driver, without_password
from choreo.store.port import Checkpoint, Row
from choreo.url import split_url


class Contents(NamedTuple):
    """All that a store has of a partition, as of one moment.

    Attributes:
        checkpoint: ``None`` if there is none.
        rows: by saga id, with their blobs.
        parked: saga id → offsets of its records that wait for a contract.
        of_another_release: the blobs are in a format that this release does not read.
    """

    checkpoint: Checkpoint | None
    rows: Mapping[str, Row]
    parked: Mapping[str, Collection[int]]
    of_another_release: bool = False


class Overview(NamedTuple):
    """What a store says of a topic in a few numbers.

    Attributes:
        checkpoints: partition → next record to fold; those that have none are left out.
        unfinished: contract version and phase → sagas that are not at rest.
    """

    checkpoints: Mapping[int, int]
    unfinished: Mapping[tuple[int, str], int]


class Inspection(Protocol):
    """A store that is only looked at. Everything raises ``StoreError`` when it cannot be read."""

    async def contents(self, tp: TopicPartition) -> Contents:
        """What the store has of a partition."""
        ...

    async def overview(self, topic: str) -> Overview:
        """How far a topic is folded, and how many sagas are under way."""
        ...

    async def close(self) -> None: ...


async def open_inspection(url: str) -> Inspection:
    """Look into the store that ``url`` names.

    Raises:
        ConfigurationError: there is none, it is of another release or program, or it keeps nothing to look at.
        StoreUnavailable: the database does not answer.
    """
    parts = split_url(url)
    if parts.scheme == "postgresql":
        need_driver()
        from choreo.store.postgres_inspection import PostgresInspection

        return await PostgresInspection.open(url)
    path = unquote(parts.path)[1:]
    if parts.scheme == "sqlite" and path:
        from choreo.store.sqlite_inspection import SqliteInspection

        return await SqliteInspection.open(path)
    raise ConfigurationError(
        f"store URL {without_password(parts)!r} names no store that can be looked into; use sqlite:///path/to/file.db "
        "or postgresql://user@host:5432/database"
    )
