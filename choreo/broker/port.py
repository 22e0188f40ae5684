"""The port to the log: what choreo needs of a broker, and nothing more.

Four small protocols. A ``Broker`` makes the other three: a ``Producer`` appends, a ``Consumer`` reads as a
member of a group, a ``Reader`` reads on its own. One conformance suite (``tests/conformance``) holds all adapters
to the same promises:

- Records of one key are in one partition, in the order in which their sends were acknowledged.
- ``send`` returns after the record is durable, with its coordinates and append time.
- Append time is the broker's (LogAppendTime), milliseconds since the Unix epoch; within a partition it never falls.
- Each partition is read by one member of a group at a time; when members come, go or die, partitions move.
- What was not committed is delivered again to the next owner; the commit carries a free text (``metadata``).
- A consumer starts at the committed offset, and at the earliest record where nothing was committed.

Adapters raise the errors of ``choreo.errors`` only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

Headers = tuple[tuple[str, bytes], ...]

COMMIT_METADATA_MAX_CHARS = 4_096  # Kafka's offset.metadata.max.bytes; the text must be ASCII


class TopicPartition(NamedTuple):
    """One partition of a topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


class Message(msgspec.Struct, frozen=True, gc=False):
    """One record as it stands in the log.

    Attributes:
        offset: position in the partition; offsets grow but need not be dense.
        timestamp_ms: append time by the broker's clock, Unix epoch.
        key: the saga id in saga topics, UTF-8; foreign writers may have left it out.
        value: the encoded record; ``b""`` where the log has none.
        headers: in order; a name may occur twice, the first counts. What an adapter cannot take apart without loss it
            delivers under ``choreo.messages.headers.UNREADABLE`` as the first of them, and a record of a saga's topic
            that is in another partition than its key's under ``MISPLACED``.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes
    headers: Headers

    def __repr__(self) -> str:
        """Without the value, which is the users'."""
        return f"Message({self.tp} at {self.offset}, key={self.key!r}, {len(self.value)} bytes)"

    @property
    def tp(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)

    def header(self, name: str) -> bytes | None:
        """The first header of that name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Appended(NamedTuple):
    """Where and when a record was appended."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


class Committed(NamedTuple):
    """A group's place in a partition: the next offset to read, and the text that was committed with it."""

    offset: int
    metadata: str = ""


class TopicSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a topic has to be.

    Attributes:
        partitions: fixed for the life of the topic: growing it would move sagas between partitions.
        retention_ms: how long records are kept at least; ``None`` for ever. A topic that exists may keep them longer.
        compacted: keep the last record of each key (contracts); otherwise records are deleted by age alone.
        replication_factor: ``None`` takes the cluster's default.
        message_bytes_max: the size of records that the topic takes in any case.
    """

    name: str
    partitions: int
    retention_ms: int | None = None
    compacted: bool = False
    replication_factor: int | None = None
    message_bytes_max: int = 1_048_576


class TopicInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a topic is, whoever made it.

    Attributes:
        retention_ms, retention_bytes: how long, and up to which size of a partition, records are kept; ``None`` for no
            such bound.
        compacted: older records of a key may be deleted, whatever else may be.
        log_append_time: the broker stamps the records, not their writers.
        replication_factor: the fewest copies that a partition has.
        in_sync_min: copies that must have a record before it is acknowledged.
    """

    name: str
    partitions: int
    retention_ms: int | None
    retention_bytes: int | None
    compacted: bool
    log_append_time: bool
    replication_factor: int
    in_sync_min: int
    message_bytes_max: int


class MemberInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A live member of a group.

    Attributes:
        name: the broker's for it, unique in the group.
        host: where it is, as the broker says; may be empty.
        partitions: those it has now; none while a rebalance is under way.
    """

    name: str
    host: str
    partitions: tuple[TopicPartition, ...]


class GroupInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who is in a consumer group and how far it is. A group that nobody ever joined has neither.

    Attributes:
        committed: only partitions for which something was committed.
    """

    name: str
    members: tuple[MemberInfo, ...]
    committed: Mapping[TopicPartition, Committed]


class Producer(Protocol):
    """Appends records. Safe to share between tasks; sends may be in flight side by side."""

    def send(self, topic: str, *, key: str, value: bytes, headers: Headers = ()) -> Awaitable[Appended]:
        """Append and wait until the record is durable: what is returned is awaited, at once.

        A future in place of a coroutine says that the record is on its way, and nothing to be done before its
        acknowledgement comes.

        Sends of one task in a row keep their order; sends side by side with one key keep the order of the calls.
        An adapter rides out short outages itself by sending again, so a record can be in the log twice.

        Raises:
            BrokerUnavailable: no acknowledgement within the adapter's deadline; the record may be in the log.
            RecordTooLarge: the broker refuses the size.
            TopicError: there is no such topic.
        """
        ...

    async def close(self) -> None:
        """Flush what is in flight, for a bounded time, and let go."""
        ...


