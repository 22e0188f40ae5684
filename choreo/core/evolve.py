"""What each kind of record changes. One function for a kind, all total; ``fold`` picks it from the table at the end.

The functions work on a state of their own (``fold`` copies it) and return a note where a record is remarkable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from choreo.contract.saga import Saga
from choreo.core.due import step_due_ms
from choreo.core.messages import (
    cancel_refused,
    cancel_step,
    compensate,
    execute,
    owe,
    paid,
    saga_ended,
    saga_stuck,
    saga_undone,
    start_refused,
    step_skipped,
)
from choreo.core.pausing import PAUSING, take_up
from choreo.core.start import begin_with, saga_due_ms
from choreo.core.state import Decision, Entry, First, Foreign, Instance, Key, Note, SagaState
from choreo.core.survey import Survey
from choreo.core.waiting import begin, signal_received, waits_on
from choreo.errors import Undecodable
from choreo.messages.codec import transcode
from choreo.messages.family import SagaUndone, UndoRequested
from choreo.messages.headers import JSON
from choreo.messages.records import (
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
    SagaStarted,
    SagaStuck,
    SignalReceived,
    StartRefused,
    StepCompensated,
    StepCompleted,
    StepFailed,
    StepRecord,
    StepSkipped,
    Undone,
)

REQUESTS_KEPT = 16

LATE = Failure(kind="timed_out", code="late", message="the step completed after its due")


def saga_started(contract: Saga, state: SagaState, entry: Entry, record: SagaStarted) -> Note | None:
    """The first start is the saga; the same again is a duplicate; another input is refused and undone (rule 13)."""
    if not state.started:
        begin_with(state, entry, record)
        if not state.scheduled:
            _trigger(contract, state, contract.graph.roots, 1, entry.at_ms)
        if state.cancelled:  # a cancel before the start is kept
            _fail(state, entry.at_ms)
        return None
    new_call = record.request not in state.requests  # and not a resend: it wants an answer of its own
    if new_call:
        state.requests = (*state.requests, record.request)[-REQUESTS_KEPT:]
    if record.start == state.start:
        if new_call and state.outcome is not None:
            owe(state, Decision("complete" if state.outcome.kind == "completed" else "compensated"))
        return "duplicate"
    if state.fold_round(record.start, 1) is None:
        user_input = _user_value(state, entry, record.input)
        due_ms = saga_due_ms(record, entry.at_ms)
        state.foreign = (*state.foreign, Foreign(record.start, user_input, due_ms, record.parent))
        if not record.is_scheduled:
            _trigger(contract, state, contract.graph.roots, 1 - len(state.foreign), entry.at_ms)
    elif not new_call:
        return "duplicate"
    owe(state, Decision("refuse_start", reference=record.start))
    return "start_refused"


def cancel_requested(_contract: Saga, state: SagaState, entry: Entry, record: CancelRequested) -> Note | None:
    """Turns the saga round, unless the outcome is decided already (rule 14)."""
    if record.parent is not None and not record.parent.is_same(state.parent):
        return "stale"  # the id is taken by a saga of somebody else, and the parent was told so
    if record.request in state.cancels:  # also one that was heard before the outcome: it is not refused afterwards
        return "duplicate"
    state.cancels = (*state.cancels, record.request)[-REQUESTS_KEPT:]
    if state.outcome is not None or state.pivot == "passed":
        owe(state, Decision("refuse_cancel", reference=record.request))
        return "cancel_refused"
    if state.pivot == "open":
        state.deferred = (*state.deferred, record.request)[-REQUESTS_KEPT:]
        state.cancel_reason = state.cancel_reason or record.reason
        return "cancel_deferred"
    if state.cancelled:
        return "duplicate"
    state.cancelled, state.cancel_reason, state.cancelled_first = True, record.reason, not state.failing
    state.retry_at_ms = None
    if state.started:
        _fail(state, entry.at_ms)
    return None


def undo_requested(_contract: Saga, state: SagaState, entry: Entry, record: UndoRequested) -> Note | None:
    """The parent wants the saga undone, however far it is (rule 19). ``decide`` answers when nothing of it stands."""
    if state.started and not record.parent.is_same(state.parent):
        return "stale"  # the id is taken by a saga of somebody else, and the parent was told so
    if record.generation <= state.undo:
        return "duplicate"
    state.undo, state.parent = record.generation, record.parent
    if not state.started:  # a tombstone: should the start come later, it is undone at once
        state.saga, state.version, state.content_type = record.saga, record.version, entry.content_type
        state.cancelled = state.cancelled_first = True
        state.undo_answered = record.generation
        owe(state, Decision("undone", generation=record.generation))
    elif state.outcome is None and not state.only_forward and not state.cancelled:
        state.cancelled, state.cancel_reason, state.cancelled_first = True, "its parent goes back", not state.failing
        state.retry_at_ms = None
        _fail(state, entry.at_ms)
    for (step, saga_round), instance in state.instances.items():
        if instance.stuck:  # said again, for the parent
            owe(state, Decision("stuck", step, saga_round, instance.generation, undo=state.undo_waited_for))
    return None


def step_completed(contract: Saga, state: SagaState, entry: Entry, record: StepCompleted, key: Key) -> Note | None:
    """A completion stands, or is unwanted and will be undone (rules 7, 12)."""
    instance = state.instance(key)
    late = record.is_late(entry.at_ms)
    seen = f"completed:{record.run}"
    saga_round, chained = key[1], contract.graph.chained[key[0]]
    if seen in instance.runs:  # a trigger once more, which matters where the first was held
        _trigger(contract, state, chained if instance.triggered and not late else (), saga_round, entry.at_ms)
        return "duplicate"
    if instance.held or instance.settling:
        take_up(state, key)
        instance = _settled(state, key)
    on_time = instance.triggered and not late  # what nothing in the log asked for triggers nothing either
    first, in_flight = instance.first, instance.in_flight
    if in_flight:
        first = _ends(contract, state, entry, key, late=late)
    keeps_effect = instance.effect is not None and not in_flight
    state.update(
        key,
        first=first,
        failure=LATE if first == "late" else instance.failure,
        completed=instance.completed or on_time,
        effect=instance.effect if keeps_effect else _user_value(state, entry, record.effect),
        runs=(*instance.runs, seen),
        may_stand=True,
        ran_again=instance.ran_again or instance.awaits_answer or instance.stuck,
    )
    if on_time and chained:
        _trigger(contract, state, chained, saga_round, entry.at_ms)
    if _stands(state, key):
        return None if in_flight else "duplicate"
    if state.outcome is not None:
        return "repair"
    if not instance.triggered:
        return "not_decided"
    return "late" if late else "unwanted"


def _ends(contract: Saga, state: SagaState, entry: Entry, key: Key, *, late: bool) -> First:
    """The completion is the instance's first outcome: on time it stands, late it is a failure (rules 7, 15)."""
    step, saga_round = key
    if saga_round == state.round and not late:
        state.standing[step] = saga_round
        if contract[step].pivot:
            state.pass_pivot()
    elif saga_round == state.round and state.outcome is None:
        _record_failure(state, key, LATE, entry.at_ms)
    return "late" if late else "completed"


