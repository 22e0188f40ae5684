"""The SQL of the log. ``Snapshot`` reads, ``Transaction`` writes; each is used in one thread, on one connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from choreo.broker.embedded.group import Group
from choreo.broker.embedded.log import Batch
from choreo.broker.embedded.rules import check_size, check_spec, differences
from choreo.broker.partitioning import partition_of_key
from choreo.broker.port import Appended, Committed, Headers, Message, TopicPartition, TopicSpec
from choreo.broker.sqlite.horizon import News
from choreo.errors import CommitRefused, TopicError

_READ_BYTES_MAX = 16 * 1_048_576  # values of one read; more comes with the next

_NO_HEADERS = msgspec.msgpack.encode(())
_headers_decoder = msgspec.msgpack.Decoder(Headers)


class Topic(NamedTuple):
    """A topic, and the row ids of its partitions in order."""

    spec: TopicSpec
    partition_ids: Sequence[int]


class Topics:
    """The topics that one connection has looked up. They never change, so they are looked up once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._known: dict[str, Topic] = {}

    def get(self, name: str) -> Topic | None:
        topic = self._known.get(name)
        if topic is None:
            row = self._connection.execute(
                "SELECT id, partitions, retention_ms, compacted, message_bytes_max FROM topics WHERE name = ?", (name,)
            ).fetchone()
            if row is None:
                return None
            ids = self._connection.execute("SELECT id FROM partitions WHERE topic_id = ? ORDER BY number", row[:1])
            spec = TopicSpec(
                name=name,
                partitions=row[1],
                retention_ms=row[2],
                compacted=bool(row[3]),
                message_bytes_max=row[4],
            )
            topic = self._known[name] = Topic(spec, [partition_id for (partition_id,) in ids])
        return topic

    def __getitem__(self, name: str) -> Topic:
        topic = self.get(name)
        if topic is None:
            raise TopicError(f"there is no topic {name}")
        return topic

    def partition_id(self, tp: TopicPartition) -> int:
        ids = self[tp.topic].partition_ids
        if not 0 <= tp.partition < len(ids):
            raise TopicError(f"there is no partition {tp}")
        return ids[tp.partition]

    def forget(self) -> None:
        """Look everything up again: a transaction that made a topic was rolled back."""
        self._known.clear()


