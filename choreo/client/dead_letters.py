"""Dead letters as an operator deals with them: found, looked at, and written back when their cause is mended.

They are read from their topics each time, so what is shown is what is there. Of many only the *summaries* are held in
memory, without their bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

import msgspec

from choreo.broker.dead_letter import (
    DeadLetter,
    Redriven,
    note_headers,
    read_dead_letter,
    read_note,
    redriven_headers,
)
from choreo.broker.port import Appended, Broker, Message, TopicPartition
from choreo.broker.topics import dead_letter_topic
from choreo.errors import NoSuchDeadLetter, NotRedriven
from choreo.saga_log.replay import records

DEAD_LETTERS = ".dead-letters"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters are meant; all by default.

    Attributes:
        ids: their names (``3/4711``); empty for any.
        saga_id: whose key they have.
        reason: as in the letter.
        since_ms: buried at or after that, Unix epoch, the broker's clock.
    """

    ids: tuple[str, ...] = ()
    saga_id: str | None = None
    reason: str | None = None
    since_ms: int | None = None

    def has(self, letter: DeadLetter) -> bool:
        return (
            (not self.ids or letter.id in self.ids)
            and (self.saga_id is None or letter.key == self.saga_id.encode())
            and (self.reason is None or letter.reason == self.reason)
            and (self.since_ms is None or letter.buried_ms >= self.since_ms)
        )


class Found(msgspec.Struct, kw_only=True):
    """A dead letter in a list, without its bytes. Times are milliseconds since the Unix epoch, the broker's clock.

    Attributes:
        id: its name within its saga's dead letters: ``partition/offset`` of the original.
        saga_id: its key; where that is no text, as far as it is.
        buried_ms, timestamp_ms: when it was refused, and when the original was appended.
        value_bytes: size of the original's value, as far as it is here.
        cut: what the letter has left out; see ``DeadLetter.cut``.
        letter_partition, letter_offset: where the letter is in the dead-letter topic.
        redriven_from: the dead letter that it is a copy of, refused again; empty for none.
        redriven: when it was written back, and by whom.
    """

    saga: str
    id: str
    letter_partition: int
    letter_offset: int
    saga_id: str
    reason: str
    error: str
    message: str
    source: str
    buried_ms: int
    timestamp_ms: int
    value_bytes: int
    cut: str
    redriven_from: str
    redriven: list[Redriven]


async def sagas_with_dead_letters(broker: Broker) -> list[str]:
    """The names of the sagas that have a topic for them."""
    topics = await broker.topics()
    return sorted(
        topic.removeprefix("choreo.").removesuffix(DEAD_LETTERS)
        for topic in topics
        if topic.startswith("choreo.") and topic.endswith(DEAD_LETTERS)
    )


async def find(broker: Broker, saga: str, wanted: Wanted) -> list[Found]:
    """The dead letters of a saga that are meant, those found first in the log first.

    Raises:
        NoSuchDeadLetter: one of ``wanted.ids`` is not there, or not meant.
        TopicError: the saga has no topic for dead letters.
        BrokerUnavailable: the log cannot be read.
    """
    found: dict[str, Found] = {}
    notes: dict[str, list[Redriven]] = {}
    async for message in _messages(broker, saga, wanted.saga_id):
        if (letter := read_dead_letter(message)) is None:
            if (note := read_note(message)) is not None:
                notes.setdefault(note.of, []).append(note)
        elif wanted.has(letter):
            found.setdefault(letter.id, _summary(saga, letter, message))
    for each in found.values():
        each.redriven = notes.get(each.id, [])
    if missing := sorted(set(wanted.ids) - found.keys()):
        raise NoSuchDeadLetter(
            missing[0],
            f"saga {saga!r} has no dead letter {', '.join(missing)} at {broker.url}; one is named by partition/offset, "
            "as choreo dead-letters list prints it",
        )
    return sorted(found.values(), key=lambda each: (each.timestamp_ms, each.letter_partition, each.letter_offset))