def step_failed(contract: Saga, state: SagaState, entry: Entry, record: StepFailed, key: Key) -> Note | None:
    """A failure turns the saga round; a possible effect will be undone (rules 5, 15)."""
    instance = state.instance(key)
    never_ran = not record.run and state.waits_for_signal(key)
    if not record.run:  # written by the saga-log: it gave up waiting
        in_vain = waits_on(contract, state, entry, key)
        if in_vain is not None:
            return in_vain
    paid(state, Decision("execute", *key))  # it stands in for a command that is too large to be written (rule 20)
    seen = f"failed:{record.run}"
    if seen in instance.runs:
        return "duplicate"
    take_up(state, key)
    instance = _settled(state, key)
    if record.abort:
        _abort(state, key)
    policy = contract[key[0]].compensate_on_failure
    unknown = (record.effect == "unknown" or not record.run) and not never_ran
    # Where the instance stands, this is another run of it with the same idempotency key and so the same effect;
    # anywhere else a possible effect has to be undone, after an undone one in the next generation.
    doubt = policy != "never" and unknown and not _stands(state, key)
    if instance.in_flight or never_ran:
        first: First = "failed" if not unknown else "unknown" if record.run else "timed_out"
        doubt = doubt or policy == "always" or contract[key[0]].is_asked_after(record.failure.kind)
        # Given up before its due it may still complete in time; that matters where its event alone triggers others.
        settling = first == "timed_out" and entry.at_ms <= instance.due_ms and bool(contract.graph.chained[key[0]])
        state.update(key, first=first, failure=record.failure, settling=settling)
        if key[1] == state.round and state.outcome is None:
            _record_failure(state, key, record.failure, entry.at_ms)
            is_certain = not unknown or record.failure.kind == "rejected"
            if state.pivot == "open" and (is_certain or (doubt and contract[key[0]].compensation is not None)):
                state.leave_pivot()  # it has not happened, or what it may have left will be undone
    state.update(
        key,
        runs=(*instance.runs, seen),
        may_stand=instance.may_stand or doubt,
        ran_again=instance.ran_again or (doubt and (instance.awaits_answer or instance.stuck)),
    )
    if doubt and state.outcome is not None:
        return "repair"
    if not instance.triggered:
        return None if never_ran else "not_decided"
    return None if instance.in_flight else "unwanted"


