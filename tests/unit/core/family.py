"""Two sagas at once, one a step of the other, with the production fold of both: every order of events (rule 19).

The parent is ``a``, the child, ``c``, or the last two side by side; the child is ``x``, ``y``. Each saga has its log,
its saga-log and its workers. Services are simple here: they answer once, and what they know is their effect. What is
looked at is what crosses:
a saga-log says something in the other log, then in its own, and it may die in between, or live on beside its successor;
then all that is owed is said again. Faults cost a budget.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from choreo.contract.saga import Saga, Step
from choreo.core import Decision, Entry, SagaState, fold, record_of, said_elsewhere, timers
from choreo.core.survey import Survey
from choreo.messages.family import UndoRequested
from choreo.messages.records import (
    AnyRecord,
    CancelRequested,
    Compensate,
    CompensationFailed,
    Execute,
    Failure,
    OperatorActed,
    SagaCompleted,
    SagaStarted,
    StepCompensated,
    StepCompleted,
    StepFailed,
    StepRecord,
)

NOW_MS = 1_000_000
DEADLINE_MS = 60_000
LATER_MS = NOW_MS + 10 * DEADLINE_MS
PARENT_ID = "p"

CHILD = Saga("child", Step("x", "undo_x"), Step("y", "undo_y"), deadline="1h")
PARENT = Saga("parent", Step("a", "undo_a"), Step("s", saga=CHILD, deadline=60), Step("c", "undo_c"), deadline="1h")
BESIDE = Saga(
    "parent",
    Step("a", "undo_a"),
    Step("s", saga=CHILD, deadline=60, on_sibling_failure="cancel"),
    Step("c", "undo_c", after="a"),
    deadline="1h",
)
PIVOTED = Saga("child", Step("x", "undo_x"), Step("y", pivot=True), deadline="1h")
PAST_PIVOT = Saga("parent", Step("a", "undo_a"), Step("s", saga=PIVOTED), Step("c", forward_retries=1), deadline="1h")
CHILD_ID = "parent/p/s/1"
DONE = b'"done"'


class Budget(NamedTuple):
    """How often each may happen."""

    failure: int = 0
    """A step is rejected."""
    undo_failure: int = 0
    """A compensation fails for good; to try it again costs nothing."""
    act: int = 0
    """An operator has the parent ask for the child's undoing again."""
    cancel: int = 0
    """Somebody cancels the parent."""
    child_cancel: int = 0
    """Somebody cancels the child."""
    timeout: int = 0
    """The parent gives up waiting for the child, or for its undoing."""
    crash: int = 0
    """A saga-log dies between what it says elsewhere and what it says in its own log, or says all it owes again."""


class Situation(NamedTuple):
    """Everything at one moment: of each saga the number of its state, what is to be sent, what workers have to do."""

    states: tuple[int, int]
    outbox: tuple[tuple[Decision, ...], tuple[Decision, ...]]
    work: tuple[tuple[tuple[Any, ...], ...], tuple[tuple[Any, ...], ...]]
    effects: tuple[tuple[tuple[int, str, int], str], ...]
    budget: Budget
    wrong: tuple[str, ...]


