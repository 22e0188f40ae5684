"""What a verification finds."""

from __future__ import annotations

from typing import Literal

import msgspec

FaultKind = Literal[
    "undecided",  # the record says a decision that nothing before it implies: it is forged, or its cause is gone
    "altered",  # the record says something else than what was decided, or than the records it descends from
    "missing",  # decided, and not in the log though it has been answered, or a while has passed
    "overdue",  # a time has passed, and the record that says so is not there
    "unasked",  # an outcome or answer to something that nothing in the log has asked for
    "contradiction",  # one id has been said twice, and not the same
    "effect_twice",  # two runs of one step instance have returned different effects
    "impostor",  # a decision that another than the saga-log has written
    "mislabelled",  # the headers say something else than the record
    "time_fell",  # the append time is before that of an earlier record
    "gap",  # an offset is missing
    "headless",  # records of a saga whose start is not in a log that begins at its beginning
    "unreadable",  # a message that is no record
    "root_differs",  # the records are not those whose root was published
]
NoticeKind = Literal[
    "repeated",  # the same record again: at-least-once delivery, and it changes nothing
    "ran_twice",  # two runs of one step instance, with equal effects
    "truncated",  # retention has deleted the start
    "waiting",  # its contract is not registered, so that it cannot be judged
    "pending",  # decided just now; it may still be said
]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a sound log does not have.

    Attributes:
        offset: of the record that shows it; -1 where the end of the log does.
        saga_id: empty where it is about the partition.
        text: in words.
    """

    kind: FaultKind
    partition: int
    offset: int
    saga_id: str
    text: str


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """Something worth knowing that is no fault."""

    kind: NoticeKind
    partition: int
    offset: int
    saga_id: str
    text: str