def step_compensated(contract: Saga, state: SagaState, entry: Entry, record: StepCompensated, key: Key) -> Note | None:
    """An answer ends its generation; its verdict may send the saga forward again (rules 8, 9, 11)."""
    instance = state.instance(key)
    answerable = instance.awaits_answer or (instance.stuck and not instance.exhausted)
    if record.generation != instance.generation or not answerable:
        return "duplicate" if 0 < record.generation <= instance.generation else "stale"
    if instance.settling:
        _settled(state, key)
        return None
    note: Note | None = None
    offer, substitute = instance.offer, instance.substitute
    turning = state.outcome is None and state.failing and state.round in (key[1], instance.taken_down)
    bound = not state.only_forward  # else no cancel, abort or deadline keeps the saga from its end (rule 17)
    due_ms = state.due_at_ms(entry.at_ms)
    blocked = not turning or (bound and (state.cancelled or state.aborted or entry.at_ms > due_ms))
    if record.verdict == "abort":
        _abort(state, key)
    elif record.verdict == "retry":
        at_ms = entry.at_ms + record.backoff_ms
        if blocked or record.retry_limit <= state.round or (bound and at_ms > due_ms):
            note = "retry_refused"
        else:
            state.retry_at_ms = max(state.retry_at_ms or 0, at_ms)
    elif record.verdict == "continue":
        own = instance.own and key[1] == state.round and _may_recover(contract, instance, key)
        if blocked or not own or isinstance(record.effect, msgspec.UnsetType):
            note = "continue_refused"
        else:
            offer, substitute = "offered", _user_value(state, entry, record.effect)
    state.update(
        key,
        awaits_answer=False,
        stuck=False,
        compensation_failure=None,
        # An effect of a run that came after the decision is gone too if the answer undid something: same key, same
        # effect. "Nothing to undo" was said before that run's effect, so it does not cover it.
        may_stand=instance.ran_again and not record.undone,
        ran_again=False,
        offer=offer,
        substitute=substitute,
    )
    _undone(state, key, "undone" if record.undone else "nothing_to_undo")
    return note


def compensation_failed(
    contract: Saga, state: SagaState, entry: Entry, record: CompensationFailed, key: Key
) -> Note | None:
    """Leaves the effect standing and the saga stuck; nothing older is undone until somebody acts (rules 7, 16)."""
    instance = state.instance(key)
    if record.generation != instance.generation or not instance.awaits_answer:
        return "duplicate" if 0 < record.generation <= instance.generation else "stale"
    if not record.run and state.is_paused:
        return "held"
    if not record.run and not 0 < instance.compensation_due_ms < entry.at_ms - contract.grace_ms:
        return "early_timer"
    # Whether it ran again is still of use: an answer may come late, and "nothing to undo" does not cover a newer run.
    asked: Literal["settle", "compensate"] = "settle" if instance.settling else "compensate"
    paid(state, Decision(asked, *key, record.generation))  # as in ``step_failed`` (rule 20)
    may_stand = instance.may_stand or not instance.settling
    state.update(key, awaits_answer=False, stuck=True, may_stand=may_stand, compensation_failure=record.failure)
    owe(state, Decision("stuck", key[0], key[1], record.generation, undo=state.undo_waited_for))
    return None


