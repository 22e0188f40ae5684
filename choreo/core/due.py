"""When time alone has something to say.

Time is the log's: a timer that fires appends a record, and the record counts only if its own append time is past the
due (rule 15), so no two machines' clocks are ever compared.
"""

from __future__ import annotations

from typing import NamedTuple

from choreo.contract.policy import duration_text
from choreo.contract.saga import Saga
from choreo.core.state import Instance, SagaState
from choreo.messages.records import CompensationFailed, Failure, RoundStarted, StepFailed


class Timer(NamedTuple):
    """A record that the saga-log appends when its clock says ``at_ms``, and again later if that was too early."""

    at_ms: int
    record: StepFailed | CompensationFailed | RoundStarted


def settle_due_ms(contract: Saga, state: SagaState, instance: Instance) -> int:
    """An in-flight instance's due; while the saga waits to go back, at most the settle limit after it began to."""
    if not state.failing or state.outcome is not None or state.only_forward:
        return instance.due_ms
    return min(instance.due_ms, state.failing_since_ms + contract.settle_ms)


def timers(contract: Saga, state: SagaState) -> list[Timer]:
    """All timers that are running, the earliest first."""
    found: list[Timer] = []
    for (step, saga_round), instance in state.instances.items():
        if instance.in_flight and instance.due_ms and not instance.overdue:
            due_ms = settle_due_ms(contract, state, instance)
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
                        failure=_no_outcome(instance, due_ms),
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
    if state.round_ready and state.retry_at_ms is not None:
        found.append(
            Timer(
                state.retry_at_ms,
                RoundStarted(
                    saga=state.saga,
                    version=state.version,
                    saga_id=state.saga_id,
                    start=state.start,
                    round=state.round + 1,
                ),
            )
        )
    return sorted(found, key=lambda timer: timer.at_ms)


def next_due_ms(contract: Saga, state: SagaState) -> int | None:
    """When the earliest timer fires; ``None`` if none is running."""
    earliest: int | None = None
    for instance in state.instances.values():
        if instance.in_flight and instance.due_ms and not instance.overdue:
            at_ms = settle_due_ms(contract, state, instance) + contract.grace_ms + 1
        elif instance.awaits_answer and instance.compensation_due_ms:
            at_ms = instance.compensation_due_ms + contract.grace_ms + 1
        else:
            continue
        if earliest is None or at_ms < earliest:
            earliest = at_ms
    if state.round_ready and state.retry_at_ms is not None:
        earliest = state.retry_at_ms if earliest is None else min(earliest, state.retry_at_ms)
    return earliest


def _no_outcome(instance: Instance, due_ms: int) -> Failure:
    if due_ms < instance.due_ms:
        return Failure(kind="timed_out", code="settle", message="no outcome within the settle limit of a failing saga")
    return Failure(kind="timed_out", code="deadline", message="no outcome by the step's due")
