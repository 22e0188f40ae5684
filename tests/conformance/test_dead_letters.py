"""Dead letters over every broker: found, looked at, written back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from choreo.broker.dead_letter import dead_letter_headers, letter_key, read_dead_letter
from choreo.broker.port import Broker, Headers, Message, TopicPartition
from choreo.broker.topics import dead_letter_topic, saga_topic, topic_specs
from choreo.client.dead_letters import Found, Wanted, find, read, redrive, sagas_with_dead_letters
from choreo.errors import NoSuchDeadLetter, NotRedriven
from choreo.saga_log.replay import records
from tests.conformance.members import unique

FOREIGN: Headers = (("a", b"1"), ("a", b"\xff"), ("choreo_error_reason", b"forged"), ("choreo_original_offset", b"9"))

Refuse = Callable[..., Awaitable[Message]]


@pytest.fixture
async def saga(broker: Broker) -> str:
    name = unique("saga")
    await broker.ensure_topics(topic_specs(name, partitions=3, retention_ms=None))
    return name


@pytest.fixture
async def refuse(broker: Broker, saga: str) -> Refuse:
    """Appends a record to the saga's topic and puts it into the dead letters, as the saga-log does."""
    producer = await broker.producer()

    async def refuse(
        key: str, value: bytes = b"\x00\xff", headers: Headers = FOREIGN, *, reason: str = "undecodable", cut: str = ""
    ) -> Message:
        appended = await producer.send(saga_topic(saga), key=key, value=value, headers=headers)
        message = Message(*appended, key.encode(), value, headers)
        ours = dead_letter_headers(message, reason=reason, error="Test", about="why", source="/choreo/test", cut=cut)
        kept = () if cut else headers
        await producer.send(
            dead_letter_topic(saga), key=letter_key(message), value=b"" if cut else value, headers=(*kept, *ours)
        )
        return message

    return refuse


async def only(broker: Broker, saga: str, wanted: Wanted | None = None) -> Found:
    [found] = await find(broker, saga, wanted or Wanted())
    return found


async def at(broker: Broker, tp: TopicPartition, offset: int) -> Message:
    [[message]] = [messages async for messages in records(broker, tp, offset, offset + 1)]
    return message


async def test_a_dead_letter_has_the_original_bytes_where_they_were_and_why_they_were_refused(
    broker: Broker, saga: str, refuse: Refuse
) -> None:
    message = await refuse("s-1")
    found = await only(broker, saga)
    assert (found.id, found.saga_id) == (f"{message.partition}/{message.offset}", "s-1")
    assert (found.reason, found.error, found.message, found.source) == ("undecodable", "Test", "why", "/choreo/test")
    letter = await read(broker, found)
    assert (letter.key, letter.value, letter.headers) == (b"s-1", b"\x00\xff", FOREIGN)
    assert (letter.topic, letter.timestamp_ms) == (saga_topic(saga), message.timestamp_ms)
    assert saga in await sagas_with_dead_letters(broker)


async def test_dead_letters_are_found_by_saga_reason_time_and_name(broker: Broker, saga: str, refuse: Refuse) -> None:
    first = await refuse("s-1")
    second = await refuse("s-2", reason="unknown_contract")
    third = await refuse("s-1", b"third")
    named = f"{second.partition}/{second.offset}"

    async def places(**wanted: object) -> list[tuple[int, int]]:
        found = await find(broker, saga, Wanted(**wanted))  # type: ignore[arg-type]
        return [(int(each.id.split("/")[0]), int(each.id.split("/")[1])) for each in found]

    assert sorted(await places()) == sorted(message[1:3] for message in map(_place, (first, second, third)))
    assert await places(saga_id="s-1") == [_place(first)[1:3], _place(third)[1:3]]
    assert await places(reason="unknown_contract") == [_place(second)[1:3]]
    assert await places(ids=(named,)) == [_place(second)[1:3]]
    assert await places(since_ms=third.timestamp_ms + 10**9) == []
    with pytest.raises(NoSuchDeadLetter, match="99/1234"):
        await find(broker, saga, Wanted(ids=(named, "99/1234")))


