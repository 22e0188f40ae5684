"""Proving one saga's history to somebody who has neither the log nor a reason to believe whoever hands it over.

A proof file has the saga's records, and for each sealed segment of its partition the checkpoint, with either the way
from the saga's records and the head of its chain to the two roots, or the two neighbours between which it is missing.
``check`` needs nothing but the file. That the checkpoints are those that were published has to come from elsewhere: a
public key that signed them, or the hash of the last one, noted when it was published.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence

import msgspec

from choreo.audit.merkle import Tree, root_from_path
from choreo.audit.segments import (
    Checkpoint,
    Head,
    Segment,
    chain_link,
    chain_start,
    read_checkpoints,
    record_leaf,
    why_not_next,
)
from choreo.broker.port import Broker, Message, TopicPartition
from choreo.broker.topics import saga_topic
from choreo.broker.wrapped import as_written
from choreo.errors import ConfigurationError, SagaNotFound, Undecodable
from choreo.messages.codec import decode
from choreo.saga_log.replay import records

FORMAT = "choreo.proof.v1"


class ProvenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the saga as it stands in the log, bytes in base64; and its way to the segment's root, in hex."""

    offset: int
    timestamp_ms: int
    key: str
    value: str
    headers: tuple[tuple[str, str], ...]
    index: int
    path: tuple[str, ...]


class ProvenHead(msgspec.Struct, frozen=True, kw_only=True):
    """A saga in a segment, and its way to the root over the heads."""

    saga_id: str
    records: int
    head: str
    index: int
    path: tuple[str, ...]


class ProvenSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A segment and what it has of the saga.

    Attributes:
        head: of the saga; ``None`` if it has no records there.
        neighbours: then: the sagas between which it would stand; one where it would be first or last.
    """

    checkpoint: Checkpoint
    records: tuple[ProvenRecord, ...] = ()
    head: ProvenHead | None = None
    neighbours: tuple[ProvenHead, ...] = ()


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """A saga's history with its proof.

    Attributes:
        segments: all that are sealed and still in the log, in order, without a gap.
        unsealed: offsets of its records after the last checkpoint, of which nothing is proven.
    """

    format: str
    saga: str
    saga_id: str
    topic: str
    partition: int
    segments: tuple[ProvenSegment, ...]
    unsealed: tuple[int, ...] = ()


class ProofChecked(msgspec.Struct, frozen=True, kw_only=True):
    """What a proof shows.

    Attributes:
        problems: why it shows nothing; empty if it holds.
        anchored: the checkpoints are signed by the key, or the last one has the hash, that was asked for.
        first, end: the offsets that are covered.
        records: how many the saga has there, and ``types`` what they are, ``unreadable`` what is no record.
        checkpoint: hash of the last checkpoint, to be compared with what was published.
        unsealed: how many records of the saga are not covered.
    """

    saga_id: str
    problems: tuple[str, ...]
    anchored: bool
    first: int
    end: int
    records: int
    types: tuple[str, ...]
    checkpoint: str
    unsealed: int

    @property
    def holds(self) -> bool:
        return not self.problems


async def prove(broker: Broker, saga: str, saga_id: str) -> Proof:
    """The proof of a saga's history, from the log and its checkpoints as they are now.

    Raises:
        SagaNotFound: the log has no record of it.
        ConfigurationError: nothing is sealed, or the log is not what was sealed.
        BrokerUnavailable: the log cannot be read.
    """
    topic = saga_topic(saga)
    tp = TopicPartition(topic, await broker.partition_of(topic, saga_id))
    first, end = (await broker.offsets([tp]))[tp]
    chain = [one for one in (await read_checkpoints(broker, saga)).chains.get(tp.partition, []) if one.first >= first]
    if not chain:
        raise ConfigurationError(f"nothing of {tp} is sealed that is still in the log; run choreo audit seal {saga}")
    segments = []
    found = 0
    for checkpoint in chain:
        messages = [each async for batch in records(broker, tp, checkpoint.first, checkpoint.end) for each in batch]
        segment = _segment(checkpoint, messages, saga_id)
        found += len(segment.records)
        segments.append(segment)
    unsealed = [
        message.offset
        async for batch in records(broker, tp, chain[-1].end, end)
        for message in batch
        if message.key == saga_id.encode()
    ]
    if not found and not unsealed:
        raise SagaNotFound(saga_id, f"no saga {saga_id!r} in the log of {saga!r} at {broker.url}")
    return Proof(
        format=FORMAT,
        saga=saga,
        saga_id=saga_id,
        topic=topic,
        partition=tp.partition,
        segments=tuple(segments),
        unsealed=tuple(unsealed),
    )


def _segment(checkpoint: Checkpoint, messages: Sequence[Message], saga_id: str) -> ProvenSegment:
    segment = Segment(messages)
    tree, heads = Tree(segment.leaves), segment.heads()
    head_tree = Tree([head.leaf for head in heads])
    if (tree.root.hex(), head_tree.root.hex()) != (checkpoint.root, checkpoint.heads_root):
        raise ConfigurationError(
            f"{checkpoint.topic}[{checkpoint.partition}] offsets {checkpoint.first} to {checkpoint.end} are not what "
            "was sealed there: the log was changed, and choreo audit verify says so"
        )
    ids = [head.saga_id for head in heads]

    def proven(at: int) -> ProvenHead:
        path = tuple(each.hex() for each in head_tree.path(at))
        return ProvenHead(saga_id=ids[at], records=heads[at].records, head=heads[at].head.hex(), index=at, path=path)

    if saga_id not in ids:
        place = sum(each < saga_id for each in ids)
        neighbours = tuple(proven(at) for at in (place - 1, place) if 0 <= at < len(ids))
        return ProvenSegment(checkpoint=checkpoint, neighbours=neighbours)
    own = [(at, message) for at, message in enumerate(messages) if message.key == saga_id.encode()]
    return ProvenSegment(
        checkpoint=checkpoint,
        records=tuple(_record(message, at, tree) for at, message in own),
        head=proven(ids.index(saga_id)),
    )


def _record(message: Message, at: int, tree: Tree) -> ProvenRecord:
    message = as_written(message)
    return ProvenRecord(
        offset=message.offset,
        timestamp_ms=message.timestamp_ms,
        key=b64encode(message.key or b"").decode(),
        value=b64encode(message.value).decode(),
        headers=tuple((name, b64encode(value).decode()) for name, value in message.headers),
        index=at,
        path=tuple(each.hex() for each in tree.path(at)),
    )


def read_proof(value: bytes) -> Proof:
    """Raises ``ConfigurationError`` if the bytes are no proof."""
    try:
        proof = msgspec.json.decode(value, type=Proof)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise ConfigurationError(f"not a proof: {error}") from error
    if proof.format != FORMAT:
        raise ConfigurationError(f"a proof in format {proof.format!r}; this release reads {FORMAT!r}")
    return proof


def check_proof(proof: Proof, *, public_key: str | None = None, checkpoint: str | None = None) -> ProofChecked:
    """Whether a proof holds. No I/O.

    Args:
        public_key: Ed25519 in hex; every checkpoint has to be signed by it.
        checkpoint: the hash that the last checkpoint has to have.
    """
    problems: list[str] = []
    types: list[str] = []
    chain: list[Checkpoint] = []
    for segment in proof.segments:
        one = segment.checkpoint
        where = f"segment {one.first} to {one.end}"
        follows = None if not chain and one.topic == proof.topic else why_not_next(chain, one, proof.topic)
        if follows is not None or one.partition != proof.partition:
            problems.append(f"{where}: {follows or 'it is of another partition'}")
        if public_key is not None and not _is_signed(one, public_key):
            problems.append(f"{where}: its checkpoint is not signed by {public_key[:12]}…")
        chain.append(one)
        try:
            problems += [f"{where}: {problem}" for problem in _check_segment(proof, segment, types)]
        except (ValueError, Undecodable) as error:
            problems.append(f"{where}: {error}")
    last = chain[-1].hash if chain else ""
    if not chain:
        problems.append("it has no segments")
    if checkpoint is not None and last != checkpoint.lower():
        problems.append(f"its last checkpoint has hash {last}, not {checkpoint}")
    return ProofChecked(
        saga_id=proof.saga_id,
        problems=tuple(problems),
        anchored=not problems and (public_key is not None or checkpoint is not None),
        first=chain[0].first if chain else 0,
        end=chain[-1].end if chain else 0,
        records=sum(len(segment.records) for segment in proof.segments),
        types=tuple(types),
        checkpoint=last,
        unsealed=len(proof.unsealed),
    )


def _is_signed(checkpoint: Checkpoint, public_key: str) -> bool:
    from choreo.audit.signing import is_signed_by

    return checkpoint.public_key == public_key and is_signed_by(public_key, checkpoint.signature, checkpoint.body)


def _check_segment(proof: Proof, segment: ProvenSegment, types: list[str]) -> list[str]:
    checkpoint, saga_id = segment.checkpoint, proof.saga_id
    if segment.head is None:
        return ["it has records, and no head"] if segment.records else _check_absence(segment, saga_id)
    head, place = chain_start(saga_id), -1
    for record in segment.records:
        message = _message(proof, record)
        leaf = record_leaf(message)
        if message.key != saga_id.encode() or not checkpoint.first <= record.offset < checkpoint.end:
            return [f"the record at offset {record.offset} is not of this saga or segment"]
        if record.index <= place:
            return [f"the record at offset {record.offset} is not in order"]
        if _root(leaf, record.index, checkpoint.records, record.path) != checkpoint.root:
            return [f"the record at offset {record.offset} is not under the root: it was changed, or never there"]
        types.append(_type(message))
        head, place = chain_link(head, leaf), record.index
    own = segment.head
    if (own.saga_id, own.records, own.head) != (saga_id, len(segment.records), head.hex()):
        return [f"the chain over its {len(segment.records)} records is not the one that was sealed: one is missing"]
    return [] if _is_under(own, checkpoint) else ["the head of the chain is not under the root"]


def _type(message: Message) -> str:
    """What a record is. One that nobody can read stands in the log all the same, and is proven like any other."""
    try:
        return str(type(decode(message.key, message.value, message.headers)).__struct_config__.tag)
    except Undecodable:
        return "unreadable"


def _check_absence(segment: ProvenSegment, saga_id: str) -> list[str]:
    checkpoint, ids = segment.checkpoint, [each.saga_id for each in segment.neighbours]
    places = [each.index for each in segment.neighbours]
    before = [at for each, at in zip(ids, places, strict=True) if each < saga_id]
    behind = [at for each, at in zip(ids, places, strict=True) if each > saga_id]
    complete = len(before) + len(behind) == len(ids) and (
        (before == [] and behind == [0])
        or (before == [checkpoint.sagas - 1] and behind == [])
        or (len(before) == len(behind) == 1 and behind[0] == before[0] + 1)
        or (checkpoint.sagas == 0 and not ids)
    )
    if not complete or not all(_is_under(each, checkpoint) for each in segment.neighbours):
        return ["nothing shows that it has no record of the saga"]
    return []


def _is_under(head: ProvenHead, checkpoint: Checkpoint) -> bool:
    leaf = Head(head.saga_id, head.records, bytes.fromhex(head.head)).leaf
    return _root(leaf, head.index, checkpoint.sagas, head.path) == checkpoint.heads_root


def _root(leaf: bytes, index: int, size: int, path: Sequence[str]) -> str | None:
    root = root_from_path(leaf, index, size, [bytes.fromhex(each) for each in path])
    return None if root is None else root.hex()


def _message(proof: Proof, record: ProvenRecord) -> Message:
    return Message(
        proof.topic,
        proof.partition,
        record.offset,
        record.timestamp_ms,
        b64decode(record.key, validate=True),
        b64decode(record.value, validate=True),
        tuple((name, b64decode(value, validate=True)) for name, value in record.headers),
    )
