"""Sees everything that happens and holds it against what choreo promises; it trusts nobody but the log and the effects.

The names are those of the invariants: S1 one outcome that never changes; S2, S3 after *completed* each step's effect
stands once, after *compensated* none does, and neither did at the moment of the outcome; S4 a compensation has an
effect once; S5 nothing is undone under what builds on it; S6 what commits with an inbox's row is done once and
undone once; S7 what is answered is not run again; S8 an answer tells of
a run that took place, a decision of what the log implies; S9 equal ids have equal content; S12 the fold of the log,
the saga-log's state and the store's are the same; S13 nothing unfinished is committed, and no commit goes back; S14
what nobody can read is in the dead letters; R3 the records of one saga and step are worked on one at a time; L1 every
saga ends or is stuck; L2 nothing is left to read.

Weaker without an inbox, where two replicas have worked on one trigger (``docs/guarantees.md``): a saga is *contended*
once a process that does not own its partition (any more) has made or undone an effect, or appended an answer. There
the net effect is promised and the order is not, so S5, S7 and the part of S2 and S3 about the moment of the outcome
are counted and not held against anybody. The same holds once a trigger that is in the log more than once (a start that
was repeated, a record that was appended again, a damaged copy of one) is *repeated*, run again after it was answered:
what a worker remembers of its answers ends with its committed offset.

Where an operator has undone something by hand, the order is the operator's, and S5 has nothing to say.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from hashlib import sha256
from typing import NamedTuple

import msgspec

from choreo import ids
from choreo.broker.offsets import OffsetTracker
from choreo.broker.port import Committed, Message, TopicPartition
from choreo.broker.topics import dead_letter_topic, saga_topic
from choreo.contract import Saga
from choreo.core import Entry, Phase, SagaState, fold, refuse
from choreo.core.fold import Folded
from choreo.core.state import Note, Outcome
from choreo.core.survey import Survey
from choreo.messages.records import (
    AnyRecord,
    CancelStep,
    Compensate,
    CompensationFailed,
    Execute,
    OperatorActed,
    RoundStarted,
    SagaCompensated,
    SagaCompleted,
    SagaPaused,
    SagaStarted,
    SagaStuck,
    StepCompensated,
    StepCompleted,
    StepFailed,
    TypePaused,
)
from choreo.saga_log.intake import Refused, read_entry
from choreo.saga_log.outbound import SOURCE
from choreo.saga_log.type_pause import TypePause, concerned
from choreo.step import CompensationContext, Context
from tests.simulation.effects import Effects, Row, row_of
from tests.simulation.faults import Faults
from tests.simulation.process import Process, Sender
from tests.simulation.shapes import Shape

COMMANDS = (Execute, CancelStep, Compensate, SagaStuck, RoundStarted)
OUTCOMES = (SagaCompleted, SagaCompensated)
SAID_IN_A_PAUSE = ("refuse_start", "refuse_cancel", "stuck", "complete", "compensated")
"""What answers a client, or says again what was decided before."""

ANSWERS = (StepCompleted, StepFailed, StepCompensated, CompensationFailed)
WITH_CONTENT = (Execute, Compensate, *OUTCOMES)

_encode = msgspec.msgpack.Encoder().encode


class Work(NamedTuple):
    """What a record asks of a service: to run a step, or (``generation`` above 0) to undo one."""

    saga_id: str
    start: str
    step: str
    round: int
    generation: int = 0

    @property
    def key(self) -> str:
        return ids.idempotency_key(*self[:4])


class Judge:
    """The judge of one run.

    Attributes:
        violations: what must never be, in words.
        states: every saga as the log has it now.
        contended: sagas for which the weaker promise holds.
        repeated: likewise, because a trigger that is in the log more than once was run again.
        cancelled: how often a step was, by what is known of its effect.
        given_up: where a step completed before its due and after the settle limit; no promise is weaker for that.
        weaker: what was found there and would be a violation elsewhere.
        stuck: the sagas that wait for an operator.
        is_strict: no promise is weaker, because every step works in the transactions of an inbox.
        paused: how often a pause began, of one saga or of the type in a partition, and how many triggers were held.
        digest: of all that was appended and done, in order.
    """

    def __init__(
        self,
        shape: Shape,
        place_of: Callable[[str], TopicPartition],
        now_ms: Callable[[], int],
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.shape = shape
        self.place_of = place_of
        self._contracts = {saga_topic(each.contract.name): each.contract for each in shape.family}
        self._of_dead_letters = {dead_letter_topic(each.contract.name) for each in shape.family}
        self._compensated = {
            step.name: step.compensation is not None for each in shape.family for step in each.contract.steps
        }
        self._children: dict[str, dict[str, None]] = defaultdict(dict)
        self.effects = Effects()
        self.violations: list[str] = []
        self.states: dict[str, SagaState] = {}
        self.contended: set[str] = set()
        self.repeated: set[str] = set()
        self.given_up: set[str] = set()
        self.cancelled: Counter[str] = Counter()
        self.weaker: Counter[str] = Counter()
        self.stuck: dict[str, None] = {}
        self.paused: Counter[str] = Counter()
        self.digest = sha256()
        self.records = 0
        self.is_strict = False
        self._steps_of: dict[str, frozenset[str]] = {}
        self.topics_of = {"choreo.saga-log": frozenset(self._contracts)}
        for each in shape.family:
            for service, steps in each.services.items():
                self._steps_of[f"choreo.{service}"] = frozenset(steps)
                self.topics_of[f"choreo.{service}"] = frozenset({saga_topic(each.contract.name)})
        self._now_ms = now_ms
        self._say = say
        self._by_hand: set[str] = set()
        self._doomed: dict[str, bool] = {}
        self._content: dict[bytes, bytes] = {}
        self._work: dict[TopicPartition, list[tuple[Work, ...]]] = defaultdict(list)
        self._triggers: Counter[Work] = Counter()
        self._held: set[Work] = set()
        self._type_pauses: dict[TopicPartition, TypePause] = defaultdict(TypePause)
        self._answered: set[Work] = set()
        self._runs: dict[Work, set[str]] = defaultdict(set)
        self._active: Counter[tuple[str, str, str]] = Counter()
        self._committed: dict[tuple[str, TopicPartition], int] = {}
        self._unreadable: set[tuple[str, int, int]] = set()
        self._buried: set[tuple[str, int, int]] = set()

    # What happens

    def appended(self, message: Message, sender: Sender | None) -> None:
        """A record is in the log. ``sender`` is none where somebody else than a service or a saga-log has sent it."""
        self.records += 1
        self._note(_encode(message))
        if message.topic in self._of_dead_letters:
            if message.header("choreo_error_source") == SOURCE.encode():
                at = [int(message.header(f"choreo_original_{what}") or b"-1") for what in ("partition", "offset")]
                self._buried.add((message.topic, at[0], at[1]))
            return
        contract = self._contracts.get(message.topic)
        if contract is None:
            return
        entry = read_entry(message, contract.name)
        if isinstance(entry, Refused):
            if self._say:
                self._say(f"{message.tp}@{message.offset} unreadable: {entry.message}")
            self._work[message.tp].append(())
            self._unreadable.add((dead_letter_topic(contract.name), message.partition, message.offset))
            state = self.states.get((message.key or b"").decode("utf-8", "replace"))
            if state is not None:
                self.states[state.saga_id] = refuse(state, message.offset, message.timestamp_ms)
            return
        self._record(message, entry, sender)

    def started(self, process: Process, context: Context | CompensationContext) -> Work:
        """A handler begins."""
        work = _work_of(context)
        lane = (process.name, work.saga_id, work.step)
        self._active[lane] += 1
        if self._say:
            self._say(f"{process.name} begins {'/'.join(map(str, work[2:]))} of {work.saga_id}")
        if self._active[lane] > 1:
            self._violated("R3", work.saga_id, f"{process.name} works on two records of step {work.step} at once")
        self._runs[work].add(context.run)
        self._look_at_owner(process, work.saga_id)
        if work in self._answered:
            if self._triggers[work] > 1:
                self.repeated.add(work.saga_id)
            self._weaker_if_needed("S7", work.saga_id, f"{work} is run again though it is answered")
        return work

    def fails_for_good(self, key: str, faults: Faults) -> bool:
        """Whether the compensation of that key is bound to fail, each time it is tried."""
        if key not in self._doomed:
            self._doomed[key] = faults.happens("undo_fails_for_good")
        return self._doomed[key]

    def ended(self, process: Process, work: Work) -> None:
        """A handler has ended, in whatever way."""
        self._active[process.name, work.saga_id, work.step] -= 1

    def make(self, process: Process, key: str, builds_on: frozenset[str]) -> None:
        """A handler makes its effect. Raises ``effects.Refused``."""
        self._look_at_owner(process, row_of(key, "standing").saga_id)
        if self.effects.make(key, builds_on):
            if self._say:
                self._say(f"{process.name} makes {key}")
            self._note(f"made {key}".encode())

    def undo(self, process: Process, key: str) -> bool:
        """A handler undoes an effect. Returns whether there was one."""
        saga_id = row_of(key, "undone").saga_id
        self._look_at_owner(process, saga_id)
        stood = self._stands(key)
        undone, above = self.effects.undo(key)
        above = [other for other in above if self._can_be_undone(other)]
        if stood:
            if self._say:
                self._say(f"{process.name} undoes {key}")
            self._note(f"undone {key}".encode())
        if above and saga_id not in self._by_hand:
            self._weaker_if_needed("S5", saga_id, f"{key} is undone under {', '.join(above)}")
        return undone

    def make_once(self, process: Process, key: str, builds_on: frozenset[str]) -> None:
        """A transaction has committed that made an effect, whatever was there before."""
        before = self.effects.rows.get(key)
        if before is not None:
            self._violated("S7", before.saga_id, f"{process.name} makes {key}, which is {before.state}")
            return
        self.make(process, key, builds_on)

    def undo_once(self, process: Process, key: str) -> None:
        """A transaction has committed that undid an effect, whatever was there before."""
        saga_id = row_of(key, "undone").saga_id
        if not self._stands(key) and saga_id not in self._by_hand:
            self._violated("S4", saga_id, f"{process.name} undoes {key}, which is {self.effects.rows.get(key)}")
            return
        self.undo(process, key)

    def committed(self, process: Process, group: str, tp: TopicPartition, place: Committed) -> None:
        """A group's place has been stored."""
        before = self._committed.get((group, tp), 0)
        if place.offset < before:
            self._violated("S13", str(tp), f"{process.name} commits {place.offset} behind {before} in {group}")
            return
        self._committed[group, tp] = place.offset
        if group not in self._steps_of:
            return
        self._judge_finished(group, tp, range(before, place.offset))
        if place.metadata:
            finished = OffsetTracker(place.offset, place.metadata)
            above = range(place.offset, len(self._work[tp]))
            self._judge_finished(group, tp, [offset for offset in above if finished.is_finished(offset)])

    def _judge_finished(self, group: str, tp: TopicPartition, offsets: Iterable[int]) -> None:
        records, steps = self._work[tp], self._steps_of[group]
        for offset in offsets:
            for work in records[offset]:
                if work.step in steps and work not in self._answered:
                    self._violated("S13", work.saga_id, f"{group} commits {tp}@{offset} before {work} is answered")

    # What must be true when nothing happens any more

    def is_quiet(self, ends: Mapping[TopicPartition, int]) -> str | None:
        """What is still under way; ``None`` if nothing is."""
        for saga_id, state in self.states.items():
            if state.started and not state.is_settled and state.phase is not Phase.STUCK:
                return f"L1 saga {saga_id} is {state.phase.value}; owed {state.owed}"
        for group, topics in self.topics_of.items():
            for tp, end in ends.items():
                if tp.topic in topics and end > self._committed.get((group, tp), 0):
                    return f"L2 {group} has committed {self._committed.get((group, tp), 0)} of {end} in {tp}"
        return None

    def judge_at_the_end(self) -> None:
        """Hold the effects against the sagas."""
        for saga_id, state in self.states.items():
            if not state.started or not state.is_settled:
                continue
            self._judge_effects(saga_id, state, at_outcome=False)
        for key, row in self.effects.rows.items():
            if row.state == "standing" and row.saga_id not in self.states:
                self._violated("S3", row.saga_id, f"{key} stands and has no saga")
        for at in sorted(self._unreadable - self._buried):
            self._violated("S14", f"{at[0]} of {at[1]}@{at[2]}", "is unreadable and not in the dead letters")

    def compare(self, whose: str, found: Mapping[str, SagaState], *, whole: Collection[str] = ()) -> None:
        """S12: states that somebody has, against the fold of the log. None of ``whole`` may be missing."""
        for saga_id, state in found.items():
            if saga_id not in self.states or _encode(state) != _encode(self.states[saga_id]):
                self._violated("S12", saga_id, f"{whose} has {state}, the log says {self.states.get(saga_id)}")
        for saga_id in sorted(set(whole) - found.keys()):
            self._violated("S12", saga_id, f"{whose} has nothing of it")

    def measure(self, whose: str, found: Mapping[str, SagaState], *, resting_max: int) -> None:
        """S16: what somebody still keeps in memory, though nothing happens any more."""
        resting = sum(state.is_settled or not state.started for state in found.values())
        if resting > resting_max + 1:  # one more: whose record is read again to see that the log is the same
            self._violated("S16", whose, f"keeps {resting} sagas that rest, not {resting_max}")

    def stuck_steps(self) -> list[tuple[str, str]]:
        """Saga and step of each compensation that waits for an operator."""
        return [
            (saga_id, step)
            for saga_id in self.stuck
            for (step, _), instance in self.states[saga_id].instances.items()
            if instance.stuck
        ]

    def waits_for_stuck_child(self, saga_id: str, step: str) -> bool:
        """Whether the step is a sub-saga that is stuck itself: then that is where an operator helps."""
        children = [self.states.get(child_id) for child_id in self._children.get(saga_id, ())]
        return any(
            child is not None and child.parent is not None and child.parent.step == step and child.saga_id in self.stuck
            for child in children
        )

    def told(self, saga_id: str, start: str, kind: str) -> None:
        """A client was told an outcome."""
        state = self.states.get(saga_id)
        if state is None or state.outcome is None:
            self._violated("S1", saga_id, f"a client was told {kind} before the log says so")
        elif state.start == start and state.outcome.kind != kind:
            self._violated("S1", saga_id, f"a client was told {kind}, the log says {state.outcome.kind}")

    def violated(self, what: str, about: str, how: str) -> None:
        self._violated(what, about, how)

    # Inside

    def _record(self, message: Message, entry: Entry, sender: Sender | None) -> None:
        record, saga_id, contract = entry.record, entry.record.saga_id, self._contracts[message.topic]
        if self._type_pauses[message.tp].see(entry):
            self._of_type(message.tp, entry)
            return
        state = self.states.get(saga_id) or SagaState(saga_id)
        if (pause := self._type_pauses[message.tp].before(state, record)) is not None:
            state = fold(contract, state, pause).state
        self._work[message.tp].append(self._begun(message.tp, entry, state))
        folded = fold(contract, state, entry)
        self.states[saga_id] = folded.state
        if self._say:
            self._say(f"{message.tp}@{message.offset} {_short(entry)}{f' ({folded.note})' if folded.note else ''}")
        self._judge_word(message, contract, record, sender, folded.state)
        if isinstance(record, StepCompleted) and not record.is_late(entry.at_ms):
            place = (record.step, state.fold_round(record.start, record.round) or 0)
            if state.instance(place).settling:
                self.given_up.add(saga_id)
        if isinstance(record, OperatorActed) and folded.note is None:
            self._undo_by_hand(record, state)
        self._judge_pause(entry, state, folded)
        self._judge_record(message, entry, folded.note)
        self._judge_timer(contract, entry, state, folded.note)
        if folded.state.failing and any(decision.kind == "execute" for decision in folded.owed):
            self._violated("S6", saga_id, f"{_short(entry)} makes a failing saga go on: {folded.owed}")
        self._judge_outcome(saga_id, state.outcome, folded.state)
        if folded.state.phase is Phase.STUCK:
            self.stuck[saga_id] = None
        else:
            self.stuck.pop(saga_id, None)

    def _judge_word(
        self, message: Message, contract: Saga, record: AnyRecord, sender: Sender | None, state: SagaState
    ) -> None:
        """What somebody else than the saga-log of this saga says."""
        if isinstance(record, SagaStarted) and record.parent is not None:
            self._judge_birth(record)
        elif isinstance(record, ANSWERS) and contract[record.step].child is not None:
            self._judge_childs_word(contract, record)
        elif isinstance(record, ANSWERS) and record.run:
            self._answer(message, record, sender, asked=_was_asked(record, state))

    def _begun(self, tp: TopicPartition, entry: Entry, state: SagaState) -> tuple[Work, ...]:
        """What the record asks of services that know of all pauses."""
        works = self._asked(self._contracts[tp.topic], entry)
        self._triggers.update(works)
        if self._held.intersection(works):  # it has left no trace at its service, so a repeated event may run it
            self.repeated.add(state.saga_id)
        # A saga that is over is not paused with its type; but services do not know that a second start is refused.
        is_held = state.is_paused or (state.outcome is not None and self._type_pauses[tp].stored != "")
        if not (is_held and isinstance(entry.record, SagaStarted | StepCompleted)):
            return works
        self._held.update(works)
        self.paused["held"] += len(works)
        return ()

    def _judge_pause(self, entry: Entry, before: SagaState, folded: Folded) -> None:
        """In a pause nothing is decided (rule 24)."""
        self.paused["saga"] += isinstance(entry.record, SagaPaused) and folded.note is None
        is_paused = before.is_paused and folded.state.is_paused
        if is_paused and any(one.kind not in SAID_IN_A_PAUSE for one in folded.owed):
            self._violated("S6", before.saga_id, f"{_short(entry)} makes a paused saga go on: {folded.owed}")

    def _of_type(self, tp: TopicPartition, entry: Entry) -> None:
        """A pause of the type, or its end: it is for all sagas of the partition that have begun and are not over."""
        self._work[tp].append(())
        self.paused["type"] += isinstance(entry.record, TypePaused)
        if self._say:
            self._say(f"{tp}@{entry.offset} {type(entry.record).__name__}")
        for state in concerned([state for state in self.states.values() if self.place_of(state.saga_id) == tp]):
            folded = fold(self._contracts[tp.topic], state, entry)
            self.states[state.saga_id] = folded.state
            self._judge_outcome(state.saga_id, state.outcome, folded.state)

    def _judge_record(self, message: Message, entry: Entry, note: Note | None) -> None:
        record, saga_id = entry.record, entry.record.saga_id
        if isinstance(record, COMMANDS) and note in ("not_decided", "unknown_step", "unknown_start"):
            self._violated("S8", saga_id, f"{type(record).__name__} at {message.offset} is implied by nothing")
        if isinstance(record, OUTCOMES) and note not in (None, "duplicate"):
            self._violated("S1", saga_id, f"{type(record).__name__} at {message.offset} is {note}")
        if isinstance(record, WITH_CONTENT) or (isinstance(record, ANSWERS) and record.run):
            record_id = message.header("ce_id") or b""
            content = message.value
            if isinstance(record, Compensate):  # it tells what was left to undo when it was written, for people
                content = _encode(msgspec.structs.replace(record, remaining=()))
            before = self._content.setdefault(record_id, content)
            if before != content:
                self._violated("S9", saga_id, f"{record_id.decode()} says {content!r}, before {before!r}")

    def _judge_timer(self, contract: Saga, entry: Entry, before: SagaState, note: Note | None) -> None:
        """What time alone brings about counts only when the log's clock is past its due."""
        record = entry.record
        if note is not None or not isinstance(record, StepFailed | CompensationFailed | RoundStarted):
            return
        earliest_ms = -1
        if isinstance(record, RoundStarted):
            earliest_ms = before.begins_ms if record.round == 1 else before.retry_at_ms or 0
        elif not record.run:
            key = (record.step, before.fold_round(record.start, record.round) or 0)
            instance = before.instance(key)
            due_ms = instance.due_ms if isinstance(record, StepFailed) else instance.compensation_due_ms
            if isinstance(record, StepFailed) and before.waits_for_signal(key):
                due_ms = instance.signal_due_ms
            elif isinstance(record, StepFailed) and before.failing and before.outcome is None:
                due_ms = min(due_ms, before.failing_since_ms + contract.settle_ms)
            earliest_ms = due_ms + contract.grace_ms + 1
        if entry.at_ms < earliest_ms:
            self._violated("S15", record.saga_id, f"{_short(entry)} counts {earliest_ms - entry.at_ms} ms too early")

    def _judge_outcome(self, saga_id: str, before: Outcome | None, state: SagaState) -> None:
        if before is None and state.outcome is not None:
            self._judge_effects(saga_id, state, at_outcome=True)
        elif before != state.outcome:
            self._violated("S1", saga_id, f"the outcome {before} became {state.outcome}")

    def _answer(
        self,
        message: Message,
        record: StepCompleted | StepFailed | StepCompensated | CompensationFailed,
        sender: Sender | None,
        *,
        asked: bool,
    ) -> None:
        work = Work(record.saga_id, record.start, record.step, record.round, getattr(record, "generation", 0))
        if sender is not None and not sender.owns(message.tp):
            self.contended.add(record.saga_id)
        if isinstance(record, StepFailed) and record.failure.code in ("sibling_failed", "saga_cancelled"):
            self.cancelled[record.effect] += 1
        if isinstance(record, StepFailed) and record.failure.code == "undecodable":
            self._triggers[work] += 1  # a damaged copy of a trigger, whose own place is elsewhere in the log
        if asked:  # a damaged copy of a scheduled start is refused in the name of its first steps, too early
            self._answered.add(work)
        says_effect = isinstance(record, StepCompleted) or (isinstance(record, StepCompensated) and record.undone)
        known = (
            record.run in self._runs[work]
            or any(  # an inbox answers every generation with the run that undid it
                record.run in runs for other, runs in self._runs.items() if work.generation and other[:4] == work[:4]
            )
        )
        if says_effect and not known:
            self._violated(
                "S8", record.saga_id, f"{type(record).__name__} of {work} tells of run {record.run}: no such run"
            )

    def _asked(self, contract: Saga, entry: Entry) -> tuple[Work, ...]:
        record = entry.record
        match record:
            case SagaStarted() if record.is_scheduled:
                return ()
            case SagaStarted():
                return tuple(Work(record.saga_id, record.start, step, 1) for step in contract.graph.roots)
            case StepCompleted() if not record.is_late(entry.at_ms):
                next_steps = contract.graph.chained.get(record.step, ())
                return tuple(Work(record.saga_id, record.start, step, record.round) for step in next_steps)
            case Execute():
                return (Work(record.saga_id, record.start, record.step, record.round),)
            case Compensate():
                return (Work(record.saga_id, record.start, record.step, record.round, record.generation),)
        return ()

    def _judge_effects(self, saga_id: str, state: SagaState, *, at_outcome: bool) -> None:
        assert state.outcome is not None, "only what has ended is judged"
        if at_outcome and state.undo and state.outcome.kind == "completed":
            return  # what its parent wants undone is on its way
        stands = state.outcome.kind == "completed" and not state.is_unwanted
        wanted = self._wanted(state) if stands else frozenset()
        name = "S2" if stands else "S3"
        blame = self._weaker_if_needed if at_outcome else self._violated
        when = "at the outcome" if at_outcome else "at the end"
        for key in sorted(wanted):
            if not self._stands(key) and saga_id not in self._by_hand:
                blame(name, saga_id, f"{state.outcome.kind}, but {key} is {self.effects.rows.get(key)} {when}")
        self._judge_children(state, stands=stands, at_outcome=at_outcome)
        for key in self.effects.standing(saga_id):
            row = self.effects.rows[key]
            if key in wanted or not self._can_be_undone(key):
                continue
            if at_outcome and row.start != state.start:
                continue  # a refused start's chain is undone beside the saga
            blame(name, saga_id, f"{state.outcome.kind}, but {key} stands {when}")

    def _wanted(self, state: SagaState) -> frozenset[str]:
        """The keys of the effects that stand while the saga does."""
        contract = self._contracts[self.place_of(state.saga_id).topic]
        return frozenset(
            ids.idempotency_key(state.saga_id, state.start, step, saga_round)
            for step, saga_round in state.standing.items()
            if state.instances[step, saga_round].offer != "taken" and contract[step].child is None
        )

    # Between a saga and those that its steps are

    def _judge_birth(self, record: SagaStarted) -> None:
        """A sub-saga begins once for a step and round, and only when the parent has come to it."""
        assert record.parent is not None, "only those are asked about"
        parent = self.states.get(record.parent.saga_id) or SagaState(record.parent.saga_id)
        place = (record.parent.step, parent.fold_round(record.parent.start, record.parent.round) or 0)
        self._children[parent.saga_id][record.saga_id] = None
        owed = any(each.kind == "execute" and (each.step, each.round) == place for each in parent.owed)
        if not owed and not parent.instance(place).triggered:
            self._violated("S8", record.saga_id, "begins though its parent's step does not")
        if (begun := self.states.get(record.saga_id)) is not None and begun.start not in ("", record.start):
            self._violated("S9", record.saga_id, f"begins as {record.start}, before as {begun.start}")

    def _judge_childs_word(
        self, contract: Saga, record: StepCompleted | StepFailed | StepCompensated | CompensationFailed
    ) -> None:
        """What a parent is told of a sub-saga is what that one's own log says or implies."""
        if not record.run:
            return  # the parent has not waited any longer
        child_id = ids.child_id(contract.name, record.saga_id, record.step, record.round)
        child = self.states.get(child_id) or SagaState(child_id)
        kind = child.outcome.kind if child.outcome else ""
        owed = {each.kind for each in child.owed}
        match record:
            case StepCompleted():
                true = kind == "completed" or "complete" in owed
            case StepFailed(effect="none"):
                true = kind == "compensated" or "compensated" in owed
            case StepCompensated():
                true = child.undo >= record.generation and (
                    child.undo_answered >= record.generation or "undone" in owed
                )
            case _:
                true = True  # it is stuck, or was: its failure is looked at where it happens
        if not true:
            self._violated("S8", record.saga_id, f"{type(record).__name__} of {record.step}, but {child_id} is {child}")

    def _judge_children(self, state: SagaState, *, stands: bool, at_outcome: bool) -> None:
        """What a sub-saga has done stands exactly as long as its parent's step does."""
        contract = self._contracts[self.place_of(state.saga_id).topic]
        standing = {
            ids.child_id(contract.name, state.saga_id, step, saga_round)
            for step, saga_round in (state.standing if stands else {}).items()
            if contract[step].child is not None
        }
        blame = self._weaker_if_needed if at_outcome else self._violated
        for child_id in [*self._children[state.saga_id], *sorted(standing - self._children[state.saga_id].keys())]:
            child = self.states.get(child_id) or SagaState(child_id)
            if child_id in self._by_hand:
                continue
            if child_id in standing:
                missing = [key for key in sorted(self._wanted(child)) if not self._stands(key)]
                if missing or not child.standing or (not at_outcome and child.phase is not Phase.COMPLETED):
                    blame("S2", child_id, f"its parent has completed, but it is {child.phase.value}, without {missing}")
            elif left := [key for key in self.effects.standing(child_id) if self._can_be_undone(key)]:
                blame("S3", child_id, f"its parent's step does not stand, but {', '.join(left)} do")

    def _undo_by_hand(self, record: OperatorActed, before: SagaState) -> None:
        """What an operator says to have undone is undone."""
        if record.act == "skip":
            keys = [Work(record.saga_id, record.start, record.step, record.round).key]
        elif record.act == "resolve":
            places = [(step, *before.wire_round(saga_round)) for step, saga_round in Survey(before).uncompensated]
            keys = [Work(record.saga_id, start, step, saga_round).key for step, start, saga_round in places]
            if before.only_forward:  # what is left is taken as done, whatever a failed run may have made of it
                keys = [key for key in self.effects.standing(record.saga_id) if not self._is_in(before, key)]
            for child_id in self._children[record.saga_id]:  # what is resolved has been undone with all that it is
                self._by_hand.add(child_id)
                keys += self.effects.standing(child_id)
        else:
            return
        self._by_hand.add(record.saga_id)
        for key in keys:
            self._note(f"by hand {key}".encode())
            self.effects.undo(key)

    def _is_in(self, state: SagaState, key: str) -> bool:
        row = row_of(key, "standing")
        return row.start == state.start and state.standing.get(row.step) == row.round

    def _can_be_undone(self, key: str) -> bool:
        return self._compensated[row_of(key, "standing").step]

    def _stands(self, key: str) -> bool:
        row: Row | None = self.effects.rows.get(key)
        return row is not None and row.state == "standing"

    def _look_at_owner(self, process: Process, saga_id: str) -> None:
        if not process.owns(self.place_of(saga_id)):
            self.contended.add(saga_id)

    def _note(self, what: bytes) -> None:
        self.digest.update(b"%d " % self._now_ms())
        self.digest.update(what)

    def _weaker_if_needed(self, what: str, saga_id: str, how: str) -> None:
        family = {saga_id, *([] if (state := self.states.get(saga_id)) is None else _parents(state))}
        if not self.is_strict and family & (self.contended | self.repeated):
            self.weaker[what] += 1
        else:
            self._violated(what, saga_id, how)

    def _violated(self, what: str, about: str, how: str) -> None:
        if self._say:
            self._say(f"VIOLATION {what} {about}: {how}")
        self.violations.append(f"{what} {about}: {how}")


def _parents(state: SagaState) -> tuple[str, ...]:
    return () if state.parent is None else (state.parent.saga_id,)


def _was_asked(record: StepCompleted | StepFailed | StepCompensated | CompensationFailed, state: SagaState) -> bool:
    """Whether a trigger of the step is in the log, or decided."""
    place = (record.step, state.fold_round(record.start, record.round) or 0)
    return isinstance(record, StepCompensated | CompensationFailed) or state.instance(place).triggered


def _work_of(context: Context | CompensationContext) -> Work:
    key, generation = (
        (context.idempotency_key, 0) if isinstance(context, Context) else (context.step_key, context.generation)
    )
    return Work(*row_of(key, "standing")[:4], generation)


def _short(entry: Entry) -> str:
    record = entry.record
    words = [type(record).__name__, record.saga_id]
    for name in ("step", "round", "generation", "effect", "verdict", "undone", "act", "run"):
        value = getattr(record, name, None)
        if value is not None and value is not msgspec.UNSET and not isinstance(value, msgspec.Raw):
            words.append(f"{name}={value}")
    return " ".join(words)
