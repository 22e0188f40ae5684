"""What ends a wait: a signal, a scheduled saga's time, and time-outs (rules 15, 22, 23). Part of ``evolve``."""

from __future__ import annotations

from choreo.contract.saga import Saga
from choreo.core.due import settle_due_ms
from choreo.core.state import Entry, Key, Note, SagaState, Signal
from choreo.messages.records import SignalReceived


def signal_received(contract: Saga, state: SagaState, entry: Entry, record: SignalReceived) -> Note | None:
    """The first signal of its name counts, whether a step waits for it already or not, and in every round."""
    if record.name not in contract.signals:
        return "unknown_signal"
    received = state.signals.get(record.name)
    if received is not None:
        return "duplicate" if received.request == record.request else "signal_repeated"
    if state.outcome is not None:
        return "stale"
    signal = Signal(bytes(record.payload), entry.content_type, record.request, record.sent_by)
    state.signals = {**state.signals, record.name: signal}
    return None


def begin(state: SagaState, entry: Entry) -> Note | None:
    """A scheduled saga begins; what comes first is commanded like every other frontier (rule 10)."""
    if not state.waits_for_begin:
        return "stale"
    if entry.at_ms < state.begins_ms:
        return "early_timer"
    state.scheduled = False
    return None


def waits_on(contract: Saga, state: SagaState, entry: Entry, key: Key) -> Note | None:
    """Why a time-out does not count (rules 15, 17); ``None`` if it does."""
    instance = state.instance(key)
    for_signal = state.waits_for_signal(key)
    if not instance.in_flight and not for_signal:
        return "stale"
    if state.is_paused:
        return "held"
    due_ms = instance.signal_due_ms if for_signal else settle_due_ms(contract, state, instance)
    if not due_ms or entry.at_ms <= due_ms + contract.grace_ms:
        return "early_timer"
    if state.only_forward if for_signal else key[0] in contract.forward_only:
        state.update(key, overdue=True)
        return "duplicate" if instance.overdue else "overdue"
    return None
