"""What is known of one saga after a prefix of its log.

A *step instance* is one step in one round. Rounds count from 1. A second start under the same saga id, with another
input, has a chain of its own that settles and is undone (rule 13); its instances live in rounds 0, -1, -2, … so that
"an older round is unwanted" covers them without a special case.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from choreo.messages.family import Parent
from choreo.messages.headers import JSON
from choreo.messages.records import AnyRecord, Failure, Undone

Key = tuple[str, int]
"""A step instance: step name and round."""

First = Literal["completed", "late", "failed", "unknown", "timed_out"]
"""How an instance's first outcome was: on time; after its due; certainly without effect; crashed; given up waiting."""

Note = Literal[
    "duplicate",  # said before
    "late",  # a completion after its due
    "unwanted",  # a completion that the saga has no use for; it is undone
    "stale",  # an answer or act for a generation or round that is over
    "early_timer",  # a time-out whose own append time is not past the due
    "not_decided",  # a command, or an outcome of the saga or of a step, that no prefix implies
    "before_start",  # the saga's start is not in the log
    "unknown_start",  # descends from a start that is not in the log
    "unknown_step",  # names a step that the contract does not have
    "unknown_signal",  # no step of the contract waits for it
    "signal_repeated",  # another signal of this name came before, and that one counts
    "held",  # a timer's record while the saga is paused
    "overdue",  # past the due of a step that no deadline ends: it only alerts
    "cancel_deferred",  # the pivot has begun, and its outcome decides
    "repair",  # something may stand although the outcome is decided
    "cancel_refused",  # the outcome was decided before, or the pivot has completed
    "start_refused",  # the id has another input
    "retry_refused",  # limit reached, saga cancelled, aborted or past its deadline
    "continue_refused",  # not a failing step's own, none of its kinds, or the saga is cancelled, aborted, past due
]
"""What was remarkable about a record. Everything unexpected is noted; nothing is raised, nothing skipped in silence."""


class Phase(StrEnum):
    """Where a saga is, in one word."""

    SCHEDULED = "scheduled"
    FORWARD = "forward"
    COMPENSATING = "compensating"
    STUCK = "stuck"
    COMPLETED = "completed"
    COMPENSATED = "compensated"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A record with what the log says about it.

    Attributes:
        offset: its position in the partition.
        at_ms: its append time, the broker's clock.
        content_type: what its user values are written in.
        traceparent: trace context to carry on.
    """

    record: AnyRecord
    offset: int
    at_ms: int
    content_type: str = JSON
    traceparent: bytes | None = None


class Decision(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Something that a prefix of the log implies; the record that says it is only the message (rule 1).

    Attributes:
        kind: ``settle`` is a ``Compensate`` that undoes nothing.
        round: the instance's round as the fold counts it.
        reference: the refused start's hash, or the refused cancel's request.
        undo: of ``stuck``, the generation in which the parent waits for the saga's undoing; 0 if it does not (rule 19).
    """

    kind: Literal[
        "execute",
        "skip",
        "cancel",
        "settle",
        "compensate",
        "stuck",
        "complete",
        "compensated",
        "undone",
        "refuse_start",
        "refuse_cancel",
    ]
    step: str = ""
    round: int = 0
    generation: int = 0
    reference: str = ""
    undo: int = 0


