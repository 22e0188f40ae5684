"""Reading a batch that aiokafka cannot parse, record by record.

One record whose header key is not UTF-8 makes aiokafka refuse its whole batch, the good records behind it included, for
ever. The broker does not look at header keys, so anybody who may write to a topic could stop all its readers that way.
Here each record is taken out of its frame by itself; the good ones are delivered, and of the others the bytes are kept.

The format is Kafka's record batch, version 2 (magic byte 2), the only one that brokers have written since 0.11.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from aiokafka import codec
from aiokafka.errors import UnsupportedCodecError
from aiokafka.record.util import calc_crc32c

from choreo.broker.port import Message
from choreo.messages.headers import UNREADABLE

HEADER = struct.Struct(">qiibIhiqqqhii")
CRC_COVERS_FROM = 21
LENGTH_COVERS_FROM = 12
MAGIC = 2

CODEC_MASK, APPEND_TIME, TRANSACTIONAL, CONTROL = 0x07, 0x08, 0x10, 0x20

DECOMPRESSORS: dict[int, Callable[[bytes], bytes]] = {
    0: bytes,
    1: codec.gzip_decode,
    2: codec.snappy_decode,
    3: codec.lz4_decode,
    4: codec.zstd_decode,
}

RawHeaders = tuple[tuple[bytes, bytes | None], ...]


class Quarantined(NamedTuple):
    """A record that cannot be read. It stays in the log; readers get it under a mark, as ``marked`` has it.

    ``key``, ``value`` and ``headers`` are its bytes, where at least its frame could be made out, and so is
    ``timestamp_ms``; 0 otherwise.
    """

    topic: str
    partition: int
    offset: int
    error: str
    key: bytes | None = None
    value: bytes | None = None
    headers: RawHeaders = ()
    timestamp_ms: int = 0


class Salvage(NamedTuple):
    """What was in one batch from an offset on, in order each. Reading goes on at ``offset_next``."""

    messages: list[Message]
    quarantined: list[Quarantined]
    offset_next: int


def salvage(
    raw: bytes, topic: str, partition: int, offset_from: int, aborted: Collection[tuple[int, int]], records_max: int
) -> Salvage | None:
    """Read the first batch of ``raw``, from ``offset_from`` on, up to ``records_max`` records, good and bad.

    Args:
        aborted: the producer ids and first offsets of aborted transactions, as the fetch response has them.

    Returns:
        ``None`` if there is no whole batch.
    """
    if len(raw) < HEADER.size:
        return None
    base, length, _, magic, crc, attributes, last_delta, first_ms, max_ms, producer_id, _, _, count = (
        HEADER.unpack_from(raw)
    )
    batch = raw[: LENGTH_COVERS_FROM + length]
    if len(batch) < LENGTH_COVERS_FROM + length:
        return None
    offset_next = max(base + last_delta, offset_from) + 1
    if magic != MAGIC or calc_crc32c(batch[CRC_COVERS_FROM:]) != crc:
        fault = f"format {magic} or checksum of the batch, up to offset {offset_next - 1}"
        return Salvage([], [Quarantined(topic, partition, offset_from, fault)], offset_next)
    was_aborted = attributes & TRANSACTIONAL and any(pid == producer_id and first <= base for pid, first in aborted)
    if attributes & CONTROL or was_aborted:
        return Salvage([], [], offset_next)

    found = Salvage([], [], offset_next)
    offset = offset_from - 1
    for record in _records(batch[HEADER.size :], attributes & CODEC_MASK, count):
        if isinstance(record, Exception):
            found.quarantined.append(Quarantined(topic, partition, offset + 1, repr(record)))
            break
        if base + record.offset_delta < offset_from:
            continue
        offset = base + record.offset_delta
        if len(found.messages) + len(found.quarantined) == records_max:
            return found._replace(offset_next=offset)
        timestamp_ms = max_ms if attributes & APPEND_TIME else first_ms + record.ms_delta
        _sort(record, topic, partition, offset, timestamp_ms, found)
    return found


def marked(record: Quarantined) -> Message:
    """The record as a message that every reader refuses: it says so first, and names of headers are made text."""
    headers = ((name.decode("utf-8", "backslashreplace"), value or b"") for name, value in record.headers)
    return Message(
        record.topic,
        record.partition,
        record.offset,
        record.timestamp_ms,
        record.key,
        record.value or b"",
        ((UNREADABLE, record.error.encode("utf-8", "replace")), *headers),
    )


class _Record(NamedTuple):
    ms_delta: int
    offset_delta: int
    key: bytes | None
    value: bytes | None
    headers: RawHeaders


def _sort(record: _Record, topic: str, partition: int, offset: int, timestamp_ms: int, found: Salvage) -> None:
    try:
        headers = tuple((name.decode(), content or b"") for name, content in record.headers)
    except UnicodeDecodeError as error:
        found.quarantined.append(
            Quarantined(topic, partition, offset, repr(error), record.key, record.value, record.headers, timestamp_ms)
        )
    else:
        value = record.value or b""
        found.messages.append(Message(topic, partition, offset, timestamp_ms, record.key, value, headers))


def _records(packed: bytes, compression: int, count: int) -> Iterator[_Record | Exception]:
    """The records of a batch; an exception, and then nothing, where a frame is broken: the next begins nowhere."""
    try:
        frames = _Frames(DECOMPRESSORS[compression](packed))
    except NotImplementedError as error:
        raise UnsupportedCodecError(str(error)) from error
    except Exception as error:  # noqa: BLE001 -- each library has its own for bytes that it did not write
        yield error
        return
    for _ in range(count):
        try:
            record = frames.record()
        except (IndexError, ValueError) as error:
            yield error
            return
        yield record


class _Frames:
    """Takes records off a batch."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def record(self) -> _Record:
        length = self._varint()
        end = self._at + length
        if length < 0 or end > len(self._data):
            raise ValueError(f"record of {length} bytes")
        self._at += 1  # attributes; Kafka has none so far
        ms_delta, offset_delta = self._varint(), self._varint()
        key, value = self._bytes(), self._bytes()
        headers = tuple((self._bytes() or b"", self._bytes()) for _ in range(self._varint()))
        if self._at != end:
            raise ValueError(f"record of {length} bytes ends {self._at - end} bytes off")
        return _Record(ms_delta, offset_delta, key, value, headers)

    def _bytes(self) -> bytes | None:
        length = self._varint()
        if length < 0:
            return None
        if self._at + length > len(self._data):
            raise ValueError(f"field of {length} bytes")
        field = self._data[self._at : self._at + length]
        self._at += length
        return field

    def _varint(self) -> int:
        """A zigzag-encoded integer of at most ten bytes."""
        value = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7
            if shift > 63:
                raise ValueError("integer of more than ten bytes")