def _place(message: Message) -> tuple[str, int, int]:
    return message.topic, message.partition, message.offset


async def test_a_letter_that_a_crash_wrote_twice_is_one(broker: Broker, saga: str, refuse: Refuse) -> None:
    await refuse("s-1")
    found = await only(broker, saga)
    letter = await at(broker, TopicPartition(dead_letter_topic(saga), found.letter_partition), found.letter_offset)
    producer = await broker.producer()
    await producer.send(letter.topic, key="s-1", value=letter.value, headers=letter.headers)
    assert (await only(broker, saga)).letter_offset == found.letter_offset


async def test_a_redrive_writes_the_original_back_and_says_who_and_why(
    broker: Broker, saga: str, refuse: Refuse
) -> None:
    message = await refuse("s-1")
    appended = await redrive(broker, await only(broker, saga), by="ann", why="payment 2 reads it")
    copy = await at(broker, TopicPartition(appended.topic, appended.partition), appended.offset)
    assert (copy.topic, copy.partition, copy.key, copy.value) == (
        message.topic, message.partition, message.key, message.value,
    )  # fmt: skip
    assert copy.headers[: len(FOREIGN)] == FOREIGN
    assert copy.headers[len(FOREIGN) :] == (
        ("choreo_redriven_from", f"{message.partition}/{message.offset}".encode()),
        ("choreo_redriven_by", b"ann"),
        ("choreo_redriven_why", b"payment 2 reads it"),
    )
    [note] = (await only(broker, saga)).redriven
    assert (note.by, note.why, note.to) == ("ann", "payment 2 reads it", f"{appended.partition}/{appended.offset}")


async def test_a_redrive_is_not_done_twice_unless_that_is_wanted(broker: Broker, saga: str, refuse: Refuse) -> None:
    await refuse("s-1")
    await redrive(broker, await only(broker, saga), by="ann", why="once")
    with pytest.raises(NotRedriven, match=r"by ann \(once\)"):
        await redrive(broker, await only(broker, saga), by="bob", why="twice")
    await redrive(broker, await only(broker, saga), by="bob", why="twice", again=True)
    assert [note.by for note in (await only(broker, saga)).redriven] == ["ann", "bob"]


async def test_what_was_too_large_to_be_kept_is_taken_from_the_original(
    broker: Broker, saga: str, refuse: Refuse
) -> None:
    await refuse("s-1", b"large", cut="value")
    found = await only(broker, saga)
    assert (found.value_bytes, found.cut) == (0, "value")
    letter = await read(broker, found)
    assert (letter.value, letter.headers, letter.cut) == (b"large", FOREIGN, "")
    appended = await redrive(broker, found, by="ann", why="it fits now")
    copy = await at(broker, TopicPartition(appended.topic, appended.partition), appended.offset)
    assert copy.value == b"large"


async def test_a_letter_whose_key_is_no_text_has_its_bytes_and_is_not_written_back(broker: Broker, saga: str) -> None:
    message = Message(saga_topic(saga), 2, 77, 1_700_000_000_000, b"\xfe-key", b"v", ())
    headers = dead_letter_headers(message, reason="undecodable", error="T", about="?", source="/choreo/test")
    producer = await broker.producer()
    await producer.send(dead_letter_topic(saga), key=letter_key(message), value=b"v", headers=headers)
    found = await only(broker, saga)
    assert (found.id, (await read(broker, found)).key) == ("2/77", b"\xfe-key")
    with pytest.raises(NotRedriven, match="no text"):
        await redrive(broker, found, by="ann", why="?")


def test_what_is_no_dead_letter_is_none() -> None:
    message = Message("t", 0, 0, 1, b"k", b"", FOREIGN)
    assert read_dead_letter(message) is None
    headers = dead_letter_headers(message, reason="r", error="e", about="a", source="s")
    assert read_dead_letter(Message("d", 0, 0, 1, b"k", b"", headers[:-1])) is None
    damaged = tuple((name, b"x" if name == "choreo_original_offset" else value) for name, value in headers)
    assert read_dead_letter(Message("d", 0, 0, 1, b"k", b"", damaged)) is None
