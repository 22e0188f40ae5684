"""A dead letter: a record that was refused, as it was, and behind its own headers those that say why (rule 18).

It lies in the dead-letter topic of its saga, under the key that it had, and is named by where it was found: ``3/4711``
is the record at offset 4711 of partition 3. A crash can write it twice; readers take the second for the first.

A dead letter that was written back into its saga's topic is followed by a *note* that says so, in the same partition.
"""

from __future__ import annotations

import msgspec

from choreo.broker.port import Headers, Message
from choreo.messages.headers import MISPLACED, SET_ASIDE, UNBELIEVED, UNREADABLE

TEXT_BYTES_MAX = 2_000

REASON, TYPE, TEXT, SOURCE = "choreo_error_reason", "choreo_error_type", "choreo_error_message", "choreo_error_source"
TOPIC, PARTITION = "choreo_original_topic", "choreo_original_partition"
OFFSET, TIMESTAMP = "choreo_original_offset", "choreo_original_timestamp"
KEY, CUT = "choreo_original_key", "choreo_original_cut"
_ALWAYS = (REASON, TYPE, TEXT, SOURCE, TOPIC, PARTITION, OFFSET, TIMESTAMP)
_AT_TIMES = (KEY, CUT)

NOTE_OF, NOTE_BY, NOTE_WHY, NOTE_AT = (
    "choreo_redrive_of",
    "choreo_redrive_by",
    "choreo_redrive_why",
    "choreo_redrive_at",
)

REDRIVEN_FROM, REDRIVEN_BY, REDRIVEN_WHY = "choreo_redriven_from", "choreo_redriven_by", "choreo_redriven_why"
"""Headers of a record that was a dead letter and was written back: which one, by whom, and why."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """What was refused, where, by whom and why.

    Attributes:
        reason: a word from a closed set, as the metrics have it.
        error, message: the kind of error, and a sentence for people.
        source: who refused it, as in ``ce_source`` ("/choreo/saga-log").
        topic, partition, offset, timestamp_ms: where and when it stood in the log.
        cut: what is missing here, because the letter would have been too large: ``headers``, or ``value`` (and the
            headers); empty for nothing. The original has it, for as long as its topic keeps it.
        key, value, headers: of the original.
        buried_ms: when the letter was written.
    """

    reason: str
    error: str
    message: str
    source: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    cut: str
    key: bytes
    value: bytes
    headers: Headers
    buried_ms: int

    @property
    def id(self) -> str:
        """Its name within the dead letters of its saga: ``partition/offset``."""
        return f"{self.partition}/{self.offset}"

    @property
    def redriven_from(self) -> str:
        """The dead letter that this one is a copy of: it was written back, and refused again; empty for none."""
        return _text(dict(self.headers).get(REDRIVEN_FROM))


class Redriven(msgspec.Struct, frozen=True, kw_only=True):
    """A note that a dead letter was written back.

    Attributes:
        of: its id.
        by, why: as the operator said.
        to: where the copy is, ``partition/offset``.
        at_ms: when the note was written.
    """

    of: str
    by: str
    why: str
    to: str
    at_ms: int


def letter_key(message: Message) -> str:
    """The key of a dead letter: the original's, as far as it is text."""
    return (message.key or b"").decode("utf-8", "replace")


def dead_letter_headers(
    message: Message, *, reason: str, error: str, about: str, source: str, cut: str = ""
) -> Headers:
    """The headers that tell why a message was refused, by whom, and where it was found. They go behind its own.

    Args:
        message: the refused one.
        reason: a word from a closed set.
        error: a word for programs: what kind of error it was.
        about: a sentence for people, cut if it is long.
        source: who refused it, as in ``ce_source`` ("/choreo/payment").
        cut: what of the message the letter leaves out; see ``DeadLetter.cut``.
    """
    headers = [
        (REASON, reason.encode()),
        (TYPE, error.encode()),
        (TEXT, about.encode("utf-8", "replace")[:TEXT_BYTES_MAX]),
        (SOURCE, source.encode()),
        (TOPIC, message.topic.encode()),
        (PARTITION, b"%d" % message.partition),
        (OFFSET, b"%d" % message.offset),
        (TIMESTAMP, b"%d" % message.timestamp_ms),
    ]
    if message.key is not None and letter_key(message).encode() != message.key:
        headers.append((KEY, message.key[:TEXT_BYTES_MAX]))
    if cut:
        headers.append((CUT, cut.encode()))
    return tuple(headers)


def read_dead_letter(message: Message) -> DeadLetter | None:
    """The dead letter that a message of a dead-letter topic is; ``None`` if it is none.

    Only the last headers are ours: whoever wrote the original may have given it headers of the same names.
    """
    headers = list(message.headers)
    about: dict[str, bytes] = {}
    while headers and headers[-1][0] in _AT_TIMES and headers[-1][0] not in about:
        name, value = headers.pop()
        about[name] = value
    ours = headers[-len(_ALWAYS) :]
    if tuple(name for name, _ in ours) != _ALWAYS:
        return None
    about.update(ours)
    partition, offset = _number(about[PARTITION]), _number(about[OFFSET])
    if partition is None or offset is None:
        return None
    return DeadLetter(
        reason=_text(about[REASON]),
        error=_text(about[TYPE]),
        message=_text(about[TEXT]),
        source=_text(about[SOURCE]),
        topic=_text(about[TOPIC]),
        partition=partition,
        offset=offset,
        timestamp_ms=_number(about[TIMESTAMP]) or 0,
        cut=_text(about.get(CUT)),
        key=about.get(KEY, message.key or b""),
        value=message.value,
        headers=tuple(headers[: -len(_ALWAYS)]),
        buried_ms=message.timestamp_ms,
    )


def redriven_headers(letter: DeadLetter, *, by: str, why: str) -> Headers:
    """The headers of the copy: the original's, but for an earlier redrive's and an adapter's mark, and who and why."""
    without = (REDRIVEN_FROM, REDRIVEN_BY, REDRIVEN_WHY, UNREADABLE, MISPLACED, UNBELIEVED)
    own = ((name.removeprefix(SET_ASIDE), value) for name, value in letter.headers if name not in without)
    return (
        *own,
        (REDRIVEN_FROM, letter.id.encode()),
        (REDRIVEN_BY, by.encode()),
        (REDRIVEN_WHY, why.encode("utf-8", "replace")[:TEXT_BYTES_MAX]),
    )


def note_headers(letter: DeadLetter, *, by: str, why: str, to: str) -> Headers:
    """The note that a dead letter was written back."""
    return (
        (NOTE_OF, letter.id.encode()),
        (NOTE_BY, by.encode()),
        (NOTE_WHY, why.encode("utf-8", "replace")[:TEXT_BYTES_MAX]),
        (NOTE_AT, to.encode()),
    )


def read_note(message: Message) -> Redriven | None:
    """The note that a message of a dead-letter topic is; ``None`` if it is none."""
    if tuple(name for name, _ in message.headers) != (NOTE_OF, NOTE_BY, NOTE_WHY, NOTE_AT):
        return None
    of, by, why, to = (_text(value) for _, value in message.headers)
    return Redriven(of=of, by=by, why=why, to=to, at_ms=message.timestamp_ms)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _number(value: bytes) -> int | None:
    return int(value) if value.isdigit() and len(value) <= 19 else None
