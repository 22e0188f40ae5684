"""Sealing a log: what stands in a segment of a partition, as hashes that are published and may be signed.

A *segment* is a run of offsets of one partition. Its *checkpoint* has two Merkle roots (RFC 6962). One is over all its
records in order; it shows that a record was there, as it is. The other is over its sagas, sorted by id, each with the
head of the hash chain over its records in this segment; it shows that no record of a saga was left out, and, by two
neighbours, that a saga has none there. Each checkpoint names the hash of the one before it.

    leaf of a record   SHA-256(00 ‖ data), data being topic, partition, offset, append time, key, value and headers,
                       each field as its length (8 bytes, big-endian) and its bytes, numbers in decimal digits
    head of a chain    h0 = SHA-256(02 ‖ saga id), hi = SHA-256(03 ‖ h(i-1) ‖ leaf i)
    leaf of a saga     SHA-256(00 ‖ fields of saga id, number of records, head)
    hash and signature of a checkpoint: of its JSON, keys sorted, without ``signature`` and ``public_key``

Checkpoints are in ``choreo.<saga>.checkpoints``, which nothing is deleted from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple, Protocol

import msgspec

from choreo.audit.merkle import Growing, Tree, leaf_hash
from choreo.broker.port import Broker, Message, TopicPartition, TopicSpec
from choreo.broker.topics import checkpoint_topic, saga_topic
from choreo.broker.wrapped import as_written
from choreo.errors import Undecodable
from choreo.messages.headers import JSON
from choreo.saga_log.replay import Progress, records

SEGMENT_RECORDS = 65_536
"""The longest segment: what has to be read and kept in memory to prove something about it."""

FORMAT = "choreo.checkpoint.v1"
CHAIN_START, CHAIN_LINK = b"\x02", b"\x03"
FIRST = "0" * 64
"""What the first checkpoint of a partition names as the one before it."""

_HEADERS = (
    ("ce_specversion", b"1.0"),
    ("ce_type", b"choreo.checkpoint.v1"),
    ("ce_source", b"/choreo/audit"),
    ("content-type", JSON.encode()),
)


class Signer(Protocol):
    """Signs checkpoints; ``choreo.audit.signing`` has one."""

    public_key: str

    def sign(self, data: bytes) -> str: ...


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment is sealed by; hashes in hex.

    Attributes:
        first, end: offsets; records from ``first`` to before ``end``.
        records, root: how many there are, and the root over them.
        sagas, heads_root: how many sagas they are of, and the root over the heads of their chains.
        at_ms: append time of the last record.
        previous: hash of the partition's checkpoint before this one.
        signature, public_key: Ed25519; empty if it is not signed.
    """

    format: str
    topic: str
    partition: int
    first: int
    end: int
    records: int
    root: str
    sagas: int
    heads_root: str
    at_ms: int
    previous: str
    signature: str = ""
    public_key: str = ""

    @property
    def body(self) -> bytes:
        """What is hashed and signed."""
        plain = msgspec.to_builtins(self)
        del plain["signature"], plain["public_key"]
        return msgspec.json.encode(plain, order="sorted")

    @property
    def hash(self) -> str:
        return sha256(self.body).hexdigest()


class Head(NamedTuple):
    """A saga in a segment: how many records it has there, and where its chain ends."""

    saga_id: str
    records: int
    head: bytes

    @property
    def leaf(self) -> bytes:
        return leaf_hash(_fields(self.saga_id.encode(), b"%d" % self.records, self.head))


def record_leaf(message: Message) -> bytes:
    """The hash of a record, as it stands in the log, and its place."""
    message = as_written(message)
    parts = [message.topic.encode(), b"%d" % message.partition, b"%d" % message.offset, b"%d" % message.timestamp_ms]
    parts += [message.key or b"", message.value]
    for name, value in message.headers:
        parts += [name.encode(), value]
    return leaf_hash(_fields(*parts))


def chain_start(saga_id: str) -> bytes:
    """The head of a chain without records."""
    return sha256(CHAIN_START + saga_id.encode()).digest()


def chain_link(head: bytes, leaf: bytes) -> bytes:
    """The head after one more record."""
    return sha256(CHAIN_LINK + head + leaf).digest()


class Segment:
    """The records of a segment as they are read. Keeps a hash of each and the heads of the sagas' chains."""

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self.leaves: list[bytes] = []
        self.at_ms = 0
        self._heads: dict[str, tuple[int, bytes]] = {}
        for message in messages:
            self.add(message)

    def add(self, message: Message) -> None:
        leaf = record_leaf(message)
        self.leaves.append(leaf)
        self.at_ms = message.timestamp_ms
        saga_id = (message.key or b"").decode("utf-8", "backslashreplace")
        count, head = self._heads.get(saga_id) or (0, chain_start(saga_id))
        self._heads[saga_id] = (count + 1, chain_link(head, leaf))

    def heads(self) -> list[Head]:
        """The sagas, sorted by id."""
        return [Head(saga_id, *self._heads[saga_id]) for saga_id in sorted(self._heads)]

    def checkpoint(self, tp: TopicPartition, first: int, end: int, previous: str, signer: Signer | None) -> Checkpoint:
        """What seals it."""
        heads = [head.leaf for head in self.heads()]
        checkpoint = Checkpoint(
            format=FORMAT,
            topic=tp.topic,
            partition=tp.partition,
            first=first,
            end=end,
            records=len(self.leaves),
            root=Tree(self.leaves).root.hex(),
            sagas=len(heads),
            heads_root=Tree(heads).root.hex(),
            at_ms=self.at_ms,
            previous=previous,
        )
        if signer is None:
            return checkpoint
        signature = signer.sign(checkpoint.body)
        return msgspec.structs.replace(checkpoint, signature=signature, public_key=signer.public_key)


