"""From records to jobs: what a trigger, or a command to compensate, asks for."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from choreo.broker.port import Message
from choreo.contract.policy import NO_DUE_MS
from choreo.contract.saga import Saga
from choreo.core import start
from choreo.core.due import step_due_ms
from choreo.messages.records import Compensate, Execute, SagaStarted, StepCompleted
from choreo.step.job import CompensationJob, StepJob
from choreo.step.place import Place
from choreo.step.service import Hosted

Trigger = SagaStarted | StepCompleted | Execute
"""The records that make a step run."""

TRIGGERS = (SagaStarted, StepCompleted, Execute)


def is_trigger(record: Trigger, saga: Saga, step: str) -> bool:
    """Whether the record makes this step run, by the contract of the record's version.

    A start under another contract of that version does not: the saga-log refuses it, so nothing would undo the step.
    """
    if isinstance(record, SagaStarted):
        is_ours = record.contract_hash == saga.content_hash
        return is_ours and step in saga.graph.roots and not record.is_scheduled
    if isinstance(record, StepCompleted):
        return step in saga.graph.chained.get(record.step, ())
    return record.step == step


def round_of(record: Trigger) -> int:
    """The round in which the triggered step runs."""
    return 1 if isinstance(record, SagaStarted) else record.round


def step_job(
    record: Trigger,
    hosted: Hosted,
    run: str,
    message: Message,
    place: Place,
    now: float,
    content_type: str,
    traceparent: bytes | None,
) -> StepJob:
    """What the trigger asks for, at ``now`` on the monotonic clock."""
    append_ms = message.timestamp_ms
    effects: Mapping[str, msgspec.Raw]
    if isinstance(record, StepCompleted):
        effects, saga_due_ms = {**record.effects, record.step: record.effect}, record.saga_due_ms
    elif isinstance(record, SagaStarted):
        effects, saga_due_ms = {}, start.saga_due_ms(record, append_ms)
    else:
        effects, saga_due_ms = record.effects, record.saga_due_ms
    step = hosted.step
    is_bound = step.name not in hosted.saga.forward_only  # a pivot, or behind it: deadlines only alert (rule 17)
    due_ms = step_due_ms(step.deadline_ms, append_ms, saga_due_ms) if is_bound else NO_DUE_MS
    return StepJob(
        saga=hosted.saga,
        step=step,
        saga_id=record.saga_id,
        start=record.start,
        round=round_of(record),
        key_round=record.key_round if isinstance(record, Execute) else 0,
        run=run,
        due_ms=due_ms,
        due_at=now + (due_ms - place.time.now_ms(now)) / 1_000,
        saga_due_ms=saga_due_ms,
        is_fresh=message.offset >= place.end_at_assignment,
        input=record.input,
        effects=effects,
        signals=record.signals if isinstance(record, Execute) else {},
        content_type=content_type,
        traceparent=traceparent,
    )


def compensation_job(
    record: Compensate,
    hosted: Hosted,
    run: str,
    message: Message,
    place: Place,
    now: float,
    content_type: str,
    traceparent: bytes | None,
) -> CompensationJob:
    """What the command asks for, at ``now`` on the monotonic clock."""
    due_ms = message.timestamp_ms + record.deadline_ms
    return CompensationJob(
        saga=hosted.saga,
        step=hosted.step,
        saga_id=record.saga_id,
        start=record.start,
        round=record.round,
        run=run,
        due_ms=due_ms,
        due_at=now + (due_ms - place.time.now_ms(now)) / 1_000,
        input=record.input,
        effects=record.effects,
        signals=record.signals,
        content_type=content_type,
        traceparent=traceparent,
        generation=record.generation,
        effect=record.effect,
        failure=record.failure,
        own=record.own,
        remaining=record.remaining,
    )
