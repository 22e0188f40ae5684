"""Whether each record of a log could be there, judged by the records before it. No I/O.

The fold says which decisions every prefix of the log implies, so a decision's record is sound if it was owed just then
and says what ``record_of`` makes of the state before it; or if it was owed earlier and is said late: a saga-log that is
killed, or waits for the broker, appends what it has decided a while after, when more is known. An outcome or answer is
sound if something before it asked for it, and if what it passes on (input, effects, due) is what it was given. What is
missing shows in what comes after: an answer to what was never said, an outcome without its trigger; and at the end in
what is still owed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import chain

import msgspec

from choreo.audit.decisions import decision_said
from choreo.audit.findings import Fault, FaultKind, Notice, NoticeKind
from choreo.audit.veiled import is_veiled, says_the_same, veiled
from choreo.broker.port import Message, TopicPartition
from choreo.contract.policy import NO_DUE_MS
from choreo.contract.saga import Saga
from choreo.core import Decision, SagaState, fold, next_due_ms, record_of
from choreo.core.commands import NULL
from choreo.core.due import WAITED_FOR_SIGNAL
from choreo.core.order import context_of
from choreo.core.state import Key
from choreo.ids import child_start_hash, start_hash
from choreo.messages.family import SagaUndone
from choreo.messages.headers import CE_TYPE
from choreo.messages.records import (
    TYPE_BY_TAG,
    CancelRefused,
    CancelStep,
    Compensate,
    CompensationFailed,
    Execute,
    Record,
    RoundStarted,
    SagaCompensated,
    SagaCompleted,
    SagaStarted,
    SagaStuck,
    StartRefused,
    StepCompensated,
    StepCompleted,
    StepFailed,
    StepRecord,
    StepSkipped,
)
from choreo.messages.writers import CONTEXT_TOO_LARGE, Writer, writer_of
from choreo.saga_log.outbound import SOURCE
from choreo.saga_log.window import Folding

KEPT = 1_000
EARLIER_MAX = 32
"""States of a saga in which something was owed: what a late decision may have been made in."""

_DECISIONS = (
    Execute,
    StepSkipped,
    CancelStep,
    Compensate,
    SagaStuck,
    SagaCompleted,
    SagaCompensated,
    SagaUndone,
    StartRefused,
    CancelRefused,
)
_SAGA_LOG = SOURCE.encode()
_TAGS = {kind: tag for tag, kind in TYPE_BY_TAG.items()}


class Judge:
    """Judges the records of one partition. ``message`` is told of all, ``record`` of those that are folded.

    Attributes:
        faults, notices: the first ``KEPT`` of each.
        faults_total, notices_total: how many there were, by kind.
    """

    def __init__(self, tp: TopicPartition, *, first: int) -> None:
        """Begin before the record at ``first``; if that is 0, retention has deleted nothing yet."""
        self.faults: list[Fault] = []
        self.notices: list[Notice] = []
        self.faults_total: Counter[FaultKind] = Counter()
        self.notices_total: Counter[NoticeKind] = Counter()
        self._tp = tp
        self._whole = first == 0
        self._said: dict[str, dict[str, bytes]] = {}
        self._repeated: set[str] = set()
        self._startless: set[str] = set()
        self._known: set[tuple[str | int, ...]] = set()
        self._earlier: dict[str, deque[SagaState]] = {}
        self._next = first
        self._at_ms = 0

    def message(self, message: Message) -> None:
        """Judge the place of a message: offsets follow each other, append times do not fall."""
        if message.offset != self._next:
            missing = message.offset - self._next
            text = f"{missing} records before it are not in the log" if missing > 0 else "it is not in order"
            self._fault("gap", message.offset, "", text)
        if message.timestamp_ms < self._at_ms:
            text = f"appended {self._at_ms - message.timestamp_ms} ms before the record in front of it"
            self._fault("time_fell", message.offset, (message.key or b"").decode("utf-8", "replace"), text)
        self._next, self._at_ms = message.offset + 1, max(self._at_ms, message.timestamp_ms)

    def unreadable(self, offset: int, saga_id: str, why: str) -> None:
        """A message could not be folded, because it is no record."""
        self._fault("unreadable", offset, saga_id, why)

    def other_root(self, first: int, end: int) -> None:
        """A sealed segment does not have the root that was published for it."""
        self._fault("root_differs", first, "", f"offsets {first} to {end} are not what was sealed there")

    def odd_checkpoint(self, offset: int, why: str) -> None:
        """A record among the published checkpoints is none, or does not follow the one before it."""
        self._fault("root_differs", -1, "", f"the checkpoint at offset {offset} of its topic does not count: {why}")

    def waits(self, offset: int, saga_id: str, why: str) -> None:
        """A saga cannot be folded from there on, because its contract is not registered."""
        self._notice("waiting", offset, saga_id, why)

    def record(self, each: Folding) -> None:
        """Judge a record by the state before it."""
        record, offset = each.entry.record, each.entry.offset
        if record.saga_id != each.before.saga_id:
            return  # a pause of all sagas of the type: an operator's act, which is folded into each of them
        self._label(each.message, record)
        # What is encrypted anew says the same in other bytes.
        comparable = veiled(record) if b"encrypted" in each.message.value else record
        is_first = self._is_said_first(comparable, offset)
        if each.folded.note == "before_start":
            self._without_start(record, offset)
        elif is_first:
            self._content(each)
        if each.before.owed or each.before.round_ready or each.before.scheduled:
            self._earlier.setdefault(record.saga_id, deque(maxlen=EARLIER_MAX)).append(each.before)

    def forget(self, saga_id: str) -> None:
        """The saga is let go."""
        self._earlier.pop(saga_id, None)
        self._said.pop(saga_id, None)
        self._repeated.discard(saga_id)

    def end(self, contract: Saga | None, state: SagaState, now_ms: int, patience_ms: int) -> None:
        """Judge what a saga still owes at the end of the log."""
        if contract is None or not state.started:
            return
        age_ms = now_ms - state.updated_ms
        for decision in state.owed:
            what = _words(decision)
            if age_ms > patience_ms:
                self._fault("missing", -1, state.saga_id, f"{what} is decided since offset {state.offset} and not said")
            else:
                self._notice("pending", state.offset, state.saga_id, f"{what} is decided and not said yet")
        due_ms = next_due_ms(contract, state)
        if due_ms is not None and due_ms + patience_ms < now_ms:
            text = f"a timer was to fire {now_ms - due_ms} ms ago, and nothing says that it did"
            self._fault("overdue", -1, state.saga_id, text)

    # Single judgements

    def _label(self, message: Message, record: Record) -> None:
        expected = {
            "ce_id": record.id.encode(),
            "ce_type": CE_TYPE[type(record)],
            "choreo_start": record.start.encode(),
        }
        if isinstance(record, StepRecord):
            expected |= {"choreo_step": record.step.encode(), "choreo_round": b"%d" % record.round}
        headers = dict(reversed(message.headers))  # of a repeated name the first counts
        for name, value in expected.items():
            if headers.get(name) != value:
                text = f"its header {name} is {headers.get(name)!r}, the record says {value!r}"
                self._fault("mislabelled", message.offset, record.saga_id, text)
                break
        if _is_saga_logs(record) and headers.get("ce_source") != _SAGA_LOG:
            text = f"{_name(record)} is for the saga-log to say, {headers.get('ce_source')!r} has written it"
            self._fault("impostor", message.offset, record.saga_id, text)

    def _is_said_first(self, record: Record, offset: int) -> bool:
        said = self._said.setdefault(record.saga_id, {})
        digest = blake2b(msgspec.json.encode(_lasting(record)), digest_size=8).digest()
        before = said.setdefault(record.id, digest)
        if before is digest:
            return True
        if before == digest:
            self._repeated.add(record.saga_id)
            self._notice("repeated", offset, record.saga_id, f"{record.id} is said again")
        elif not _is_a_timer(record):
            self._fault("contradiction", offset, record.saga_id, f"{record.id} was said before, with another content")
        return False

    def _without_start(self, record: Record, offset: int) -> None:
        if record.saga_id in self._startless:
            return
        self._startless.add(record.saga_id)
        text = f"{_name(record)} of a saga whose start is not in the log"
        if self._whole:
            self._fault("headless", offset, record.saga_id, text)
        else:
            self._notice("truncated", offset, record.saga_id, text)

    def _content(self, each: Folding) -> None:
        record, before = each.entry.record, each.before
        decided = self._decided(each)
        if (latest := next(decided, None)) is not None:
            self._as_decided(each, latest, decided)
        elif isinstance(record, _DECISIONS):
            decision = decision_said(before, record)
            what = _name(record) if decision is None else _words(decision)
            self._fault("undecided", each.entry.offset, record.saga_id, f"nothing before it implies it: {what}")
        elif isinstance(record, SagaStarted):
            self._start(each, record)
        elif isinstance(record, RoundStarted):
            if each.folded.note == "stale" and not self._was_to_begin(each):
                text = f"nothing before it asks for round {record.round}"
                self._fault("undecided", each.entry.offset, record.saga_id, text)
        elif isinstance(record, StepCompleted | StepFailed | StepCompensated | CompensationFailed):
            self._outcome(each, record)
        elif each.folded.note in ("not_decided", "unknown_start", "unknown_step"):
            text = f"nothing before it implies it: {_name(record)}"
            self._fault("undecided", each.entry.offset, record.saga_id, text)

    def _decided(self, each: Folding) -> Iterator[tuple[SagaState, Record]]:
        """The states in which the record was owed, the latest first, and what it was to say in each."""
        states: Iterable[SagaState] = (each.before,)
        if isinstance(each.entry.record, _DECISIONS):
            states = chain(states, reversed(self._earlier.get(each.before.saga_id, ())))
        for state in states:
            for decision in state.owed:
                if (wanted := record_of(each.contract, state, decision)).id == each.entry.record.id:
                    yield state, wanted

    def _was_to_begin(self, each: Folding) -> bool:
        """Whether the round that is begun was asked for, before something else came first."""
        earlier = self._earlier.get(each.before.saga_id, ())
        return any(fold(each.contract, state, each.entry).note != "stale" for state in earlier)

    def _as_decided(
        self, each: Folding, latest: tuple[SagaState, Record], earlier: Iterator[tuple[SagaState, Record]]
    ) -> None:
        if each.entry.content_type != each.before.content_type:
            self._altered(each, "it is written in another codec than its saga")
        elif (text := _difference(each, *latest)) is not None and all(_difference(each, *one) for one in earlier):
            self._altered(each, text)

    def _start(self, each: Folding, record: SagaStarted) -> None:
        encoded, parent = bytes(record.input), record.parent
        named = start_hash(encoded, not_before_ms=record.not_before_ms, delay_ms=record.delay_ms)
        if parent is not None:
            named = child_start_hash(parent.saga, parent.saga_id, parent.start, encoded)
        if record.start != named and not is_veiled(record.input):
            self._altered(each, "its input and its time do not have the hash that it names")

    def _outcome(
        self, each: Folding, record: StepCompleted | StepFailed | StepCompensated | CompensationFailed
    ) -> None:
        before, offset = each.before, each.entry.offset
        saga_round = before.fold_round(record.start, record.round)
        if record.step not in each.contract or saga_round is None or saga_round > before.round:
            self._fault(
                "unasked", offset, record.saga_id, f"no such step, round or start: {_name(record)} {record.step}"
            )
            return
        key = (record.step, saga_round)
        if isinstance(record, StepCompensated | CompensationFailed):
            asked = 0 < record.generation <= before.instance(key).generation
            awaited = [Decision(kind, *key, record.generation) for kind in ("compensate", "settle")]
        else:
            asked = before.instance(key).triggered or (not record.run and before.waits_for_signal(key))
            awaited = [Decision("execute", *key)]
        if not asked:
            text = f"nothing in the log has asked for it: {_name(record)} of {record.step}"
            self._fault("unasked" if record.run else "undecided", offset, record.saga_id, text)
        elif each.contract[record.step].child is not None:
            return  # its saga's log says how it came to this; and that may be quicker than our own command's message
        elif isinstance(record, StepFailed) and not record.run and record.failure.code == WAITED_FOR_SIGNAL:
            return  # said late: the signal has come meanwhile, so that nothing answers the command yet
        elif record.run != CONTEXT_TOO_LARGE and any(one in before.owed for one in awaited):
            text = f"{_words(awaited[0])} is answered, and its record is not in the log before"
            self._fault("missing", offset, record.saga_id, text)
        elif isinstance(record, StepCompleted):
            self._completion(each, record, key)

    def _completion(self, each: Folding, record: StepCompleted, key: Key) -> None:
        before, instance = each.before, each.before.instance(key)
        if each.entry.content_type == before.content_type:
            if not says_the_same(record.input, before.lineage(key[1])[0]):
                self._altered(each, "its input is not that of its start")
            context = context_of(each.contract, before, key)
            if not says_the_same(record.effects, context) and not _ran_twice(before, context):
                self._altered(each, "the effects that it builds on are not those in the log")
            if instance.effect is not None and f"completed:{record.run}" not in instance.runs:
                self._second_run(each, record, instance.effect)
        # A trigger that is in the log twice was perhaps handled at its second place, and has a later due there.
        due_ms = NO_DUE_MS if record.step in each.contract.forward_only else instance.due_ms
        if instance.due_ms and record.due_ms != due_ms and record.saga_id not in self._repeated:
            self._altered(each, f"its due is {record.due_ms}, that of its trigger {due_ms}")

    def _second_run(self, each: Folding, record: StepCompleted, effect: bytes) -> None:
        self._repeated.add(record.saga_id)
        about = f"step {record.step} has completed in two runs"
        if says_the_same(record.effect, effect):
            self._notice("ran_twice", each.entry.offset, record.saga_id, f"{about}, with equal effects")
        else:
            text = f"{about}, and the effects differ: its handler does not hold to the idempotency key"
            self._fault("effect_twice", each.entry.offset, record.saga_id, text)

    def _altered(self, each: Folding, text: str) -> None:
        self._fault("altered", each.entry.offset, each.entry.record.saga_id, text)

    def _fault(self, kind: FaultKind, offset: int, saga_id: str, text: str) -> None:
        if self._is_new(kind, offset, saga_id, text):
            self.faults_total[kind] += 1
            if len(self.faults) < KEPT:
                fault = Fault(kind=kind, partition=self._tp.partition, offset=offset, saga_id=saga_id, text=text)
                self.faults.append(fault)

    def _notice(self, kind: NoticeKind, offset: int, saga_id: str, text: str) -> None:
        if self._is_new(kind, offset, saga_id, text):
            self.notices_total[kind] += 1
            if len(self.notices) < KEPT:
                notice = Notice(kind=kind, partition=self._tp.partition, offset=offset, saga_id=saga_id, text=text)
                self.notices.append(notice)

    def _is_new(self, *found: str | int) -> bool:
        """Sagas that are folded in a second pass show the same again."""
        if found in self._known:
            return False
        if len(self._known) < 10 * KEPT:
            self._known.add(found)
        return True


def _is_saga_logs(record: Record) -> bool:
    return writer_of(_TAGS[type(record)], run=getattr(record, "run", "")) is Writer.SAGA_LOG


def _is_a_timer(record: Record) -> bool:
    """What a timer appends says each time how things are then; the first that is not too early counts."""
    return isinstance(record, StepFailed | CompensationFailed) and not record.run


def _lasting(record: Record) -> Record:
    """The record without what the saga-log may say otherwise the second time, because more is known by then."""
    match record:
        case Compensate() | SagaStuck():
            return msgspec.structs.replace(record, remaining=())
        case CancelRefused():
            return msgspec.structs.replace(record, reason="")
        case CancelStep():
            return msgspec.structs.replace(record, failed=None)
    return record


def _difference(each: Folding, state: SagaState, wanted: Record) -> str | None:
    """What the record says otherwise than was decided in that state."""
    record, content_type = each.entry.record, state.content_type
    for field in type(wanted).__struct_fields__:
        ours, theirs = getattr(record, field), getattr(wanted, field)
        if isinstance(ours, msgspec.Raw) and is_veiled(ours) and bytes(theirs) == NULL[content_type]:
            continue  # a saga-log that has the keys encrypts what it says itself, too
        if not says_the_same(ours, theirs) and not _may_differ(record, field, ours, theirs, content_type):
            return f"{_name(record)}.{field} is {_short(ours)}, decided was {_short(theirs)}"
    return None


def _may_differ(record: Record, field: str, ours: object, theirs: object, content_type: str) -> bool:
    """Whether two instances of the saga-log may say this field differently, or one shortens what is too large."""
    match record, field:
        case (Compensate() | SagaStuck(), "remaining") | (CancelRefused(), "reason") | (CancelStep(), "failed"):
            return True
        case SagaCompleted(), "effects":
            return ours == {}
        case SagaCompleted(), "result":
            return bytes(record.result) == NULL[content_type] and not record.effects
        case SagaCompensated(), "compensations":
            return ours == ()
        case (SagaCompensated() | SagaStuck(), "failure"):
            shortened = getattr(ours, "message", ""), getattr(ours, "traceback", None)
            full = getattr(theirs, "message", "")
            return full.startswith(shortened[0]) and shortened[1] is None and len(shortened[0]) < len(full)
    return False


def _ran_twice(state: SagaState, context: dict[str, bytes]) -> bool:
    """Whether one of the effects was returned by two runs: a successor may have seen either."""
    return any(
        sum(run.startswith("completed:") for run in instance.runs) > 1
        for (step, _), instance in state.instances.items()
        if step in context
    )


def _name(record: Record) -> str:
    return type(record).__name__


def _words(decision: Decision) -> str:
    generation = f" ({decision.generation})" if decision.generation > 1 else ""
    return f"{decision.kind} {decision.step}".rstrip() + generation


def _short(value: object) -> str:
    text = bytes(value).decode("utf-8", "replace") if isinstance(value, bytes | msgspec.Raw) else repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
