"""Recorded histories to damage: what clients, services and a saga-log have said, as messages of one partition."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Any

import msgspec

from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Message, TopicPartition, TopicSpec
from choreo.broker.registry import Registry, register
from choreo.broker.topics import CONTRACTS_TOPIC, saga_topic
from choreo.contract import Saga, Step, when
from choreo.core import Decision, SagaState, fold, record_of
from choreo.ids import input_hash
from choreo.messages.codec import encode
from choreo.messages.headers import JSON, make_headers
from choreo.messages.records import (
    CancelRequested,
    CompensationFailed,
    Failure,
    OperatorActed,
    Record,
    RoundStarted,
    SagaStarted,
    SignalReceived,
    StepCompensated,
    StepCompleted,
    StepFailed,
)
from choreo.saga_log.intake import Refused, read_entry
from choreo.saga_log.outbound import SOURCE

LINE = Saga("order", *(Step(step, compensation=f"undo_{step}") for step in "abc"))
DIAMOND = Saga(
    "diamond",
    Step("a", compensation="undo_a"),
    Step("b", compensation="undo_b", after="a"),
    Step("c", compensation="undo_c", after="a"),
    Step("d", compensation="undo_d", after=("b", "c")),
)
T0 = 1_700_000_000_000
_names = count()


class Recorder:
    """Writes what is said into one partition; the saga-log's part by itself, a second later each."""

    def __init__(self, contract: Saga) -> None:
        self.contract = contract
        self.messages: list[Message] = []
        self.states: dict[str, SagaState] = {}

    def say(self, saga_id: str, kind: type[Record], source: str = "/choreo/service", **fields: Any) -> None:
        about = {"saga": self.contract.name, "version": 1, "saga_id": saga_id, "start": input_hash(b"1")}
        self._append(kind(**(about | fields)), source)
        self._decide(saga_id)

    def start(self, saga_id: str) -> None:
        contract = self.contract
        self.say(
            saga_id,
            SagaStarted,
            "/choreo/client",
            contract_hash=contract.content_hash,
            request="r1",
            saga_deadline_ms=contract.deadline_ms,
            input=msgspec.Raw(b"1"),
        )

    def completed(self, saga_id: str, step: str, *, saga_round: int = 1, run: str = "run", **fields: Any) -> None:
        from choreo.core.order import context_of

        state = self.states[saga_id]
        key = (step, saga_round)
        effects = {name: msgspec.Raw(effect) for name, effect in context_of(self.contract, state, key).items()}
        own = {
            "run": run,
            "round": saga_round,
            "due_ms": state.instance(key).due_ms,
            "saga_due_ms": state.due_ms,
            "input": msgspec.Raw(state.input),
            "effects": effects,
            "effect": msgspec.Raw(f'"{step}-done-{saga_round}"'.encode()),
        }
        self.say(saga_id, StepCompleted, step=step, **(own | fields))

    def failed(self, saga_id: str, step: str, **fields: Any) -> None:
        failure = Failure(kind="rejected", code="no", message="no")
        self.say(saga_id, StepFailed, step=step, failure=failure, run="run", **({"effect": "none"} | fields))

    def compensated(self, saga_id: str, step: str, **fields: Any) -> None:
        self.say(saga_id, StepCompensated, step=step, **({"generation": 1, "run": "undo", "undone": True} | fields))

    def _decide(self, saga_id: str) -> None:
        given: set[Decision] = set()
        while fresh := [one for one in self.states[saga_id].owed if one not in given]:
            given.add(fresh[0])
            self._append(record_of(self.contract, self.states[saga_id], fresh[0]), SOURCE)

    def _append(self, record: Record, source: str) -> None:
        number = len(self.messages)
        headers = make_headers(record, source=source, content_type=JSON)
        message = Message(
            saga_topic(self.contract.name),
            0,
            number,
            T0 + number * 1_000,
            record.saga_id.encode(),
            encode(record),
            headers,
        )
        self.messages.append(message)
        entry = read_entry(message, self.contract.name)
        assert not isinstance(entry, Refused), entry
        state = self.states.get(record.saga_id) or SagaState(record.saga_id)
        self.states[record.saga_id] = fold(self.contract, state, entry).state


def happy() -> Recorder:
    told = Recorder(LINE)
    told.start("s")
    for step in "abc":
        told.completed("s", step)
    return told