AssignmentListener = Callable[[Collection[TopicPartition]], Awaitable[None]]


class Consumer(Protocol):
    """A member of a consumer group, used by one task.

    Nothing is committed unless ``commit`` is called. ``poll`` must be called often even when all is paused: it
    carries the group membership's bookkeeping, and rebalance listeners are called from within it or beside it.
    """

    async def poll(self, *, timeout_s: float, records_max: int = 500) -> Sequence[Message]:
        """The next records of the assigned, not paused partitions; in order within each partition.

        Returns as soon as there is something, after ``timeout_s`` with nothing otherwise. Never cancel it: a
        cancelled poll may lose a batch. Broker outages are ridden out (it returns nothing meanwhile).
        """
        ...

    def worked_on(self, places: Sequence[tuple[TopicPartition, int]]) -> None:
        """Say which records of the last poll, by partition and offset, there was something to do for. A hint.

        Most records of a log are for others. An adapter may learn how much comes between two that are for this one, and
        deliver that together, some milliseconds late at most.
        """
        ...

    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions that are ours now."""
        ...

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Store the group's places.

        Raises:
            CommitRefused: a partition is no longer ours, or a rebalance is under way. Nothing needs to be done.
            BrokerError: metadata that is not ASCII or is longer than ``COMMIT_METADATA_MAX_CHARS``.
            BrokerUnavailable: try again later.
        """
        ...

    async def committed(self, tp: TopicPartition) -> Committed | None:
        """What the group has committed for the partition, metadata included."""
        ...

    async def end_offset(self, tp: TopicPartition) -> int:
        """The offset that the next appended record will get."""
        ...

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Go on reading an assigned partition at ``offset``. Allowed inside the assignment listener."""
        ...

    def pause(self, tps: Collection[TopicPartition]) -> None:
        """Deliver nothing of these until ``resume``. A rebalance resumes everything."""
        ...

    def resume(self, tps: Collection[TopicPartition]) -> None: ...

    def lag(self, tp: TopicPartition) -> int | None:
        """Records in the partition that ``poll`` has not delivered yet, as last known; ``None`` if unknown."""
        ...

    async def close(self) -> None:
        """Leave the group, so that others take over at once. No listener is called: drain and commit before."""
        ...


class Reader(Protocol):
    """Reads partitions on its own, without a group. Used by one task."""

    async def poll(self, *, timeout_s: float, records_max: int = 500) -> Sequence[Message]:
        """The next records of the partitions that were sought; in order within each partition."""
        ...

    def worked_on(self, places: Sequence[tuple[TopicPartition, int]]) -> None:
        """As ``Consumer.worked_on``."""
        ...

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Read the partition from ``offset`` on (from the earliest record if that one is gone)."""
        ...

    def position(self, tp: TopicPartition) -> int:
        """The next offset that ``poll`` would deliver (or pass over, where the log has a hole)."""
        ...

    async def close(self) -> None: ...


class Broker(Protocol):
    """One log, named by a URL. Made by ``choreo.broker.open_broker``."""

    url: str

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create what is missing and verify what is there.

        Raises:
            TopicError: a topic exists with other partitions, timestamps, clean-up policy or retention; all
                differences in one message, each with what to do.
            BrokerUnavailable: no broker answers at the URL.
        """
        ...

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has. Raises ``TopicError`` if there is no such topic."""
        ...

    async def topics(self) -> frozenset[str]:
        """The names of all topics."""
        ...

    async def partition_of(self, topic: str, key: str) -> int:
        """The partition in which records of this key are."""
        ...

    async def offsets(self, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, tuple[int, int]]:
        """For each partition: the earliest offset, and the offset that the next record will get."""
        ...

    async def topic_info(self, topic: str) -> TopicInfo:
        """What the topic is. Raises ``TopicError`` if there is no such topic."""
        ...

    async def group_info(self, group: str) -> GroupInfo:
        """Who is in the group and how far it is, without joining it. Raises ``BrokerUnavailable``."""
        ...

    async def producer(self) -> Producer: ...

    async def consumer(
        self,
        group: str,
        topics: Collection[str],
        *,
        on_assigned: AssignmentListener,
        on_revoked: AssignmentListener,
    ) -> Consumer:
        """Join a group.

        ``on_revoked`` is called with partitions that are about to be given up (or were lost), and awaited before
        others get them where the adapter can do so; ``on_assigned`` with partitions that are ours from now on,
        before any of their records is delivered: it may ``seek`` and read ``committed``. An eager adapter may
        revoke all and assign some of them again.
        """
        ...

    async def reader(self) -> Reader: ...

    async def close(self) -> None:
        """Close everything that was made here."""
        ...