async def read(broker: Broker, found: Found) -> DeadLetter:
    """A dead letter with its bytes, the original's where the letter was cut and the original is still there.

    Raises:
        NoSuchDeadLetter: retention has deleted it since it was found.
        BrokerUnavailable: the log cannot be read.
    """
    at = TopicPartition(dead_letter_topic(found.saga), found.letter_partition)
    message = await _message(broker, at, found.letter_offset)
    letter = None if message is None else read_dead_letter(message)
    if letter is None:
        raise NoSuchDeadLetter(found.id, f"dead letter {found.id} of saga {found.saga!r} is not in the log any more")
    if letter.cut:
        original = await _message(broker, TopicPartition(letter.topic, letter.partition), letter.offset)
        if original is not None and original.timestamp_ms == letter.timestamp_ms:
            return msgspec.structs.replace(letter, cut="", value=original.value, headers=original.headers)
    return letter


async def redrive(broker: Broker, found: Found, *, by: str, why: str, again: bool = False) -> Appended:
    """Write a dead letter's original bytes back into its topic, under its key and headers, and note who did and why.

    What it says keeps its id, so that a record which got through by another way in the meantime is a duplicate. What
    still cannot be read is refused again, as a new dead letter that names this one.

    Args:
        again: also if it was written back before.

    Raises:
        NoSuchDeadLetter: it is gone.
        NotRedriven: it was written back before; its key is no text; or the letter is cut and the original is gone.
        RecordTooLarge: with who and why it is over the broker's limit.
    """
    if found.redriven and not again:
        last = found.redriven[-1]
        raise NotRedriven(
            found.id, f"it was written back before, by {last.by} ({last.why}), to {last.to}; --again does it once more"
        )
    letter = await read(broker, found)
    if letter.cut:
        raise NotRedriven(found.id, "it was too large to be kept whole, and the original is not in the log any more")
    try:
        key = letter.key.decode()
    except UnicodeDecodeError:
        raise NotRedriven(found.id, "its key is no text, so no saga can have it") from None
    producer = await broker.producer()
    try:
        headers = redriven_headers(letter, by=by, why=why)
        appended = await producer.send(letter.topic, key=key, value=letter.value, headers=headers)
        to = f"{appended.partition}/{appended.offset}"
        # After the copy: a crash between the two leaves a copy that nobody noted, and a second one does no harm. The
        # other way round, a letter would look mended that is not.
        note = note_headers(letter, by=by, why=why, to=to)
        await producer.send(dead_letter_topic(found.saga), key=key, value=b"", headers=note)
    finally:
        await producer.close()
    return appended


async def _message(broker: Broker, tp: TopicPartition, offset: int) -> Message | None:
    async for messages in records(broker, tp, offset, offset + 1):
        for message in messages:
            if message.offset == offset:
                return message
    return None


async def _messages(broker: Broker, saga: str, saga_id: str | None) -> AsyncIterator[Message]:
    topic = dead_letter_topic(saga)
    numbers: Collection[int] = range(await broker.partitions(topic))
    if saga_id is not None:
        numbers = [await broker.partition_of(topic, saga_id)]
    tps = [TopicPartition(topic, number) for number in numbers]
    offsets = await broker.offsets(tps)
    for tp in tps:
        async for messages in records(broker, tp, *offsets[tp]):
            for message in messages:
                yield message


def _summary(saga: str, letter: DeadLetter, message: Message) -> Found:
    return Found(
        saga=saga,
        id=letter.id,
        letter_partition=message.partition,
        letter_offset=message.offset,
        saga_id=letter.key.decode("utf-8", "replace"),
        reason=letter.reason,
        error=letter.error,
        message=letter.message,
        source=letter.source,
        buried_ms=letter.buried_ms,
        timestamp_ms=letter.timestamp_ms,
        value_bytes=len(letter.value),
        cut=letter.cut,
        redriven_from=letter.redriven_from,
        redriven=[],
    )
