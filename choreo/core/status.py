"""A saga's state as a person or a program asks for it: one word for the whole, one for each step."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from choreo.contract.saga import Saga
from choreo.core.commands import remaining
from choreo.core.state import Instance, Pause, Phase, SagaState
from choreo.ids import child_id
from choreo.messages.codec import decode_user_value
from choreo.messages.records import Failure, Undone

StepPhase = Literal[
    "waiting",
    "running",
    "completed",
    "skipped",
    "substituted",
    "failed",
    "compensating",
    "stuck",
    "undone",
    "no_compensation",
]


class StepStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One step in its latest round.

    Attributes:
        phase: ``waiting`` for its predecessors; ``running`` from its trigger to its outcome, queues included;
            ``completed``; ``skipped`` because its condition did not hold; ``substituted`` by a compensation's
            ``continue``; ``failed`` with nothing to undo; ``compensating``; ``stuck``; ``undone``; ``no_compensation``,
            so it was passed over on the way back.
        effect: as plain values; ``None`` as long as there is none.
        child: the id of the saga that the step is; ``None`` if it is none, or has not begun.
        signal, signal_due_ms: what a ``waiting`` step waits for when all that it builds on stands, and until when;
            ``None`` and 0 otherwise.
    """

    step: str
    phase: StepPhase
    round: int
    effect: Any = None
    failure: Failure | None = None
    child: str | None = None
    signal: str | None = None
    signal_due_ms: int = 0


class PauseStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A pause in force.

    Attributes:
        of: ``saga``, or ``type`` for all sagas of its name.
        since_ms: append time of its record.
        operator, reason: who and why.
    """

    of: Literal["saga", "type"]
    since_ms: int
    operator: str
    reason: str


class SagaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where a saga is.

    Attributes:
        phase: ``scheduled``, ``forward``, ``compensating``, ``stuck``, ``completed`` or ``compensated``.
        started_ms, updated_ms, finished_ms, due_ms: Unix epoch, the broker's clock; 0 for "not yet".
        begins_ms: when a scheduled saga begins or began; 0 if its start was not scheduled.
        signals: the names of those that were received.
        paused: the pauses that hold it; while there is one nothing is decided, and no further step begins.
        step, failure: the first failure of the current round.
        compensations: what was undone so far, in order.
        remaining: what is still to be undone, in order.
        truncated: the log no longer holds the start; nothing will be decided for this saga.
        dead_letters: how many records under its id nobody could read; ``choreo dead-letters`` shows them.
    """

    saga: str
    version: int
    saga_id: str
    phase: Phase
    round: int
    started_ms: int
    updated_ms: int
    finished_ms: int
    due_ms: int
    cancelled: bool
    steps: tuple[StepStatus, ...]
    step: str | None = None
    failure: Failure | None = None
    compensations: tuple[Undone, ...] = ()
    remaining: tuple[str, ...] = ()
    truncated: bool = False
    dead_letters: int = 0
    begins_ms: int = 0
    signals: tuple[str, ...] = ()
    paused: tuple[PauseStatus, ...] = ()


def status_of(contract: Saga, state: SagaState) -> SagaStatus:
    """The status that a state implies."""
    failed = state.first_failure()
    return SagaStatus(
        saga=state.saga or contract.name,
        version=state.version or contract.version,
        saga_id=state.saga_id,
        phase=state.phase,
        round=state.round,
        started_ms=state.started_ms,
        updated_ms=state.updated_ms,
        finished_ms=state.finished_ms,
        due_ms=state.due_ms,
        cancelled=state.cancelled,
        steps=tuple(_step_status(contract, state, step.name) for step in contract.steps),
        step=failed[0] if failed else None,
        failure=failed[1] if failed else None,
        compensations=state.undone,
        remaining=remaining(contract, state)
        if state.failing and not state.only_forward and state.outcome is None
        else (),
        truncated=state.truncated,
        dead_letters=state.dead_letters,
        begins_ms=state.begins_ms,
        signals=tuple(state.signals),
        paused=_pauses(state),
    )


def _pauses(state: SagaState) -> tuple[PauseStatus, ...]:
    pauses: dict[Literal["saga", "type"], Pause | None] = {"saga": state.pause, "type": state.type_pause}
    return tuple(
        PauseStatus(of=of, since_ms=pause.since_ms, operator=pause.operator, reason=pause.reason)
        for of, pause in pauses.items()
        if pause is not None
    )


def _step_status(contract: Saga, state: SagaState, step: str) -> StepStatus:
    rounds = [saga_round for name, saga_round in state.instances if name == step and saga_round > 0]
    if not rounds:
        return StepStatus(step=step, phase="waiting", round=state.round)
    latest = max(rounds)
    instance = state.instance((step, latest))
    effect = instance.substitute if instance.offer == "taken" else instance.effect
    waits = state.waits_for_signal((step, latest))
    return StepStatus(
        step=step,
        phase=_step_phase(contract, state, step, latest, instance),
        round=latest,
        effect=None if effect is None else decode_user_value(effect, Any, content_type=state.content_type),
        failure=instance.compensation_failure or instance.failure,
        child=_child_id(contract, state, step, latest) if instance.triggered else None,
        signal=contract[step].await_signal if waits else None,
        signal_due_ms=instance.signal_due_ms if waits else 0,
    )


def _child_id(contract: Saga, state: SagaState, step: str, saga_round: int) -> str | None:
    return None if contract[step].child is None else child_id(contract.name, state.saga_id, step, saga_round)


def _step_phase(contract: Saga, state: SagaState, step: str, saga_round: int, instance: Instance) -> StepPhase:
    if instance.stuck:
        return "stuck"
    if instance.settling:
        return "running"
    if instance.awaits_answer:
        return "compensating"
    if instance.skipped and not instance.generation:
        return "skipped"
    if instance.offer == "taken" and state.standing.get(step) == saga_round:
        return "substituted"
    if instance.first is None:
        return "running" if instance.triggered else "waiting"
    answers = [one.how for one in state.undone if (one.step, one.round) == (step, saga_round)]
    if answers:
        if contract[step].compensation is None:
            return "no_compensation"
        if instance.first == "completed" or answers[-1:] != ["nothing_to_undo"]:
            return "undone"
        return "failed"  # and its own compensation found nothing to undo
    return "completed" if instance.first == "completed" else "failed"