def operator_acted(contract: Saga, state: SagaState, entry: Entry, record: OperatorActed, key: Key) -> Note | None:
    """Counts only for the generation that is stuck: the first of act and answer in the log wins (rule 16)."""
    instance = state.instance(key)
    if not instance.stuck or record.generation != instance.generation:
        return "stale"
    if instance.exhausted:
        _act_forward(contract, state, entry, record, key)
    elif record.act == "retry":
        state.update(key, stuck=False, may_stand=instance.may_stand or not instance.settling)
    elif record.act == "skip":
        state.update(key, stuck=False, may_stand=False, ran_again=False, settling=False)
        _undone(state, key, "skipped")
    else:
        for other in Survey(state).uncompensated:
            state.update(other, stuck=False, may_stand=False, ran_again=False, awaits_answer=False, settling=False)
            if state.standing.get(other[0]) == other[1]:
                del state.standing[other[0]]
            _undone(state, other, "resolved")
        state.retry_at_ms = None
    return None


def _act_forward(contract: Saga, state: SagaState, entry: Entry, record: OperatorActed, key: Key) -> None:
    """The operator's act on a step that is stuck on the way forward (rule 17)."""
    if record.act == "retry":
        state.update(key, stuck=False, exhausted=False)
        state.retry_at_ms = max(state.retry_at_ms or 0, entry.at_ms)
        return
    left = [step for step in contract.graph.before if step not in state.standing]
    for step in left if record.act == "resolve" else (key[0],):
        # Done by hand: it stands as a substitute does, without an effect.
        state.update((step, state.round), stuck=False, exhausted=False, offer="taken", substitute=None)
        state.standing[step] = state.round
        if contract[step].pivot:
            state.pass_pivot()


def round_started(contract: Saga, state: SagaState, entry: Entry, record: RoundStarted) -> Note | None:
    """Forward again, when everything that the round redoes is undone and its backoff is over (rule 9)."""
    if state.is_paused and record.round > (0 if state.scheduled else state.round):
        return "held"
    if state.scheduled and record.round == 1:
        return begin(state, entry)
    if record.round <= state.round:
        return "duplicate"
    if record.round != state.round + 1 or not state.round_ready or state.retry_at_ms is None:
        return "stale"
    if entry.at_ms < state.retry_at_ms:
        return "early_timer"
    descendants = contract.graph.descendants
    redone = [step for step in contract.graph.before if step not in state.standing]
    for step in list(state.standing):  # substitutes of steps that the new round passes are dropped
        if any(step in descendants[other] for other in redone):
            del state.standing[step]
    state.round += 1
    state.failing, state.failing_since_ms = False, 0
    state.retry_at_ms, state.round_ready = None, False
    return None


OF_SAGA: dict[type[Record], Callable[[Saga, SagaState, Entry, Any], Note | None]] = {
    SagaStarted: saga_started,
    CancelRequested: cancel_requested,
    SignalReceived: signal_received,
    **PAUSING,
    RoundStarted: round_started,
    SagaCompleted: saga_ended,
    SagaCompensated: saga_ended,
    UndoRequested: undo_requested,
    SagaUndone: saga_undone,
    StartRefused: start_refused,
    CancelRefused: cancel_refused,
}
"""Records about the saga as a whole."""

OF_STEP: dict[type[Record], Callable[[Saga, SagaState, Entry, Any, Key], Note | None]] = {
    StepCompleted: step_completed,
    StepFailed: step_failed,
    StepCompensated: step_compensated,
    CompensationFailed: compensation_failed,
    OperatorActed: operator_acted,
    Execute: execute,
    StepSkipped: step_skipped,
    CancelStep: cancel_step,
    Compensate: compensate,
    SagaStuck: saga_stuck,
}
"""Records about one step instance."""