class Family:
    """The rules of this small world."""

    def __init__(self, parent: Saga, child: Saga, *, elsewhere_first: bool = True) -> None:
        self.elsewhere_first = elsewhere_first
        self.contracts = (parent, child)
        self.ids = (PARENT_ID, CHILD_ID)
        self.states: list[SagaState] = []
        self._numbers: dict[bytes, int] = {}

    def start(self, budget: Budget) -> Situation:
        numbers = tuple(self._intern(SagaState(saga_id=saga_id)) for saga_id in self.ids)
        now = Situation((numbers[0], numbers[1]), ((), ()), ((), ()), (), budget, ())
        start = SagaStarted(
            saga="parent",
            version=1,
            saga_id=PARENT_ID,
            start="a" * 16,
            contract_hash=self.contracts[0].content_hash,
            request="r",
            saga_deadline_ms=self.contracts[0].deadline_ms,
            input=msgspec.Raw(b"1"),
        )
        return self._append(now, start)

    def state(self, now: Situation, who: int) -> SagaState:
        return self.states[now.states[who]]

    def moves(self, now: Situation) -> Iterator[tuple[str, Situation]]:
        for who in (0, 1):
            yield from self._saga_log(now, who)
            yield from self._workers(now, who)
            yield from self._operator(now, who)
        yield from self._clients(now)
        yield from self._timers(now)

    def is_quiet(self, now: Situation) -> bool:
        """Nothing more happens unless somebody wants it; what is stuck waits for somebody."""
        states = [self.state(now, who) for who in (0, 1)]
        waits = any(state.round_ready or any(i.stuck for i in state.instances.values()) for state in states)
        return not any(now.outbox) and not any(now.work) and not waits

    def wrong_at_the_end(self, now: Situation) -> list[str]:
        parent, child = self.state(now, 0), self.state(now, 1)
        if parent.outcome is None:
            return ["H4 the parent is lost: nothing can happen, and it has no outcome"]
        found = [f"H5 saga {who} is not settled" for who, one in ((0, parent), (1, child)) if not _settled(one)]
        found += [f"H6 saga {who} owes something" for who, one in ((0, parent), (1, child)) if one.owed]
        standing = {key for key, state in now.effects if state == "standing"}
        if parent.outcome.kind == "compensated":
            found += [f"H2 {key} stands, and the parent is compensated" for key in standing if self._undoable(key)]
        elif {key[1] for key in standing} != {"a", "x", "y", "c"}:
            found.append(f"H2 only {standing} stand, and the parent is completed")
        return found

    def _undoable(self, key: tuple[int, str, int]) -> bool:
        return self.contracts[key[0]][key[1]].compensation is not None

    # What can happen

    def _saga_log(self, now: Situation, who: int) -> Iterator[tuple[str, Situation]]:
        outbox = now.outbox[who]
        state, contract = self.state(now, who), self.contracts[who]
        if outbox:
            decision = outbox[0]
            elsewhere = said_elsewhere(contract, state, decision)
            said = now if elsewhere is None else self._append(now, elsewhere)
            sent = said._replace(outbox=_put(said.outbox, who, said.outbox[who][1:]))
            yield f"saga-log {who} says {decision}", self._append(sent, record_of(contract, state, decision))
            if elsewhere is not None and now.budget.crash and not self.elsewhere_first:
                lost = _pay(now, "crash")
                lost = self._append(lost, record_of(contract, state, decision))
                owed = self.state(lost, who).owed
                yield (
                    "saga-log dies before it has said it elsewhere",
                    lost._replace(outbox=_put(lost.outbox, who, owed)),
                )
            elif elsewhere is not None and now.budget.crash:
                again = _pay(said, "crash")
                owed = self.state(again, who).owed
                yield (
                    f"saga-log {who} dies after it has said {type(elsewhere).__name__} elsewhere",
                    again._replace(outbox=_put(again.outbox, who, owed)),
                )
                late = _pay(sent, "crash")
                late = self._append(late, record_of(contract, state, decision))
                yield (
                    f"saga-log {who} says {decision}, and its successor says elsewhere again",
                    self._append(late, elsewhere),
                )

    def _workers(self, now: Situation, who: int) -> Iterator[tuple[str, Situation]]:
        done = dict(now.effects)
        for number, (kind, step, saga_round, generation) in enumerate(now.work[who]):
            rest = now.work[who][:number] + now.work[who][number + 1 :]
            if any(other[1:3] == (step, saga_round) for other in now.work[who][:number]):
                continue  # one at a time, in order
            key = (who, step, saga_round)
            left = now._replace(work=_put(now.work, who, rest))
            if kind == "run":
                known = done.get(key)
                if known in ("never", "undone", "rejected"):  # an inbox says again what it has recorded
                    kind_of = "rejected" if known == "rejected" else "cancelled"
                    yield f"{key} answers again", self._append(left, self._failed(who, step, saga_round, kind_of))
                    continue
                made = self._effect(left, key, "standing")
                yield f"{key} completes", self._append(made, self._completed(who, step, saga_round))
                if now.budget.failure and known is None:
                    fails = self._effect(_pay(left, "failure"), key, "rejected")
                    yield f"{key} is rejected", self._append(fails, self._failed(who, step, saga_round, "rejected"))
            else:
                there = done.get(key) == "standing"
                gone = self._effect(left, key, "undone" if there else done.get(key, "never"))
                answer = self._record(
                    StepCompensated, who, step, saga_round, generation=generation, run="u", undone=there
                )
                yield f"{key} is undone", self._append(gone, answer)
                if now.budget.undo_failure:
                    failed = self._record(
                        CompensationFailed,
                        who,
                        step,
                        saga_round,
                        generation=generation,
                        run="u",
                        failure=Failure(kind="crashed"),
                    )
                    yield f"undoing {key} fails", self._append(_pay(left, "undo_failure"), failed)

    def _operator(self, now: Situation, who: int) -> Iterator[tuple[str, Situation]]:
        for (step, saga_round), instance in self.state(now, who).instances.items():
            if instance.stuck and (step != "s" or now.budget.act):
                before = _pay(now, "act") if step == "s" else now
                act = self._record(
                    OperatorActed,
                    who,
                    step,
                    saga_round,
                    act="retry",
                    generation=instance.generation,
                    request="o",
                    operator="o",
                    reason="r",
                )
                yield f"operator retries {who} {step}", self._append(before, act)

    def _clients(self, now: Situation) -> Iterator[tuple[str, Situation]]:
        for who, what in ((0, "cancel"), (1, "child_cancel")):
            if getattr(now.budget, what):
                paid = _pay(now, what)
                record = CancelRequested(
                    saga=self.contracts[who].name,
                    version=1,
                    saga_id=self.ids[who],
                    start="0" * 16,
                    request=f"c{getattr(paid.budget, what)}",
                )
                yield f"client cancels {who}", self._append(paid, record)

    def _timers(self, now: Situation) -> Iterator[tuple[str, Situation]]:
        for who in (0, 1):
            state = self.state(now, who)
            for timer in timers(self.contracts[who], state) if state.round_ready else ():
                yield f"saga {who} begins its next round", self._append(now, timer.record, timer.at_ms)
        if not now.budget.timeout:
            return
        parent = self.state(now, 0)
        for (step, saga_round), instance in parent.instances.items():
            if step != "s":
                continue
            if instance.in_flight and instance.due_ms:
                record = self._record(StepFailed, 0, step, saga_round, failure=Failure(kind="timed_out"))
                yield "the parent gives up waiting", self._append(_pay(now, "timeout"), record, LATER_MS)
            if instance.awaits_answer and instance.compensation_due_ms:
                gave_up = self._record(
                    CompensationFailed,
                    0,
                    step,
                    saga_round,
                    generation=instance.generation,
                    failure=Failure(kind="timed_out"),
                )
                yield "the parent gives up on the undoing", self._append(_pay(now, "timeout"), gave_up, LATER_MS * 2)

    # What happens then

    def _append(self, now: Situation, record: AnyRecord, at_ms: int = NOW_MS) -> Situation:
        who = 0 if record.saga == "parent" else 1
        if record.saga_id != self.ids[who]:
            return now._replace(wrong=(*now.wrong, f"X1 a record of saga {record.saga_id}"))
        before = self.state(now, who)
        entry = Entry(record, before.offset + 1, at_ms)
        after, owed, note = fold(self.contracts[who], before, entry)
        wrong = set(now.wrong)
        if note in ("not_decided", "unknown_step", "unknown_start"):
            wrong.add(f"D1 {type(record).__name__} is {note}")
        if before.outcome is not None and after.outcome != before.outcome:
            wrong.add("H1 an outcome changed")
        if isinstance(record, StepCompleted | SagaCompleted) and _result_of(record) != DONE:
            wrong.add(f"S9 a {type(record).__name__} tells another result than before")
        work = now.work[who]
        for item in self._asked(who, record):
            work = (*work, item)
        return now._replace(
            states=_put(now.states, who, self._intern(after)),
            outbox=_put(now.outbox, who, (*now.outbox[who], *owed)),
            work=_put(now.work, who, work),
            wrong=tuple(sorted(wrong)),
        )

    def _asked(self, who: int, record: AnyRecord) -> list[tuple[Any, ...]]:
        graph = self.contracts[who].graph
        if isinstance(record, SagaStarted):
            return [("run", step, 1, 0) for step in graph.roots]
        if not isinstance(record, StepRecord) or isinstance(record, UndoRequested):
            return []
        if isinstance(record, StepCompleted):
            return [("run", step, record.round, 0) for step in graph.chained[record.step]]
        if self.contracts[who][record.step].child is not None:
            return []
        if isinstance(record, Execute):
            return [("run", record.step, record.round, 0)]
        if isinstance(record, Compensate):
            return [("undo", record.step, record.round, record.generation)]
        return []

    def _effect(self, now: Situation, key: tuple[int, str, int], state: str) -> Situation:
        effects = dict(now.effects)
        wrong = set(now.wrong)
        if state == "undone":
            wrong.update(
                f"H3 {key} undone while {other} stands"
                for other, how in effects.items()
                if how == "standing" and self._after(other, key)
            )
        effects[key] = state
        return now._replace(effects=tuple(sorted(effects.items())), wrong=tuple(sorted(wrong)))

    def _after(self, later: tuple[int, str, int], earlier: tuple[int, str, int]) -> bool:
        """By the contracts, where the child's steps are in the place of the step that it is."""
        descendants = self.contracts[0].graph.descendants
        if later[0] == earlier[0]:
            is_after = later[1] in self.contracts[later[0]].graph.descendants[earlier[1]]
        else:
            is_after = later[1] in descendants["s"] if earlier[0] else "s" in descendants[earlier[1]]
        return self._undoable(later) and is_after

    def _record(self, kind: Callable[..., Any], who: int, step: str, saga_round: int, **fields: Any) -> Any:
        return kind(
            saga=self.contracts[who].name,
            version=1,
            saga_id=self.ids[who],
            start=self._start_of(who),
            step=step,
            round=saga_round,
            **fields,
        )

    def _start_of(self, who: int) -> str:
        return "a" * 16 if who == 0 else next(state.start for state in self.states if state.saga == "child")

    def _completed(self, who: int, step: str, saga_round: int) -> StepCompleted:
        record: StepCompleted = self._record(
            StepCompleted,
            who,
            step,
            saga_round,
            run="r",
            due_ms=2**52,
            saga_due_ms=2**52,
            input=msgspec.Raw(b"1"),
            effects={},
            effect=msgspec.Raw(DONE),
        )
        return record

    def _failed(self, who: int, step: str, saga_round: int, kind: Any) -> StepFailed:
        failure = Failure(kind=kind)
        record: StepFailed = self._record(StepFailed, who, step, saga_round, run="f", failure=failure, effect="none")
        return record

    def _intern(self, state: SagaState) -> int:
        state = msgspec.structs.replace(state, offset=0, updated_ms=NOW_MS, undone=(), failing_since_ms=0)
        frozen = msgspec.msgpack.encode(state)
        if frozen not in self._numbers:
            self._numbers[frozen] = len(self.states)
            self.states.append(state)
        return self._numbers[frozen]


