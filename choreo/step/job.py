"""What there is to do for a record: run a step, or undo one."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from choreo import ids
from choreo.contract.saga import Saga, StepSpec
from choreo.messages.records import Compensate, Execute, Failure, SagaStarted, StepCompleted

Trigger = SagaStarted | StepCompleted | Execute
"""The records that make a step run."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a job takes from the place where its record was found.

    Attributes:
        append_ms: the record's append time.
        broker_ms: the broker's clock, as far as it is known (a lower bound), at ``monotonic``.
        monotonic: seconds, this machine's clock.
        is_fresh: no other run of this record can have begun: it was appended after the partition became ours.
    """

    append_ms: int
    broker_ms: float
    monotonic: float
    is_fresh: bool
    content_type: str
    traceparent: bytes | None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do for one step of one saga.

    Attributes:
        run: drawn for this execution.
        due_ms: broker's clock; an answer appended later is late.
        due_at: the same on the monotonic clock, in seconds, so that two machines' clocks are never compared.
        effects: of the steps that this one builds on, in ``content_type``, as ``input`` is.
    """

    saga: Saga
    step: StepSpec
    saga_id: str
    start: str
    round: int
    run: str
    due_ms: int
    due_at: float
    input: msgspec.Raw
    effects: Mapping[str, msgspec.Raw]
    content_type: str
    traceparent: bytes | None

    @property
    def step_key(self) -> str:
        """The idempotency key of the step itself."""
        return ids.idempotency_key(self.saga_id, self.start, self.step.name, self.round)


class StepJob(Job, frozen=True, kw_only=True):
    """Run a step.

    Attributes:
        is_fresh: as in ``Origin``; otherwise nobody knows what an earlier run has left behind (rule 5).
    """

    saga_due_ms: int
    is_fresh: bool

    @property
    def key(self) -> str:
        return self.step_key


class CompensationJob(Job, frozen=True, kw_only=True):
    """Undo a step. The fields are those of ``Compensate``."""

    generation: int
    effect: msgspec.Raw | msgspec.UnsetType
    failure: Failure | None
    own: bool

    @property
    def key(self) -> str:
        return ids.compensation_key(self.saga_id, self.start, self.step.name, self.round, self.generation)


def is_trigger(record: Trigger, saga: Saga, step: str) -> bool:
    """Whether the record makes this step run, by the contract of the record's version."""
    if isinstance(record, SagaStarted):
        return step in saga.graph.roots
    if isinstance(record, StepCompleted):
        return step in saga.graph.chained.get(record.step, ())
    return record.step == step


def round_of(record: Trigger) -> int:
    """The round in which the triggered step runs."""
    return 1 if isinstance(record, SagaStarted) else record.round


def step_job(record: Trigger, saga: Saga, step: StepSpec, run: str, origin: Origin) -> StepJob:
    """What the trigger asks for."""
    effects: Mapping[str, msgspec.Raw]
    if isinstance(record, SagaStarted):
        effects, saga_due_ms = {}, origin.append_ms + record.saga_deadline_ms
    elif isinstance(record, StepCompleted):
        effects, saga_due_ms = {**record.effects, record.step: record.effect}, record.saga_due_ms
    else:
        effects, saga_due_ms = record.effects, record.saga_due_ms
    due_ms = saga_due_ms if step.deadline_ms is None else min(origin.append_ms + step.deadline_ms, saga_due_ms)
    return StepJob(
        saga=saga,
        step=step,
        saga_id=record.saga_id,
        start=record.start,
        round=round_of(record),
        run=run,
        due_ms=due_ms,
        due_at=_due_at(due_ms, origin),
        saga_due_ms=saga_due_ms,
        is_fresh=origin.is_fresh,
        input=record.input,
        effects=effects,
        content_type=origin.content_type,
        traceparent=origin.traceparent,
    )


def compensation_job(record: Compensate, saga: Saga, step: StepSpec, run: str, origin: Origin) -> CompensationJob:
    """What the command asks for."""
    due_ms = origin.append_ms + record.deadline_ms
    return CompensationJob(
        saga=saga,
        step=step,
        saga_id=record.saga_id,
        start=record.start,
        round=record.round,
        run=run,
        due_ms=due_ms,
        due_at=_due_at(due_ms, origin),
        input=record.input,
        effects=record.effects,
        content_type=origin.content_type,
        traceparent=origin.traceparent,
        generation=record.generation,
        effect=record.effect,
        failure=record.failure,
        own=record.own,
    )


def _due_at(due_ms: int, origin: Origin) -> float:
    return origin.monotonic + (due_ms - origin.broker_ms) / 1_000
