"""When time alone has something to say.

Time is the log's: a timer that fires appends a record, and the record counts only if its own append time is past the
due (rule 15), so no two machines' clocks are ever compared.
"""

from __future__ import annotations

from typing import NamedTuple

from choreo.contract.policy import duration_text
from choreo.contract.saga import Saga
from choreo.core.state import Instance, Key, SagaState
from choreo.messages.records import CompensationFailed, Failure, RoundStarted, StepFailed

WAITED_FOR_SIGNAL = "signal"
"""The code of a step that timed out before it was triggered, since its signal did not come."""


class Timer(NamedTuple):
    """A record that the saga-log appends when its clock says ``at_ms``, and again later if that was too early."""

    at_ms: int
    record: StepFailed | CompensationFailed | RoundStarted


def step_due_ms(deadline_ms: int | None, at_ms: int, saga_due_ms: int) -> int:
    """The due of a step whose trigger was appended then; ``None`` for a deadline is the saga's."""
    if deadline_ms is None or saga_due_ms < at_ms + deadline_ms:
        return saga_due_ms
    return at_ms + deadline_ms


def settle_due_ms(contract: Saga, state: SagaState, instance: Instance) -> int:
    """An in-flight instance's due; while the saga waits to go back, at most the settle limit after it began to."""
    if not state.failing or state.outcome is not None or state.only_forward:
        return instance.due_ms
    return min(instance.due_ms, state.failing_since_ms + contract.settle_ms)


def timers(contract: Saga, state: SagaState) -> list[Timer]:
    """All timers that are running, the earliest first."""
    found: list[Timer] = []
    if state.is_paused:
        return found
    for (step, saga_round), instance in state.instances.items():
        if (due_ms := _due_ms(contract, state, (step, saga_round), instance)) is not None:
            never_ran = not instance.in_flight
            start, wire_round = state.wire_round(saga_round)
            found.append(
                Timer(
                    due_ms + contract.grace_ms + 1,
                    StepFailed(
                        saga=state.saga,
                        version=state.version,
                        saga_id=state.saga_id,
                        start=start,
                        step=step,
                        round=wire_round,
                        failure=_no_signal(contract, step) if never_ran else _no_outcome(instance, due_ms),
                        effect="none" if never_ran else "unknown",
                    ),
                )
            )
        elif instance.awaits_answer and instance.compensation_due_ms:
            start, wire_round = state.wire_round(saga_round)
            found.append(
                Timer(
                    instance.compensation_due_ms + contract.grace_ms + 1,
                    CompensationFailed(
                        saga=state.saga,
                        version=state.version,
                        saga_id=state.saga_id,
                        start=start,
                        step=step,
                        round=wire_round,
                        generation=instance.generation,
                        failure=Failure(
                            kind="timed_out",
                            code="deadline",
                            message=f"no answer to Compensate within "
                            f"{duration_text(contract[step].compensation_deadline_ms)}",
                        ),
                    ),
                )
            )
    begins = _next_round(state)
    if begins is not None:
        at_ms, saga_round = begins
        found.append(
            Timer(
                at_ms,
                RoundStarted(
                    saga=state.saga,
                    version=state.version,
                    saga_id=state.saga_id,
                    start=state.start,
                    round=saga_round,
                ),
            )
        )
    return sorted(found, key=lambda timer: timer.at_ms)


def next_due_ms(contract: Saga, state: SagaState) -> int | None:
    """When the earliest timer fires; ``None`` if none is running."""
    earliest: int | None = None
    if state.is_paused:
        return None
    for key, instance in state.instances.items():
        if (due_ms := _due_ms(contract, state, key, instance)) is not None:
            at_ms = due_ms + contract.grace_ms + 1
        elif instance.awaits_answer and instance.compensation_due_ms:
            at_ms = instance.compensation_due_ms + contract.grace_ms + 1
        else:
            continue
        if earliest is None or at_ms < earliest:
            earliest = at_ms
    begins = _next_round(state)
    if begins is not None:
        earliest = begins[0] if earliest is None else min(earliest, begins[0])
    return earliest


def _due_ms(contract: Saga, state: SagaState, key: Key, instance: Instance) -> int | None:
    """The due after which an instance has failed if nothing comes: its outcome, or the signal that it waits for."""
    if instance.overdue:
        return None
    if instance.in_flight:
        return settle_due_ms(contract, state, instance) if instance.due_ms else None
    return instance.signal_due_ms if instance.signal_due_ms and state.waits_for_signal(key) else None


def _next_round(state: SagaState) -> tuple[int, int] | None:
    """When the next round begins, and which that is; ``None`` if none is waited for."""
    if state.waits_for_begin:
        return state.begins_ms, 1
    if state.round_ready and state.retry_at_ms is not None:
        return state.retry_at_ms, state.round + 1
    return None


def _no_signal(contract: Saga, step: str) -> Failure:
    return Failure(
        kind="timed_out", code=WAITED_FOR_SIGNAL, message=f"no signal {contract[step].await_signal!r} in time"
    )


def _no_outcome(instance: Instance, due_ms: int) -> Failure:
    if due_ms < instance.due_ms:
        return Failure(kind="timed_out", code="settle", message="no outcome within the settle limit of a failing saga")
    return Failure(kind="timed_out", code="deadline", message="no outcome by the step's due")
