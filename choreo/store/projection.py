"""A state as a row, and back. Pure."""

from __future__ import annotations

import msgspec

from choreo.broker.port import TopicPartition
from choreo.contract.saga import Saga
from choreo.core import SagaState, next_due_ms
from choreo.store.port import MESSAGE_CHARS_MAX, Row

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SagaState)


def is_resting(state: SagaState) -> bool:
    """Nothing will happen to the saga unless a record comes. Without its start, nothing is ever decided (rule 21)."""
    return not state.started or state.is_settled


def phase_of(state: SagaState) -> str:
    """The word by which lists show it."""
    if state.started:
        return state.phase.value
    return "truncated" if state.truncated else "unstarted"


def message_of(state: SagaState) -> str:
    """What went wrong, in words: the failure that the round goes back for, and those of what is stuck."""
    failed = state.first_failure()
    stuck = [
        instance.failure if instance.exhausted else instance.compensation_failure
        for instance in state.instances.values()
        if instance.stuck
    ]
    said = [failure.message for failure in (failed[1] if failed else None, *stuck) if failure is not None]
    return "\n".join(dict.fromkeys(filter(None, said)))[:MESSAGE_CHARS_MAX]


def busy_steps(state: SagaState) -> list[str]:
    """The steps that run, are being undone or are stuck, as the log has them."""
    return sorted(
        {step for (step, _), each in state.instances.items() if each.in_flight or each.awaits_answer or each.stuck}
    )


def row_of(contract: Saga, state: SagaState, tp: TopicPartition) -> Row:
    """The row of a state."""
    failed = state.first_failure()
    return Row(
        topic=tp.topic,
        partition=tp.partition,
        saga=contract.name,
        saga_id=state.saga_id,
        version=state.version,
        phase=phase_of(state),
        round=state.round,
        resting=is_resting(state),
        started_ms=state.started_ms,
        updated_ms=state.updated_ms,
        finished_ms=state.finished_ms,
        step=failed[0] if failed else "",
        code=failed[1].code or failed[1].kind if failed else "",
        due_ms=state.due_ms,
        timer_ms=next_due_ms(contract, state),
        message=message_of(state),
        busy=" ".join(busy_steps(state)),
        paused=state.pause is not None,
        blob=encoded(state),
    )


def encoded(state: SagaState) -> bytes:
    """The state as it stands in a row."""
    return _encoder.encode(state)


def state_of(blob: bytes) -> SagaState:
    """The state in a row. Raises ``msgspec.MsgspecError`` if it is damaged."""
    return _decoder.decode(blob)
