"""What an adapter without a server has to bring: a log to read, and a place for the groups that share it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from choreo.broker.embedded.changes import Changes
from choreo.broker.embedded.group import Standing
from choreo.broker.port import Committed, Message, TopicPartition


class Batch(NamedTuple):
    """Records, and where to read on in each partition that was asked for."""

    messages: Sequence[Message]
    positions: Mapping[TopicPartition, int]


class EmbeddedLog(Protocol):
    """A log that readers and group members of this process share.

    All coroutines raise ``BrokerUnavailable`` when the log cannot be used now.

    Attributes:
        changes: notified after anything was appended, and after the generation of any group has grown.
        heartbeat_s: how often a member renews its lease.
    """

    changes: Changes
    heartbeat_s: float

    def end_known(self, tp: TopicPartition) -> int | None:
        """The offset that the next record will get, as last heard; ``None`` if never heard of."""
        ...

    def generation_known(self, group: str) -> int:
        """The group's generation, as last heard."""
        ...

    async def read(self, positions: Mapping[TopicPartition, int], records_max: int) -> Batch:
        """Records from these positions on, partitions in this order, and at least one if there is any.

        A position beyond the end is moved to the earliest record: the log it was taken from is gone.
        Raises ``TopicError`` for a partition that does not exist.
        """
        ...

    async def offsets(self, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, tuple[int, int]]: ...

    async def join(self, group: str, topics: Collection[str]) -> str:
        """Become a member under a name that was never used before. Raises ``TopicError`` for an unknown topic."""
        ...

    async def sync(self, group: str, member: str) -> Standing | None:
        """Renew the lease, claim what is free for the member; ``None`` if the lease had lapsed and was ended."""
        ...

    async def release(self, group: str, member: str, tps: Collection[TopicPartition]) -> None: ...

    async def leave(self, group: str, member: str) -> None: ...

    async def commit(self, group: str, member: str, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Store places. Raises ``CommitRefused`` if one of the partitions is not the member's; then none is stored."""
        ...

    async def committed(self, group: str, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, Committed]: ...