class Checkpoints(NamedTuple):
    """The checkpoints of a topic.

    Attributes:
        chains: partition → those that follow each other without a break, from the first.
        odd: records that are no checkpoint or do not follow: why, with their offset.
    """

    chains: dict[int, list[Checkpoint]]
    odd: list[tuple[int, str]]


_decoder = msgspec.json.Decoder(Checkpoint)


def read_checkpoint(value: bytes) -> Checkpoint:
    """Raises ``Undecodable`` if the bytes are none."""
    try:
        return _decoder.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise Undecodable(f"not a checkpoint: {error}") from error


async def read_checkpoints(broker: Broker, saga: str) -> Checkpoints:
    """All that is published for a saga; none if nothing ever was. Raises ``BrokerUnavailable``."""
    topic = checkpoint_topic(saga)
    chains: defaultdict[int, list[Checkpoint]] = defaultdict(list)
    odd: list[tuple[int, str]] = []
    if topic not in await broker.topics():
        return Checkpoints({}, [])
    tp = TopicPartition(topic, 0)
    async for messages in records(broker, tp, *(await broker.offsets([tp]))[tp]):
        for message in messages:
            try:
                checkpoint = read_checkpoint(message.value)
            except Undecodable as error:
                odd.append((message.offset, str(error)))
                continue
            chain = chains[checkpoint.partition]
            if chain and checkpoint == chain[-1]:
                continue  # a resend
            if (why := why_not_next(chain, checkpoint, saga_topic(saga))) is not None:
                odd.append((message.offset, why))
            else:
                chain.append(checkpoint)
    return Checkpoints(dict(chains), odd)


def why_not_next(chain: Sequence[Checkpoint], checkpoint: Checkpoint, topic: str) -> str | None:
    """Why a checkpoint does not follow the last one of a chain; ``None`` if it does."""
    if checkpoint.format != FORMAT or checkpoint.topic != topic:
        return f"it is of {checkpoint.topic} in format {checkpoint.format}"
    previous = chain[-1].hash if chain else FIRST
    if checkpoint.previous != previous:
        return f"it follows checkpoint {checkpoint.previous[:12]}, the last one is {previous[:12]}"
    if chain and checkpoint.first != chain[-1].end:
        return f"it begins at offset {checkpoint.first}, the last one ends at {chain[-1].end}"
    return None


async def seal(
    broker: Broker,
    saga: str,
    *,
    signer: Signer | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Checkpoint]:
    """Publish checkpoints for all that was appended since the last ones; creates their topic. One at a time, please.

    Returns:
        The new checkpoints, in order.

    Raises:
        TopicError: the saga has no topic.
        BrokerUnavailable: the log cannot be read or written.
    """
    spec = TopicSpec(name=checkpoint_topic(saga), partitions=1)
    topic = saga_topic(saga)
    tps = [TopicPartition(topic, number) for number in range(await broker.partitions(topic))]
    await broker.ensure_topics([spec])
    chains = (await read_checkpoints(broker, saga)).chains
    offsets = await broker.offsets(tps)
    starts = {tp: max(offsets[tp][0], chains[tp.partition][-1].end if tp.partition in chains else 0) for tp in tps}
    total, read = sum(max(offsets[tp][1] - starts[tp], 0) for tp in tps), 0
    made: list[Checkpoint] = []
    producer = await broker.producer()
    try:
        for tp in tps:
            chain = chains.get(tp.partition, [])
            first, end = starts[tp], offsets[tp][1]
            while first < end:
                until = min(first + SEGMENT_RECORDS, end)
                segment = Segment()
                async for messages in records(broker, tp, first, until):
                    for message in messages:
                        segment.add(message)
                    read += len(messages)
                    if on_progress is not None:
                        on_progress(Progress(read, total))
                begin = chain[-1].end if chain else first
                checkpoint = segment.checkpoint(tp, begin, until, chain[-1].hash if chain else FIRST, signer)
                value = msgspec.json.encode(checkpoint)
                await producer.send(spec.name, key=str(tp.partition), value=value, headers=_HEADERS)
                chain.append(checkpoint)
                made.append(checkpoint)
                first = until
    finally:
        await producer.close()
    return made


class RootWatch:
    """Compares the records of a partition, as they are read, with the roots that were published for them."""

    def __init__(self, chain: Sequence[Checkpoint], first: int) -> None:
        """``first`` is where reading begins: segments that retention has cut into are passed over."""
        self.checked = 0
        self._todo = [one for one in chain if one.first >= first]
        self._tree = Growing()

    def message(self, message: Message) -> list[Checkpoint]:
        """The checkpoints that end before this record and have another root."""
        differing = self.upto(message.offset)
        if self._todo and message.offset >= self._todo[0].first:
            self._tree.append(record_leaf(message))
        return differing

    def upto(self, offset: int) -> list[Checkpoint]:
        """The checkpoints that end at or before this offset and have another root; all records there were seen."""
        differing = []
        while self._todo and self._todo[0].end <= offset:
            checkpoint = self._todo.pop(0)
            self.checked += 1
            if (self._tree.size, self._tree.root().hex()) != (checkpoint.records, checkpoint.root):
                differing.append(checkpoint)
            self._tree = Growing()
        return differing


def _fields(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
