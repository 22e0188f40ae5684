"""A state as a row, and back. Pure."""

from __future__ import annotations

import msgspec

from choreo.broker.port import TopicPartition
from choreo.contract.saga import Saga
from choreo.core import Phase, SagaState, next_due_ms
from choreo.store.port import MESSAGE_CHARS_MAX, Row

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SagaState)


def is_resting(state: SagaState) -> bool:
    """Nothing will happen to the saga unless a record comes. Without its start, nothing is ever decided (rule 21)."""
    return state.start == "" or (state.outcome is not None and state.is_settled)


def phase_of(state: SagaState) -> str:
    """The word by which lists show it."""
    if state.started:
        return state.phase.value
    return "truncated" if state.truncated else "unstarted"


def message_of(state: SagaState) -> str:
    """What went wrong, in words: the failure that the round goes back for, and those of what is stuck."""
    failed = state.first_failure()
    said = [] if failed is None else [failed[1].message]
    for instance in state.instances.values():
        if instance.stuck:
            failure = instance.failure if instance.exhausted else instance.compensation_failure
            said.append("" if failure is None else failure.message)
    return "\n".join(dict.fromkeys(filter(None, said)))[:MESSAGE_CHARS_MAX] if said else ""


def busy_steps(state: SagaState) -> list[str]:
    """The steps that run, are being undone or are stuck, as the log has them."""
    return sorted(
        {step for (step, _), each in state.instances.items() if each.in_flight or each.awaits_answer or each.stuck}
    )


def row_of(contract: Saga, state: SagaState, tp: TopicPartition) -> Row:
    """The row of a state."""
    failed = state.first_failure()
    phase, resting = phase_of(state), is_resting(state)
    is_done = resting and phase == Phase.COMPLETED  # then nothing is left to be busy with, or to wait for
    return Row(
        topic=tp.topic,
        partition=tp.partition,
        saga=contract.name,
        saga_id=state.saga_id,
        version=state.version,
        phase=phase,
        round=state.round,
        resting=resting,
        started_ms=state.started_ms,
        updated_ms=state.updated_ms,
        finished_ms=state.finished_ms,
        step=failed[0] if failed else "",
        code=failed[1].code or failed[1].kind if failed else "",
        due_ms=state.due_ms,
        timer_ms=None if is_done else next_due_ms(contract, state),
        message=message_of(state),
        busy="" if is_done else " ".join(busy_steps(state)),
        paused=state.pause is not None,
        blob=encoded(state),
    )


def encoded(state: SagaState) -> bytes:
    """The state as it stands in a row."""
    return _encoder.encode(state)


def state_of(blob: bytes) -> SagaState:
    """The state in a row. Raises ``msgspec.MsgspecError`` if it is damaged."""
    return _decoder.decode(blob)
