"""Pauses: nothing is decided for a saga, and no further step begins, until it is resumed (rule 24). Part of ``evolve``.

What is in flight finishes and is folded. A trigger that lies behind the pause is *held*: workers that have read the
pause drop it, and when the saga goes on, the frontier gets ``Execute``. A worker that does not know of the pause may
run it all the same, so its outcome is folded as usual; and where a saga goes back, its service is asked first whether
what was held has settled (rule 15).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from choreo.contract.saga import Saga
from choreo.core.state import Entry, Key, Note, Pause, SagaState
from choreo.messages.records import Record, SagaPaused, SagaResumed, TypePaused, TypeResumed


def paused(_contract: Saga, state: SagaState, entry: Entry, record: SagaPaused | TypePaused) -> Note | None:
    """The first pause of its kind counts; one of the saga and one of its type are in force side by side."""
    of_type = isinstance(record, TypePaused)
    if (state.type_pause if of_type else state.pause) is not None:
        return "duplicate"
    hold(state, Pause(entry.at_ms, record.operator, record.reason), of_type=of_type)
    return None


def resumed(_contract: Saga, state: SagaState, entry: Entry, record: SagaResumed | TypeResumed) -> Note | None:
    """When no pause is left, what was held goes on; its clocks have stood still."""
    of_type = isinstance(record, TypeResumed)
    if (state.type_pause if of_type else state.pause) is None:
        return "stale"
    due_ms = state.due_at_ms(entry.at_ms)
    if of_type:
        state.type_pause = None
    else:
        state.pause = None
    if not state.is_paused:
        _go_on(state, entry.at_ms, due_ms)
    return None


def hold(state: SagaState, pause: Pause, *, of_type: bool) -> None:
    """The pause is in force from here on."""
    if not state.is_paused:
        state.paused_since_ms = pause.since_ms
    if of_type:
        state.type_pause = pause
    else:
        state.pause = pause


def take_up(state: SagaState, key: Key) -> None:
    """There is an outcome of what was held: it ran all the same, and counts as if it had been in flight."""
    instance = state.instance(key)
    if instance.held or (instance.settling and instance.first is None):
        state.update(key, held=False, triggered=True)


PAUSING: dict[type[Record], Callable[[Saga, SagaState, Entry, Any], Note | None]] = {
    SagaPaused: paused,
    TypePaused: paused,
    SagaResumed: resumed,
    TypeResumed: resumed,
}
"""What each of these records changes; they count before the start too."""


def _go_on(state: SagaState, at_ms: int, due_ms: int) -> None:
    length_ms, state.paused_since_ms = at_ms - state.paused_since_ms, 0
    state.due_ms = due_ms
    if state.failing:
        state.failing_since_ms = at_ms
    forward = not state.failing and state.outcome is None
    for key, instance in list(state.instances.items()):
        if state.waits_for_signal(key):
            state.update(key, signal_due_ms=instance.signal_due_ms + length_ms)
        elif instance.held:
            state.update(key, held=False, settling=not (forward and key[1] == state.round))
