"""What a saga's start pins. Part of ``evolve``."""

from __future__ import annotations

from choreo.core.state import Entry, SagaState
from choreo.messages.records import SagaStarted


def begin_with(state: SagaState, entry: Entry, record: SagaStarted) -> None:
    """The first start in the log is the saga (rules 2, 13)."""
    state.saga, state.version, state.rules = record.saga, record.version, record.rules
    state.contract_hash, state.content_type = record.contract_hash, entry.content_type
    state.start, state.input = record.start, bytes(record.input)
    state.started_ms = entry.at_ms
    state.due_ms = saga_due_ms(record, entry.at_ms)
    state.parent = record.parent
    state.requests = (record.request,)
    state.traceparent = entry.traceparent
    state.truncated = False
    if record.is_scheduled:
        state.scheduled, state.begins_ms = True, record.begins_ms(entry.at_ms)


def saga_due_ms(record: SagaStarted, at_ms: int) -> int:
    """When a saga is due whose start was appended then: after its deadline, and no later than its parent."""
    due_ms = record.begins_ms(at_ms) + record.saga_deadline_ms
    return due_ms if record.parent is None else min(due_ms, record.parent.due_ms)