class Instance(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One step in one round.

    Attributes:
        triggered: its trigger is in the log or decided, so that it is in flight until its first outcome (rule 4).
        due_ms: its due; 0 until the trigger's append time is known.
        first: its first outcome; everything later adds doubt, never changes it.
        completed: a completion on time is in the log, wanted or not: its successors have been triggered by it.
        effect: what it returned, in the saga's codec.
        runs: the outcomes seen, as ``kind:run``; the same again is a duplicate (rule 6).
        settling: the saga-log gave up waiting before its due, so that a completion may still be in time and trigger
            successors: still in flight, until its service has said that it has settled, or how it ended (rule 15).
        may_stand: it may have an effect that nobody has undone yet.
        awaits_answer: a ``Compensate`` is decided and not answered.
        generation: of the last ``Compensate`` decided; 0 for none.
        ran_again: since that decision, and before its answer, another run may have had an effect (rule 11).
        own: that ``Compensate`` was the failed step's own, before anything else was taken down (rule 8).
        taken_down: the round from which the saga went back when the instance stopped standing; 0 if it did not. That
            may be a later round than its own, and the answer may still ask for the next one (rule 9).
        compensation_due_ms: 0 until the command's append time is known.
        stuck: its compensation failed for good, or it is ``exhausted``.
        exhausted: at the pivot or past it, it has failed as often as it may (rule 17).
        overdue: it is past its due, which only alerts, and that was noted.
        held: its trigger is in the log behind a pause: it is not in flight, but a worker that does not know of the
            pause may run it all the same (rule 24).
        signal_due_ms: due of the wait for its signal, from when all that it builds on stood; 0 if it never waited.
        offer: ``continue`` was answered (``offered``), or a substitute stands in its place (``taken``).
        substitute: the substitute's effect; ``None`` for a step that stands without one.
        cancelling: ``CancelStep`` is decided.
        skipped: its condition did not hold: it stands without an effect, in its own place (``taken``).
    """

    triggered: bool = False
    due_ms: int = 0
    first: First | None = None
    completed: bool = False
    effect: bytes | None = None
    failure: Failure | None = None
    runs: tuple[str, ...] = ()
    settling: bool = False
    may_stand: bool = False
    awaits_answer: bool = False
    generation: int = 0
    ran_again: bool = False
    own: bool = False
    taken_down: int = 0
    compensation_due_ms: int = 0
    stuck: bool = False
    exhausted: bool = False
    overdue: bool = False
    held: bool = False
    signal_due_ms: int = 0
    compensation_failure: Failure | None = None
    offer: Literal["", "offered", "taken"] = ""
    substitute: bytes | None = None
    skipped: bool = False
    cancelling: bool = False

    @property
    def in_flight(self) -> bool:
        return self.triggered and self.first is None

    @property
    def is_at_work(self) -> bool:
        """The step was triggered and not held, and nothing has been heard of it since."""
        return self.triggered and self.first is None and not (self.runs or self.held or self.offer)


class Foreign(msgspec.Struct, frozen=True):
    """A second start under the same id, with another input (rule 13)."""

    start: str
    input: bytes
    due_ms: int
    parent: Parent | None = None


class Signal(msgspec.Struct, frozen=True):
    """The first signal of its name.

    Attributes:
        payload: the user's value, in ``content_type``.
        request: tells a second signal from a resend.
        sent_by: who, for people.
    """

    payload: bytes
    content_type: str
    request: str
    sent_by: str = ""


class Pause(msgspec.Struct, frozen=True):
    """A pause in force.

    Attributes:
        since_ms: append time of its record.
        operator, reason: who and why, for people.
    """

    since_ms: int
    operator: str = ""
    reason: str = ""


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the saga ended, fixed when it was decided (rule 14).

    Attributes:
        compensations: what was undone until then, in order.
    """

    kind: Literal["completed", "compensated"]
    step: str | None = None
    failure: Failure | None = None
    compensations: tuple[Undone, ...] = ()


class SagaState(msgspec.Struct, omit_defaults=True, gc=False):
    """All that a prefix of the log implies about one saga. Treat as a value: ``fold`` returns a new one.

    Attributes:
        saga, version, contract_hash, rules: what the start pins.
        start: hash of the input; empty until the start is in the log.
        input: in the saga's codec, ``content_type``.
        started_ms, due_ms: append time of the start, and when the saga began plus its deadline.
        scheduled: a scheduled start whose time has not come: nothing of it runs before ``RoundStarted``.
        begins_ms: when a scheduled saga begins or began; 0 if it was not scheduled.
        pause, type_pause: of this saga, and of all of its type; nothing is decided while one is in force.
        paused_since_ms: when the first of those in force began; 0 for none.
        signals: by name, the signals that were received before the outcome.
        round: the current one.
        failing: on the way back, or waiting to settle before it.
        failing_since_ms: append time of the record that turned the saga round.
        cancelled, aborted: sticky.
        pivot: ``open`` from the decision to execute it until its outcome is certain, then ``passed`` if it has
            completed (rule 17).
        deferred: the cancels that wait for the pivot's outcome.
        cancelled_first: the cancel turned the saga round, no failure before it.
        retry_at_ms: a compensation has asked for the next round, not before this; ``None`` if none has.
        round_ready: all that has to be undone for it is; only the time is missing.
        standing: step → round in which it stands (rule 7).
        owed: decided, and its record not yet in the log.
        undone: compensations of the saga's own steps that ended, in order.
        requests, cancels: ids of the calls to start it and of those to cancel it, the last few.
        offset, updated_ms: of the last record folded.
        finished_ms: append time of the outcome's record; 0 until it is in the log.
        truncated: records were found, but not the start: retention has cut it off (rule 21).
        parent: the step of another saga that this saga is; ``None`` for one that somebody started.
        undo, undo_answered: the last generation in which the parent has asked for this saga to be undone, and the last
            that was answered.
        dead_letters: how many records under its key nobody could read (rule 18).
    """

    saga_id: str
    saga: str = ""
    version: int = 0
    contract_hash: str = ""
    rules: int = 0
    content_type: str = JSON
    traceparent: bytes | None = None
    start: str = ""
    input: bytes = b""
    started_ms: int = 0
    due_ms: int = 0
    scheduled: bool = False
    begins_ms: int = 0
    pause: Pause | None = None
    type_pause: Pause | None = None
    paused_since_ms: int = 0
    signals: dict[str, Signal] = {}
    round: int = 1
    failing: bool = False
    failing_since_ms: int = 0
    cancelled: bool = False
    cancel_reason: str = ""
    cancelled_first: bool = False
    pivot: Literal["", "open", "passed"] = ""
    deferred: tuple[str, ...] = ()
    aborted: bool = False
    retry_at_ms: int | None = None
    round_ready: bool = False
    standing: dict[str, int] = {}
    instances: dict[Key, Instance] = {}
    failures: tuple[tuple[str, int, Failure], ...] = ()
    foreign: tuple[Foreign, ...] = ()
    owed: tuple[Decision, ...] = ()
    undone: tuple[Undone, ...] = ()
    outcome: Outcome | None = None
    requests: tuple[str, ...] = ()
    cancels: tuple[str, ...] = ()
    offset: int = -1
    updated_ms: int = 0
    finished_ms: int = 0
    truncated: bool = False
    parent: Parent | None = None
    undo: int = 0
    undo_answered: int = 0
    dead_letters: int = 0

    @property
    def started(self) -> bool:
        return self.start != ""

    @property
    def began_ms(self) -> int:
        """When the saga began, or will: what its deadline and its duration are counted from."""
        return self.begins_ms or self.started_ms

    @property
    def phase(self) -> Phase:
        for instance in self.instances.values():
            if instance.stuck:
                return Phase.STUCK
        if self.outcome is not None:
            if self.is_unwanted and self.undo_waited_for:
                return Phase.COMPENSATING
            return Phase.COMPENSATED if self.is_unwanted else Phase(self.outcome.kind)
        if self.failing and not self.only_forward:
            return Phase.COMPENSATING
        return Phase.SCHEDULED if self.scheduled else Phase.FORWARD

    @property
    def undo_waited_for(self) -> int:
        """The generation in which the parent waits for this saga's undoing; 0 if it does not."""
        return self.undo if self.undo > self.undo_answered else 0

    @property
    def only_forward(self) -> bool:
        """There is no way back, or nobody knows whether there is: what fails is retried (rule 17)."""
        return self.pivot != ""

    @property
    def is_unwanted(self) -> bool:
        """The saga has an outcome, and nothing of it is to stand: it was compensated, or its parent wants it undone."""
        if self.outcome is None:
            return False
        return self.outcome.kind == "compensated" or (self.undo > 0 and not self.only_forward)

    @property
    def is_settled(self) -> bool:
        """Nothing more will happen to the saga unless a new record comes: its state can leave the memory."""
        if self.outcome is None or self.owed:
            return False
        for each in self.instances.values():
            if each.awaits_answer or each.stuck or (each.first is None and each.triggered):
                return False
        return not (self.is_paused and any(self._is_left_over(key) for key in self.instances))

    def _is_left_over(self, key: Key) -> bool:
        """Whether something will be decided about the instance when the saga is no longer paused."""
        instance = self.instances[key]
        wanted = self.standing.get(key[0]) == key[1] and instance.offer != "taken"
        return instance.held or instance.settling or (instance.may_stand and not wanted)

    def shared(self) -> SagaState:
        """A state that shares its containers with this one."""
        duplicate: SagaState = self.__copy__()  # type: ignore[attr-defined]  # every struct has it
        return duplicate

    def copy(self) -> SagaState:
        """A state of its own to work on: containers are copied, the frozen values in them shared."""
        duplicate = self.shared()
        duplicate.standing = self.standing.copy()
        duplicate.instances = self.instances.copy()
        return duplicate

    def instance(self, key: Key) -> Instance:
        return self.instances.get(key, UNTOUCHED)

    def update(self, key: Key, **changes: object) -> Instance:
        """Replace fields of one instance."""
        instance = msgspec.structs.replace(self.instances.get(key, UNTOUCHED), **changes)
        self.instances[key] = instance
        return instance

    def waits_for_signal(self, key: Key) -> bool:
        """Whether the step would run if its signal were in the log."""
        instance = self.instances.get(key, UNTOUCHED)
        return (
            instance.signal_due_ms > 0
            and not instance.triggered
            and instance.first is None
            and key[1] == self.round
            and key[0] not in self.standing
            and not self.failing
            and self.outcome is None
        )

    @property
    def is_paused(self) -> bool:
        return self.pause is not None or self.type_pause is not None

    def due_at_ms(self, at_ms: int) -> int:
        """The saga's due as it is then: while the saga is paused, its deadline does not run."""
        if not self.is_paused:
            return self.due_ms
        return self.due_ms + max(0, at_ms - max(self.paused_since_ms, self.began_ms))

    @property
    def waits_for_begin(self) -> bool:
        """Whether only the time is missing for a scheduled saga to begin."""
        return self.scheduled and not self.failing and self.outcome is None

    def pass_pivot(self) -> None:
        """The pivot stands: from here on only forward, and the cancels that waited for this are refused."""
        self.pivot = "passed"
        self.owed = (*self.owed, *(Decision("refuse_cancel", reference=request) for request in self.deferred))
        self.deferred, self.cancel_reason = (), ""

    def leave_pivot(self) -> None:
        """The pivot has certainly not happened: the way back is open, and the cancels that waited for this count."""
        self.pivot = ""
        if self.deferred:
            self.cancelled, self.retry_at_ms, self.deferred = True, None, ()

    def fold_round(self, start: str, wire_round: int) -> int | None:
        """The round of a record that descends from ``start``; ``None`` if that start is not in the log."""
        if start == self.start:
            return wire_round
        for index, foreign in enumerate(self.foreign):
            if foreign.start == start and wire_round == 1:
                return -index
        return None

    def wire_round(self, fold_round: int) -> tuple[str, int]:
        """The start and the round by which records name an instance."""
        return (self.start, fold_round) if fold_round > 0 else (self.foreign[-fold_round].start, 1)

    def lineage(self, fold_round: int) -> tuple[bytes, int]:
        """Input and due of the start that a round descends from."""
        if fold_round > 0:
            return self.input, self.due_ms
        foreign = self.foreign[-fold_round]
        return foreign.input, foreign.due_ms

    def first_failure(self) -> tuple[str, Failure] | None:
        """What the current round goes back for: its first failure in the log.

        None after a cancel that came before any, and none for which a substitute was taken: that one is mended.
        """
        if self.cancelled_first:
            return None
        for step, saga_round, failure in self.failures:
            if saga_round == self.round and self.instance((step, saga_round)).offer != "taken":
                return step, failure
        return None


UNTOUCHED = Instance()