BEFORE_START: tuple[type[Record], ...] = (
    *(SagaStarted, CancelRequested, SignalReceived, UndoRequested, SagaUndone),
    *PAUSING,
)
"""The records that mean something before the start is in the log."""


def evolve(contract: Saga, state: SagaState, entry: Entry) -> Note | None:
    """Apply one record to a state of the caller's own. Total: what does not fit is noted and changes nothing."""
    record = entry.record
    if entry.offset > state.offset:  # a pause of its type may be older than the saga
        state.offset, state.updated_ms = entry.offset, entry.at_ms
    if not state.started and not isinstance(record, BEFORE_START):
        state.truncated = True
        return "before_start"
    if not isinstance(record, StepRecord):
        return OF_SAGA[type(record)](contract, state, entry, record)
    if record.step not in contract:
        return "unknown_step"
    saga_round = state.fold_round(record.start, record.round)
    if saga_round is None:
        return "unknown_start"
    if saga_round > state.round:
        return "not_decided"
    return OF_STEP[type(record)](contract, state, entry, record, (record.step, saga_round))


def _trigger(contract: Saga, state: SagaState, steps: tuple[str, ...], saga_round: int, at_ms: int) -> None:
    """These steps are in flight from here on, wanted or not (rule 4)."""
    _, saga_due_ms = state.lineage(saga_round)
    is_paused = state.is_paused
    for step in steps:
        instance = state.instances.get(key := (step, saga_round))
        if is_paused:
            if instance is None or not instance.triggered:
                state.update(key, held=True)
        elif instance is None:
            due_ms = step_due_ms(contract[step].deadline_ms, at_ms, saga_due_ms)
            state.instances[key] = Instance(triggered=True, due_ms=due_ms)
        elif not instance.due_ms:
            state.update(key, triggered=True, due_ms=step_due_ms(contract[step].deadline_ms, at_ms, saga_due_ms))


def _fail(state: SagaState, at_ms: int) -> None:
    if not state.failing:
        state.failing, state.failing_since_ms = True, at_ms


def _settled(state: SagaState, key: Key) -> Instance:
    """How the instance ended is known, or that it will not end any more: nobody has to be asked for that (rule 15)."""
    if not state.instance(key).settling:
        return state.instance(key)
    return state.update(key, settling=False, awaits_answer=False, stuck=False, compensation_failure=None)


def _stands(state: SagaState, key: Key) -> bool:
    """Whether the instance's effect is wanted, as far as is decided: it stands, itself and not its substitute."""
    if state.outcome is not None and state.is_unwanted:
        return False
    return state.standing.get(key[0]) == key[1] and state.instance(key).offer != "taken"


def _may_recover(contract: Saga, instance: Instance, key: Key) -> bool:
    """Whether the contract lets a substitute stand for what failed in this way (rule 8)."""
    return instance.failure is not None and contract[key[0]].may_recover_from(instance.failure.kind)


def _abort(state: SagaState, key: Key) -> None:
    """No retry from here on; a refused start's chain has no say in that (rules 9, 13)."""
    if key[1] > 0:
        state.aborted = True
        if not state.only_forward:
            state.retry_at_ms = None


def _record_failure(state: SagaState, key: Key, failure: Failure, at_ms: int) -> None:
    state.failures = (*state.failures, (key[0], key[1], failure))
    _fail(state, at_ms)


def _undone(state: SagaState, key: Key, how: Any) -> None:
    if key[1] > 0:  # a refused start's chain is none of the saga's account
        state.undone = (*state.undone, Undone(step=key[0], round=key[1], how=how))


def _user_value(state: SagaState, entry: Entry, value: msgspec.Raw) -> bytes:
    """A user's value in the saga's codec."""
    if entry.content_type == state.content_type:
        return bytes(value)
    try:
        return transcode(bytes(value), entry.content_type, state.content_type)
    except Undecodable:
        return b"null" if state.content_type == JSON else b"\xc0"
