"""One plausible record of every type for a contract: what the documents about it show."""

from __future__ import annotations

from typing import Any

import msgspec

from choreo.contract import Saga
from choreo.ids import input_hash, partition_key
from choreo.messages.family import Parent, SagaUndone, UndoRequested
from choreo.messages.records import (
    NO_START,
    CancelRefused,
    CancelRequested,
    CancelStep,
    Compensate,
    CompensationFailed,
    Execute,
    Failure,
    OperatorActed,
    Record,
    RoundStarted,
    SagaCompensated,
    SagaCompleted,
    SagaPaused,
    SagaResumed,
    SagaStarted,
    SagaStuck,
    SignalReceived,
    StartRefused,
    StepCompensated,
    StepCompleted,
    StepFailed,
    StepSkipped,
    TypePaused,
    TypeResumed,
    Undone,
)

_INPUT = msgspec.Raw(b'{"amount":1200}')
_EFFECT = msgspec.Raw(b'{"reference":"R-17"}')
_RUN = "0192f0c1a2b37c44"
_REQUEST = "0192f0c19e0d7a51"
_STARTED_MS = 1_760_000_000_000


def examples(saga: Saga) -> dict[type[Record], Record]:
    """A record of each type, as it could stand in the topic of this saga."""
    first, last = saga.steps[0], saga.steps[-1]
    about: dict[str, Any] = {
        "saga": saga.name,
        "version": saga.version,
        "saga_id": f"{saga.name}-1001",
        "start": input_hash(bytes(_INPUT)),
    }
    due_ms = _STARTED_MS + saga.deadline_ms
    rejected = Failure(kind="rejected", code="not_possible", message="refused by the other side")
    crashed = Failure(kind="crashed", message="connection reset", exception_type="builtins.ConnectionResetError")
    step: dict[str, Any] = {**about, "step": first.name}
    of_type: dict[str, Any] = {**about, "saga_id": partition_key(0), "start": NO_START}
    command: dict[str, Any] = {**step, "generation": 1}
    records: tuple[Record, ...] = (
        SagaStarted(
            **about,
            contract_hash=saga.content_hash,
            request=_REQUEST,
            saga_deadline_ms=saga.deadline_ms,
            input=_INPUT,
        ),
        CancelRequested(**about, request=_REQUEST, reason="changed my mind", requested_by="customer"),
        SignalReceived(**about, request=_REQUEST, name="approved", payload=msgspec.Raw(b'{"by":"anna"}')),
        SagaPaused(**about, request=_REQUEST, operator="anna", reason="asking the customer"),
        SagaResumed(**about, request=_REQUEST, operator="anna", reason="the customer wants it"),
        TypePaused(**of_type, request=_REQUEST, operator="anna", reason="the bank is moving house"),
        TypeResumed(**of_type, request=_REQUEST, operator="anna", reason="the bank is back"),
        OperatorActed(**command, act="retry", request=_REQUEST, operator="anna", reason="the other side is back"),
        StepCompleted(
            **step,
            run=_RUN,
            due_ms=due_ms,
            saga_due_ms=due_ms,
            input=_INPUT,
            effects={},
            effect=_EFFECT,
            duration_ms=12,
        ),
        StepFailed(**{**about, "step": last.name}, failure=rejected, effect="none", run=_RUN, duration_ms=9),
        Execute(**{**about, "step": last.name}, saga_due_ms=due_ms, input=_INPUT, effects={first.name: _EFFECT}),
        StepSkipped(**{**about, "step": last.name}, condition="input.amount > 2000"),
        CancelStep(**{**about, "step": last.name}, failed=first.name),
        Compensate(
            **command,
            deadline_ms=first.compensation_deadline_ms,
            input=_INPUT,
            effects={},
            effect=_EFFECT,
            failure=rejected,
        ),
        StepCompensated(**command, run=_RUN, undone=True, duration_ms=15),
        CompensationFailed(**command, failure=crashed, run=_RUN, attempts=5, duration_ms=3_100),
        RoundStarted(**about, round=2),
        UndoRequested(**about, generation=1, parent=_parent(saga)),
        SagaUndone(**about, generation=1, undone=True, compensations=(Undone(step=first.name, round=1, how="undone"),)),
        SagaStuck(**command, failure=crashed, remaining=(first.name,)),
        SagaCompleted(**about, result=_EFFECT, effects={step.name: _EFFECT for step in saga.steps}),
        SagaCompensated(
            **about,
            cause="failed",
            step=last.name,
            failure=rejected,
            compensations=(Undone(step=first.name, round=1, how="undone"),),
        ),
        StartRefused(**about, standing_start=input_hash(b'{"amount":900}')),
        CancelRefused(**about, request=_REQUEST, reason="the saga is completed"),
    )
    return {type(record): record for record in records}


def _parent(saga: Saga) -> Parent:
    return Parent(
        saga="parent",
        version=1,
        saga_id="parent-1001",
        start=input_hash(bytes(_INPUT)),
        step=saga.name.replace("-", "_"),
        round=1,
        due_ms=_STARTED_MS + saga.deadline_ms,
    )