def back() -> Recorder:
    told = Recorder(LINE)
    told.start("s")
    told.completed("s", "a")
    told.completed("s", "b")
    told.failed("s", "c")
    told.compensated("s", "b")
    told.compensated("s", "a")
    return told


def joined() -> Recorder:
    told = Recorder(DIAMOND)
    told.start("s")
    for step in "abc":
        told.completed("s", step)
    told.failed("s", "d")
    told.compensated("s", "b")
    told.compensated("s", "c")
    told.compensated("s", "a")
    return told


def again() -> Recorder:
    """A second round, after a compensation that asked for it."""
    told = Recorder(LINE)
    told.start("s")
    told.completed("s", "a")
    told.failed("s", "b")
    told.compensated("s", "a", verdict="retry", retry_limit=3)
    told.say("s", RoundStarted, SOURCE, round=2)
    for step in "abc":
        told.completed("s", step, saga_round=2)
    return told


def stuck() -> Recorder:
    told = Recorder(LINE)
    told.start("s")
    told.completed("s", "a")
    told.failed("s", "b")
    failure = Failure(kind="crashed", message="the bank is closed")
    told.say("s", CompensationFailed, step="a", generation=1, failure=failure, run="undo")
    told.say(
        "s",
        OperatorActed,
        "/choreo/cli",
        step="a",
        act="retry",
        generation=1,
        request="o",
        operator="anna",
        reason="open",
    )
    told.compensated("s", "a", generation=2)
    return told


def cancelled() -> Recorder:
    told = Recorder(LINE)
    told.start("s")
    told.completed("s", "a")
    told.say("s", CancelRequested, "/choreo/client", request="c1", reason="enough")
    told.failed("s", "b")
    told.compensated("s", "a")
    told.say("s", CancelRequested, "/choreo/client", request="c2")
    return told


def timed_out() -> Recorder:
    told = Recorder(Saga("order", Step("a", compensation="undo_a", timeout="1ms", deadline="1ms"), grace="1ms"))
    told.start("s")
    timeout = Failure(kind="timed_out", code="deadline", message="no outcome by the step's due")
    told.say("s", StepFailed, SOURCE, step="a", failure=timeout)
    told.compensated("s", "a", undone=False)
    return told


def signalled() -> Recorder:
    """A step that waits for a signal, and one whose condition does not hold."""
    steps = (Step("a", compensation="undo_a"), Step("b", await_signal="go"), Step("c", when=when.input("gift")))
    told = Recorder(Saga("order", *steps))
    told.start("s")
    told.completed("s", "a")
    told.say("s", SignalReceived, "/choreo/client", request="g", name="go", payload=msgspec.Raw(b"1"))
    told.completed("s", "b")
    return told


def unsignalled() -> Recorder:
    told = Recorder(Saga("order", Step("a", await_signal="go", signal_timeout="1ms"), grace="1ms"))
    told.start("s")
    timeout = Failure(kind="timed_out", code="signal", message="no signal 'go' in time")
    told.say("s", StepFailed, SOURCE, step="a", failure=timeout)
    return told


HISTORIES = {
    each.__name__: each for each in (happy, back, joined, again, stuck, cancelled, timed_out, signalled, unsignalled)
}


async def log_of(contract: Saga, messages: Iterable[Message], *, first: int = 0) -> tuple[MemoryBroker, Registry]:
    """A log in memory with these messages as they are, whatever their offsets and times; it begins at ``first``."""
    broker = await MemoryBroker.open(f"memory://recorded-{next(_names)}")
    topic = saga_topic(contract.name)
    await broker.ensure_topics(
        [TopicSpec(name=topic, partitions=1), TopicSpec(name=CONTRACTS_TOPIC, partitions=1, compacted=True)]
    )
    await register(broker, [contract])
    partition = broker._log._partitions[TopicPartition(topic, 0)]
    partition.start = first
    for message in messages:
        partition._records[message.offset] = message
        partition.end = message.offset + 1
    return broker, Registry(broker)


def renumbered(messages: Iterable[Message], *, times: bool = False) -> list[Message]:
    """As if somebody had written the log anew: offsets without a gap, with ``times`` also rising append times."""
    return [
        msgspec.structs.replace(
            message, offset=number, timestamp_ms=T0 + number * 1_000 if times else message.timestamp_ms
        )
        for number, message in enumerate(messages)
    ]