def _result_of(record: StepCompleted | SagaCompleted) -> bytes:
    return bytes(record.effect if isinstance(record, StepCompleted) else record.result)


def _settled(state: SagaState) -> bool:
    return not state.started or (state.is_settled and Survey(state).is_settled)


def _put(pair: tuple[Any, Any], who: int, value: Any) -> tuple[Any, Any]:
    return (value, pair[1]) if who == 0 else (pair[0], value)


def _pay(now: Situation, what: str) -> Situation:
    return now._replace(budget=now.budget._replace(**{what: getattr(now.budget, what) - 1}))


class Explored(NamedTuple):
    """How many situations there were, whether all, and what was wrong, with the shortest way to it."""

    situations: int
    complete: bool
    wrong: dict[str, tuple[str, list[str]]]


def explore(
    parent: Saga, child: Saga, budget: Budget, *, elsewhere_first: bool = True, situations_max: int = 100_000
) -> Explored:
    """Breadth first, until everything was seen or something is wrong."""
    world = Family(parent, child, elsewhere_first=elsewhere_first)
    first = world.start(budget)
    parents: dict[Situation, tuple[Situation, str] | None] = {first: None}
    todo = deque([first])
    wrong: dict[str, tuple[str, list[str]]] = {}
    while todo and len(parents) <= situations_max and not wrong:
        now = todo.popleft()
        messages = list(now.wrong)
        if world.is_quiet(now):
            messages += world.wrong_at_the_end(now)
        for message in messages:
            way = []
            at: Situation = now
            while (step := parents[at]) is not None:
                at, label = step
                way.append(label)
            wrong.setdefault(message[:2], (message, way[::-1]))
        for label, following in world.moves(now):
            if following not in parents:
                parents[following] = (now, label)
                todo.append(following)
    return Explored(len(parents), not todo, wrong)
