"""Every kind of record in a saga's topic.

All records of a saga have the saga id as key, so they share a partition and hence an order. Past tense is a fact,
imperative a command of the saga-log. Times are milliseconds since the Unix epoch by the broker's append clock; nothing
in here is read from a producer's clock. Values that belong to the user (``input``, effects) pass through undecoded, in
the codec of the record that carries them.

Each record has a derived ``id``: equal ids mean the same thing said again.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from choreo import ids
from choreo.messages import base, pauses, values
from choreo.messages.family import Parent, SagaUndone, UndoRequested
from choreo.messages.values import (
    ContractHash,
    Counter,
    Effects,
    Millis,
    Round,
    RunId,
    ScheduleMillis,
    StartHash,
    StepName,
    Text,
)

RULES = 1
"""The version of the protocol rules (``core``) that a new saga is pinned to."""

FailureKind = values.FailureKind
KnownEffect = Literal["none", "unknown"]
Verdict = Literal["proceed", "retry", "continue", "abort"]
Failure = values.Failure
Record = base.Record
StepRecord = base.StepRecord
SagaPaused = pauses.SagaPaused
SagaResumed = pauses.SagaResumed
TypePaused = pauses.TypePaused
TypeResumed = pauses.TypeResumed
Undone = values.Undone


class SagaStarted(Record, frozen=True, kw_only=True, omit_defaults=True, tag="saga_started"):
    """A client has started a saga. The first one in the log is the saga (rule 13).

    Attributes:
        contract_hash: content hash of the contract that the client holds.
        rules: version of the protocol rules that decide this saga (rule 2).
        request: drawn once for each call; tells a new request with the same input from a resend.
        saga_deadline_ms: length of the saga's deadline; its due is that long after the saga begins.
        input: the user's input.
        not_before_ms: a scheduled start: the saga begins then; 0 for none.
        delay_ms: a scheduled start: the saga begins that long after this record's append; 0 for none.
        parent: the step of another saga that this saga is (rule 19); ``None`` for one that somebody started.
    """

    contract_hash: ContractHash
    request: RunId
    saga_deadline_ms: Millis
    input: msgspec.Raw
    rules: Round = RULES
    not_before_ms: ScheduleMillis = 0
    delay_ms: ScheduleMillis = 0
    parent: Parent | None = None

    @property
    def id(self) -> str:
        return f"{self.saga_id}/{self.start}/start/{self.request}"

    @property
    def is_scheduled(self) -> bool:
        """Whether it triggers no step: the saga begins with ``RoundStarted``, when its time has come."""
        return bool(self.not_before_ms or self.delay_ms)

    def begins_ms(self, append_ms: int) -> int:
        """When a saga begins whose start was appended then. Every reader sees the same from the record alone."""
        return max(append_ms + self.delay_ms, self.not_before_ms)


class CancelRequested(Record, frozen=True, kw_only=True, omit_defaults=True, tag="cancel_requested"):
    """Somebody wants the saga undone. ``start`` is that of the saga where the client knows it, else sixteen zeros.

    Attributes:
        request: drawn once for each call; tells a second cancel from a resend.
        reason: for people.
        requested_by: who, for people.
        parent: of a saga that is a step, if that wants it; ``None`` if somebody does.
    """

    request: RunId
    reason: Text = ""
    requested_by: Text = ""
    parent: Parent | None = None

    @property
    def id(self) -> str:
        return f"{self.saga_id}/cancel/{self.request}"


class SignalReceived(Record, frozen=True, kw_only=True, omit_defaults=True, tag="signal_received"):
    """Something outside the saga has happened that its steps may wait for. The first of its name counts.

    Attributes:
        request: drawn once for each call, or the caller's own id; tells a second signal from a resend.
        name: which signal; steps wait for it by this name.
        payload: the user's value.
        reason: for people.
        sent_by: who, for people.
    """

    request: RunId
    name: StepName
    payload: msgspec.Raw
    reason: Text = ""
    sent_by: Text = ""

    @property
    def id(self) -> str:
        return f"{self.saga_id}/signal/{self.request}"


class OperatorActed(StepRecord, frozen=True, kw_only=True, omit_defaults=True, tag="operator_acted"):
    """An operator's answer to a stuck saga (rules 16, 17). The first of it and a late answer counts.

    Attributes:
        act: ``retry`` gives the next generation; ``skip`` takes this one as undone; ``resolve`` takes all that is
            left as undone by hand and gives the saga its outcome. Past the pivot (rule 17): ``retry`` gives the next
            round; ``skip`` takes the step as done by hand; ``resolve`` all that are left.
        generation: the generation that is stuck; an act on another one is recorded and changes nothing.
        request: drawn once for each call; tells a second act from a resend.
        operator: who acted.
        reason: why, for the audit.
    """

    act: Literal["retry", "skip", "resolve"]
    generation: Counter
    request: RunId
    operator: Text
    reason: Text

    @property
    def id(self) -> str:
        return f"{self.instance}/operator/{self.request}"


class StepCompleted(StepRecord, frozen=True, kw_only=True, omit_defaults=True, tag="step_completed"):
    """A step has done its work. Its successors react to this record alone.

    Attributes:
        run: drawn once for each execution of the handler; the same run said again is a duplicate.
        due_ms: an append time after this makes the record late: a failure with a known effect (design, 6).
        saga_due_ms: the saga's due, for the successors' own due.
        input: the saga's input.
        effects: of the steps that this one builds on.
        effect: what the handler returned.
        attempts: how many attempts the run took.
        duration_ms: of all attempts, by the worker's monotonic clock; for display.
    """

    run: RunId
    due_ms: Millis
    saga_due_ms: Millis
    input: msgspec.Raw
    effects: Effects
    effect: msgspec.Raw
    attempts: Counter = 1
    duration_ms: Millis = 0

    @property
    def id(self) -> str:
        return ids.outcome_id(self.instance, self.run)

    def is_late(self, append_ms: int) -> bool:
        """Whether a record appended then came too late. Every reader sees the same from the record alone."""
        return append_ms > self.due_ms


class StepFailed(StepRecord, frozen=True, kw_only=True, omit_defaults=True, tag="step_failed"):
    """A step gave up; or, with ``failure.kind == "timed_out"`` and no run, the saga-log gave up waiting for it.

    Attributes:
        failure: what went wrong.
        run: as in ``StepCompleted``; empty when the saga-log writes it.
        effect: ``none`` only if the step has certainly left nothing behind (rule 5).
        abort: forbids any later retry of the saga.
        attempts: how many attempts the run took.
        duration_ms: of all attempts, by the worker's monotonic clock; for display.
    """

    failure: Failure
    effect: KnownEffect = "unknown"
    run: Annotated[str, msgspec.Meta(max_length=64)] = ""
    abort: bool = False
    attempts: Counter = 1
    duration_ms: Millis = 0

    @property
    def id(self) -> str:
        return ids.outcome_id(self.instance, self.run or "timed-out")


class Execute(StepRecord, frozen=True, kw_only=True, omit_defaults=True, tag="execute"):
    """Run this step: a join, or the frontier of a new round (rule 10). A trigger like a predecessor's event.

    Attributes:
        saga_due_ms: the saga's due, which bounds the step's own.
        input: the saga's input.
        effects: of the steps that this one builds on.
        key_round: the round whose idempotency key the handler gets, if not its own: that of an earlier one whose
            possible effect nothing undoes, because the saga is at its pivot or past it (rule 17).
        signals: payload of the signal that the step waited for, by its name.
    """

    saga_due_ms: Millis
    input: msgspec.Raw
    effects: Effects
    key_round: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    signals: Effects = msgspec.field(default_factory=dict)

    @property
    def id(self) -> str:
        return ids.execute_id(self.instance)


class StepSkipped(StepRecord, frozen=True, kw_only=True, omit_defaults=True, tag="step_skipped"):
    """The step's condition does not hold, so it does not run in this round. What comes after it goes on (rule 10).

    Attributes:
        condition: as a person reads it; nothing is decided by it.
    """

    condition: Text = ""

    @property
    def id(self) -> str:
        return ids.skipped_id(self.instance)


class CancelStep(StepRecord, frozen=True, kw_only=True, omit_defaults=True, tag="cancel_step"):
    """The saga has turned back for good in this round, and the step need not go on: it is cancelled if it is at work.

    It is answered by the step's outcome, and by nothing if that is in the log. A service that does not know the record
    lets the step settle.

    Attributes:
        failed: the step whose failure has turned the saga; absent after a cancel. For people.
    """

    failed: StepName | None = None

    @property
    def id(self) -> str:
        return ids.cancel_id(self.instance)


class Compensate(StepRecord, frozen=True, kw_only=True, omit_defaults=True, tag="compensate"):
    """Undo this step, or find that there is nothing to undo; or first only say that it has settled.

    Attributes:
        generation: 1, and one more each time the command had to be given again (rule 11).
        deadline_ms: how long after this record's append an answer is waited for.
        own: the step is itself one that failed; only then may the answer be ``continue``.
        settle: undo nothing, only answer, when all earlier records of the step are finished: the saga-log gave up
            waiting before the step's due and has to know whether it completed (rule 15).
        effect: what the step returned; absent if it never completed.
        failure: the failure that the saga goes back for; absent after a cancel.
        remaining: further steps with a compensation that are still to be undone, deepest first, as the saga-log knew
            them when it wrote the record; for those who handle errors, nothing is decided by it.
        input, effects, signals: the context as it was when the step ran.
    """

    generation: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    deadline_ms: Millis
    input: msgspec.Raw
    effects: Effects
    effect: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    failure: Failure | None = None
    own: bool = False
    settle: bool = False
    remaining: tuple[StepName, ...] = ()
    signals: Effects = msgspec.field(default_factory=dict)

    @property
    def id(self) -> str:
        return ids.compensate_id(self.instance, self.generation)


class StepCompensated(StepRecord, frozen=True, kw_only=True, omit_defaults=True, tag="step_compensated"):
    """The answer to ``Compensate``.

    Attributes:
        generation: as in the command.
        run: drawn once for each execution of the compensation.
        undone: whether there was an effect and it is gone; false if there was nothing to undo.
        verdict: ``proceed`` on the way back; ``retry`` forward as the next round; ``continue`` with ``effect`` in
            place of the step's own; ``abort``: proceed, and never retry.
        retry_limit: with ``retry``: honoured while the limit is above the current round.
        backoff_ms: with ``retry``: how long to wait, jitter already drawn.
        effect: with ``continue``: what stands in for the step's effect; absent otherwise.
        attempts: how many attempts the run took.
        duration_ms: of all attempts, by the worker's monotonic clock; for display.
    """

    generation: Counter
    run: RunId
    undone: bool
    verdict: Verdict = "proceed"
    retry_limit: Counter = 0
    backoff_ms: Millis = 0
    effect: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    attempts: Counter = 1
    duration_ms: Millis = 0

    @property
    def id(self) -> str:
        return ids.answer_id(ids.compensate_id(self.instance, self.generation), self.run)


class CompensationFailed(StepRecord, frozen=True, kw_only=True, omit_defaults=True, tag="compensation_failed"):
    """A compensation gave up after its retries; or, without a run, the saga-log gave up waiting for the answer.

    Attributes:
        generation: as in the command.
        failure: what went wrong.
        run: drawn once for each execution of the compensation; empty when the saga-log writes it.
        attempts: how many attempts the run took.
        duration_ms: of all attempts, by the worker's monotonic clock; for display.
    """

    generation: Counter
    failure: Failure
    run: Annotated[str, msgspec.Meta(max_length=64)] = ""
    attempts: Counter = 1
    duration_ms: Millis = 0

    @property
    def id(self) -> str:
        return ids.answer_id(ids.compensate_id(self.instance, self.generation), self.run or "timed-out")


class RoundStarted(Record, frozen=True, kw_only=True, omit_defaults=True, tag="round_started"):
    """The saga goes forward again after a compensation's ``retry``, its backoff over; or a scheduled one begins.

    Attributes:
        round: the one that begins. Round 1 begins with the saga's start, and by this record if that is scheduled.
    """

    round: Round

    @property
    def id(self) -> str:
        return f"{self.saga_id}/{self.start}/round/{self.round}"


class SagaStuck(StepRecord, frozen=True, kw_only=True, omit_defaults=True, tag="saga_stuck"):
    """A notice, not an outcome: a compensation has failed for good and an operator is needed (rule 16).

    Past the pivot it may be the step itself, when its ``forward_retries`` are used up (rule 17).

    Attributes:
        generation: the one that has failed, of a step past the pivot the next one; an operator's act names it.
        failure: of the compensation, or of the step past the pivot.
        remaining: the steps still to be undone, in the order in which that would happen, the stuck one first; past the
            pivot, those still to be done.
        undo: of a sub-saga, the generation in which its parent waits for its undoing, and was told; 0 if it does not.
    """

    generation: Counter
    failure: Failure
    remaining: tuple[StepName, ...]
    undo: Counter = 0

    @property
    def id(self) -> str:
        stuck = f"{ids.compensate_id(self.instance, self.generation)}/stuck"
        return f"{stuck}/undo/{self.undo}" if self.undo else stuck


class SagaCompleted(Record, frozen=True, kw_only=True, omit_defaults=True, tag="saga_completed"):
    """All steps stand. The saga's one outcome (rule 14).

    Attributes:
        result: the effect of the contract's last step; ``null`` if that was skipped.
        effects: of all steps that have one.
        skipped: the steps whose condition did not hold, in the order of the contract.
    """

    result: msgspec.Raw
    effects: Effects
    skipped: tuple[StepName, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.saga_id}/outcome"


class SagaCompensated(Record, frozen=True, kw_only=True, omit_defaults=True, tag="saga_compensated"):
    """Nothing of the saga stands any more. The saga's one outcome (rule 14).

    Attributes:
        cause: what sent the saga back.
        step, failure: the first failure in the log; absent when the saga was cancelled before any.
        compensations: what was undone, in order.
        reason: of the cancel; empty otherwise.
    """

    cause: Literal["failed", "cancelled"]
    compensations: tuple[Undone, ...]
    step: StepName | None = None
    failure: Failure | None = None
    reason: Text = ""

    @property
    def id(self) -> str:
        return f"{self.saga_id}/outcome"


class StartRefused(Record, frozen=True, kw_only=True, omit_defaults=True, tag="start_refused"):
    """The answer to a second start with another input; ``start`` is the refused one's (rule 13).

    Attributes:
        standing_start: hash of the input that the saga has.
    """

    standing_start: StartHash

    @property
    def id(self) -> str:
        return f"{self.saga_id}/{self.start}/start-refused"


class CancelRefused(Record, frozen=True, kw_only=True, omit_defaults=True, tag="cancel_refused"):
    """The answer to a cancel that came after the outcome was decided (rule 14).

    Attributes:
        request: the cancel's.
        reason: why it was refused, for people.
    """

    request: RunId
    reason: Text = ""

    @property
    def id(self) -> str:
        return f"{self.saga_id}/cancel/{self.request}/refused"


AnyRecord = (
    SagaStarted
    | CancelRequested
    | SignalReceived
    | SagaPaused
    | SagaResumed
    | TypePaused
    | TypeResumed
    | OperatorActed
    | StepCompleted
    | StepFailed
    | Execute
    | StepSkipped
    | CancelStep
    | Compensate
    | StepCompensated
    | CompensationFailed
    | RoundStarted
    | UndoRequested
    | SagaUndone
    | SagaStuck
    | SagaCompleted
    | SagaCompensated
    | StartRefused
    | CancelRefused
)
"""The closed set of records. What is none of these is dead-lettered."""

RECORD_TYPES: tuple[type[Record], ...] = AnyRecord.__args__
TYPE_BY_TAG: dict[str, type[Record]] = {str(kind.__struct_config__.tag): kind for kind in RECORD_TYPES}
NO_START = "0" * 16
