"""What this service has answered already, so that no trigger is run twice without need (rule 6).

Without an inbox there are two sources. The log: at assignment, the partition is scanned from the committed offset to
its end for our own answers; a trigger redelivered after a crash is then known to be answered. And memory: what was
answered since, for a trigger that is in the log twice.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from typing import NamedTuple

from choreo.broker.port import Broker, Message, TopicPartition
from choreo.errors import Undecodable
from choreo.messages.codec import decode
from choreo.messages.headers import CE_TYPE, read_route
from choreo.messages.records import CompensationFailed, StepCompensated, StepCompleted, StepFailed
from choreo.step.cancelling import Cancellations
from choreo.step.route import CANCEL_STEP, ce_type_of

_ANSWERS = frozenset(CE_TYPE[kind] for kind in (StepCompleted, StepFailed, StepCompensated, CompensationFailed))

SCAN_POLL_S = 1.0


class Instance(NamedTuple):
    """What is answered: a step in a round, or (``generation`` above 0) a command to undo it."""

    key: bytes | None
    start: str
    step: str
    round: int
    generation: int = 0


class Answer(Enum):
    """How much is known about an instance that is answered."""

    SETTLED = "settled"
    """Nothing more is to be said."""
    NO_EFFECT = "no_effect"
    """A failure without an effect that the saga may not have taken: it was found in the log, and another replica may
    have run the trigger since; or it refused a damaged copy of a trigger that had not come yet; or it is damaged
    itself. If a trigger is delivered after it, the answer is said again with an unknown effect (rule 6)."""


class Answered:
    """A bounded memory of answers, the oldest forgotten first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._answers: OrderedDict[Instance, Answer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, instance: Instance) -> Answer | None:
        return self._answers.get(instance)

    def settle(self, instance: Instance, answer: Answer = Answer.SETTLED) -> None:
        """We have answered ourselves, in this assignment."""
        self._answers[instance] = answer
        if len(self._answers) > self._capacity:
            self._answers.popitem(last=False)

    def found(self, instance: Instance, answer: Answer) -> None:
        """An answer of ours stands in the log. Found ones raise the capacity: their triggers may all come again."""
        if self._answers.get(instance) is not Answer.SETTLED:
            self._answers[instance] = answer
        self._capacity = max(self._capacity, len(self._answers))


class Scanned(NamedTuple):
    """What a scan has seen."""

    records: int
    append_ms_newest: int | None


async def scan(
    broker: Broker,
    tp: TopicPartition,
    *,
    start: int,
    end: int,
    source: bytes,
    own_steps: frozenset[str],
    answered: Answered,
    cancellations: Cancellations | None = None,
) -> Scanned:
    """Find the answers that ``source`` has written for its steps between two offsets. Reads headers only.

    And the rounds that were lost, if somebody wants to know.

    Raises:
        BrokerUnavailable: no reader can be had.
    """
    records, append_ms_newest = 0, None
    reader = await broker.reader()
    try:
        reader.seek(tp, start)
        while reader.position(tp) < end:
            for message in await reader.poll(timeout_s=SCAN_POLL_S):
                if message.offset >= end:
                    break
                records += 1
                append_ms_newest = message.timestamp_ms
                if cancellations is not None and ce_type_of(message.headers) == CANCEL_STEP:
                    cancellations.see(message)
                else:
                    _take(message, source, own_steps, answered)
    finally:
        await reader.close()
    return Scanned(records, append_ms_newest)


def _take(message: Message, source: bytes, own_steps: frozenset[str], answered: Answered) -> None:
    if ce_type_of(message.headers) not in _ANSWERS or message.header("ce_source") != source:
        return
    route = read_route(message.headers)
    if route.step not in own_steps:
        return
    answer = Answer.SETTLED
    if route.kind is StepFailed and not _says_an_effect(message):
        answer = Answer.NO_EFFECT
    answered.found(Instance(message.key, route.start, route.step, route.round, route.generation), answer)


def _says_an_effect(message: Message) -> bool:
    # The one thing that the headers do not say; failures are few. One that cannot be read was taken by nobody: to say
    # of its trigger that there may be an effect is right whatever it said, and settles what would else time out.
    try:
        record = decode(message.key, message.value, message.headers)
    except Undecodable:
        return False
    return not (isinstance(record, StepFailed) and record.effect == "none")