class Snapshot:
    """Reads. To be used inside a transaction, so that all of it is of one moment."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._topics = Topics(connection)

    def topic(self, name: str) -> TopicSpec:
        return self._topics[name].spec

    def topic_names(self) -> frozenset[str]:
        return frozenset(name for (name,) in self._connection.execute("SELECT name FROM topics"))

    def news(self) -> News:
        """How far everything reaches."""
        ends = self._connection.execute(
            "SELECT topics.name, partitions.number, offset_next "
            "FROM partitions JOIN topics ON topics.id = partitions.topic_id"
        )
        generations = self._connection.execute("SELECT name, generation FROM consumer_groups")
        return News({TopicPartition(topic, number): end for topic, number, end in ends}, dict(generations.fetchall()))

    def read(self, positions: Mapping[TopicPartition, int], records_max: int) -> tuple[Batch, News]:
        """Records from these positions on (see ``EmbeddedLog.read``)."""
        messages: list[Message] = []
        positions_next: dict[TopicPartition, int] = {}
        ends: dict[TopicPartition, int] = {}
        bytes_left = _READ_BYTES_MAX
        for tp, position in positions.items():
            partition_id = self._topics.partition_id(tp)
            if len(messages) >= records_max or bytes_left <= 0:
                break
            ends[tp] = end = self._end(partition_id)
            rows = self._connection.execute(
                "SELECT offset, timestamp_ms, key, value, headers FROM records "
                "WHERE partition_id = ? AND offset >= ? ORDER BY offset LIMIT ?",
                (partition_id, position if position <= end else 0, records_max - len(messages)),
            )
            positions_next[tp] = end
            for offset, timestamp_ms, key, value, headers in rows:
                messages.append(Message(tp.topic, tp.partition, offset, timestamp_ms, key, value, _decoded(headers)))
                bytes_left -= len(value)
                if len(messages) >= records_max or bytes_left <= 0:
                    positions_next[tp] = offset + 1
                    break
        return Batch(messages, positions_next), News(ends, {})

    def offsets(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        found = {}
        for tp in tps:
            partition_id = self._topics.partition_id(tp)
            (earliest,) = self._connection.execute(
                "SELECT min(offset) FROM records WHERE partition_id = ?", (partition_id,)
            ).fetchone()
            end = self._end(partition_id)
            found[tp] = (end if earliest is None else earliest, end)
        return found

    def committed(self, group: str, tps: Collection[TopicPartition]) -> dict[TopicPartition, Committed]:
        places = {}
        for tp in tps:
            row = self._connection.execute(
                "SELECT offset, metadata FROM commits WHERE group_name = ? AND partition_id = ?",
                (group, self._topics.partition_id(tp)),
            ).fetchone()
            if row is not None:
                places[tp] = Committed(*row)
        return places

    def committed_all(self, group: str) -> dict[TopicPartition, Committed]:
        rows = self._connection.execute(
            "SELECT topics.name, partitions.number, commits.offset, commits.metadata FROM commits "
            "JOIN partitions ON partitions.id = commits.partition_id JOIN topics ON topics.id = partitions.topic_id "
            "WHERE commits.group_name = ?",
            (group,),
        )
        return {TopicPartition(topic, number): Committed(offset, text) for topic, number, offset, text in rows}

    def group(self, name: str) -> Group:
        return _group(self._connection, name)

    def _end(self, partition_id: int) -> int:
        (end,) = self._connection.execute("SELECT offset_next FROM partitions WHERE id = ?", (partition_id,)).fetchone()
        return int(end)


class _Tail:
    """The end of a partition while records are appended to it."""

    __slots__ = ("appended_ms", "offset_next", "tp")

    def __init__(self, tp: TopicPartition, offset_next: int, appended_ms: int) -> None:
        self.tp = tp
        self.offset_next = offset_next
        self.appended_ms = appended_ms


class Transaction:
    """Writes that become durable together.

    A method that raises an error of choreo's has written nothing, so that one refused call does no harm to the
    others of the transaction.

    Args:
        now_ms: wall clock; append times are at least this.
        monotonic_ms: the clock of leases; the same for all processes of the machine.
    """

    def __init__(self, connection: sqlite3.Connection, topics: Topics, *, now_ms: int, monotonic_ms: int) -> None:
        self.monotonic_ms = monotonic_ms
        self._connection = connection
        self._topics = topics
        self._now_ms = now_ms
        self._tails: dict[int, _Tail] = {}
        self._records: list[tuple[int, int, int, bytes, bytes, bytes]] = []
        self._generations: dict[str, int] = {}

    def append(self, topic: str, key: str, value: bytes, headers: Headers) -> Appended:
        spec, partition_ids = self._topics[topic]
        check_size(topic, key, value, headers, spec.message_bytes_max)
        number = partition_of_key(key, spec.partitions)
        partition_id = partition_ids[number]
        tail = self._tails.get(partition_id)
        if tail is None:
            row = self._connection.execute(
                "SELECT offset_next, appended_ms FROM partitions WHERE id = ?", (partition_id,)
            ).fetchone()
            # The wall clock may be set back, and processes may read it in another order than they write.
            tail = _Tail(TopicPartition(topic, number), row[0], max(row[1], self._now_ms))
            self._tails[partition_id] = tail
        offset = tail.offset_next
        tail.offset_next = offset + 1
        encoded = msgspec.msgpack.encode(headers) if headers else _NO_HEADERS
        self._records.append((partition_id, offset, tail.appended_ms, key.encode(), value, encoded))
        return Appended(topic, number, offset, tail.appended_ms)

    def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        problems: list[str] = []
        for spec in specs:
            check_spec(spec)
            found = self._topics.get(spec.name)
            if found is not None:
                problems += differences(found.spec, spec)
        if problems:
            raise TopicError("; ".join(problems))
        for spec in specs:
            if self._topics.get(spec.name) is None:
                self._create(spec)

    def group(self, name: str) -> Group:
        return _group(self._connection, name)

    def save(self, name: str, group: Group) -> None:
        self._connection.execute(
            "INSERT INTO consumer_groups (name, generation, state) VALUES (?1, ?2, ?3) "
            "ON CONFLICT (name) DO UPDATE SET generation = ?2, state = ?3",
            (name, group.generation, msgspec.json.encode(group).decode()),
        )
        self._generations[name] = group.generation

    def partitions(self, topics: Collection[str]) -> dict[str, int]:
        return {topic: self._topics[topic].spec.partitions for topic in topics}

    def commit(self, group: str, member: str, offsets: Mapping[TopicPartition, Committed]) -> None:
        state = self.group(group)
        for tp in offsets:
            if not state.owns(member, tp):
                raise CommitRefused(f"{tp} is no longer ours in group {group}")
        self._connection.executemany(
            "INSERT INTO commits (group_name, partition_id, offset, metadata) VALUES (?1, ?2, ?3, ?4) "
            "ON CONFLICT (group_name, partition_id) DO UPDATE SET offset = ?3, metadata = ?4",
            [(group, self._topics.partition_id(tp), *place) for tp, place in offsets.items()],
        )

    def flush(self) -> News:
        """Write what was appended; the last act before the transaction is committed."""
        self._connection.executemany(
            "INSERT INTO records (partition_id, offset, timestamp_ms, key, value, headers) VALUES (?, ?, ?, ?, ?, ?)",
            self._records,
        )
        self._connection.executemany(
            "UPDATE partitions SET offset_next = ?, appended_ms = ? WHERE id = ?",
            [(tail.offset_next, tail.appended_ms, partition_id) for partition_id, tail in self._tails.items()],
        )
        return News({tail.tp: tail.offset_next for tail in self._tails.values()}, self._generations)

    def _create(self, spec: TopicSpec) -> None:
        cursor = self._connection.execute(
            "INSERT INTO topics (name, partitions, retention_ms, compacted, message_bytes_max) VALUES (?, ?, ?, ?, ?)",
            (spec.name, spec.partitions, spec.retention_ms, int(spec.compacted), spec.message_bytes_max),
        )
        self._connection.executemany(
            "INSERT INTO partitions (topic_id, number, offset_next, appended_ms) VALUES (?, ?, 0, 0)",
            [(cursor.lastrowid, number) for number in range(spec.partitions)],
        )


def _group(connection: sqlite3.Connection, name: str) -> Group:
    row = connection.execute("SELECT state FROM consumer_groups WHERE name = ?", (name,)).fetchone()
    return Group() if row is None else msgspec.json.decode(row[0], type=Group)


def _decoded(headers: bytes) -> Headers:
    return () if headers == _NO_HEADERS else _headers_decoder.decode(headers)
