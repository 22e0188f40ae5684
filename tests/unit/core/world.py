"""A small world around the production core, in which everything that can go wrong goes wrong in every order.

One saga and its partition; saga-log instances that lag behind (first in, first out) or live on as zombies after a
takeover; a worker for each step that takes the records of its lane one at a time, with an inbox or without; an operator
for what is stuck. The partition is not kept: the fold of it is (``folding``), and every record is put into the lanes of
those that react to it as it is appended. Faults cost a budget, so that the world is finite.

A ``Situation`` is everything at one moment, as a value; ``World.moves`` is all that can happen next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from choreo.contract.saga import Saga
from tests.unit.core.folding import OTHER_START, START, Event, Folding, Key, Only, decision_event


class Budget(NamedTuple):
    """How often each fault, and each thing that only some sagas see, may happen."""

    crash: int = 0
    """A worker goes back to any earlier item, a zombie replica runs one too, or a record is appended twice."""
    failure: int = 0
    """A run is rejected, or ends with nobody knowing whether it had an effect."""
    timeout: int = 0
    """The saga-log gives up waiting for a step, or a step completes after its due."""
    cancel: int = 0
    retry: int = 0
    """A compensation answers ``retry``."""
    continues: int = 0
    """A failed step's own compensation answers ``continue``."""
    takeover: int = 0
    """Another saga-log instance takes over while the old one lives on with what it was about to send."""
    undo_failure: int = 0
    """A compensation fails for good, or nobody waits for its answer any longer."""
    second_start: int = 0
    """Somebody starts the same id with another input."""
    act: int = 0
    """An operator skips or resolves what is stuck; to try again costs nothing."""
    settle: int = 0
    """The saga is failing, and the saga-log gives up waiting for a step before the step's own due."""
    pause: int = 0
    """An operator pauses the saga; to resume it costs nothing."""
    signal: int = 0
    """The signal is sent again, by the same call or another one; the first one costs nothing."""


CRASH, FAILURE, TIMEOUT, CANCEL, RETRY, CONTINUES, TAKEOVER, UNDO_FAILURE, SECOND_START, ACT, SETTLE, PAUSE, SIGNAL = (
    range(13)
)


class Habits(NamedTuple):
    """The rules that workers keep. Each can be switched off, to see that it is needed."""

    inbox: bool = True
    lanes: bool = True
    """One record of a step at a time, in log order (rule 3)."""
    scan: bool = True
    """Without an inbox: after a crash, skip what is answered in the log (rule 6)."""
    doubt: bool = True
    """Without an inbox: a reject after an earlier attempt is unknown (rule 5)."""
    keep_failures: bool = True
    """The inbox records final failures too (rule 6)."""
    never_again: bool = True
    """A compensated inbox row answers with a failure, never with a completion (rule 6)."""
    replicas: bool = True
    """A fault may be a second replica at the same item, or a record appended twice."""
    pause: bool = True
    """A trigger behind a pause is dropped."""
    schedule: bool = True
    """A scheduled start triggers nothing."""
    interrupted: bool = True
    """What was cancelled in its middle may have had an effect (rule 25)."""


class Item(NamedTuple):
    """A record that a worker reacts to: a trigger (generation 0) or a ``Compensate``."""

    round: int
    generation: int = 0
    own: bool = False
    answered: bool = False
    settle: bool = False


class Lane(NamedTuple):
    """A worker and the records of its step. ``result`` is what it has done and not yet published.

    Of the rounds in ``cancelled`` it has read that its step need not go on; that may be behind what it does now.
    """

    items: tuple[Item, ...] = ()
    at: int = 0
    result: Event | None = None
    answered: tuple[int, ...] = ()
    cancelled: tuple[int, ...] = ()


class Cell(NamedTuple):
    """What a service knows of one step instance: ``effect`` is standing, undone, never, rejected, or unknown.

    Or how it was cancelled, as the inbox has it: before it did anything, or in the middle.

    What an operator has taken ``by_hand`` is out of the protocol's hands: if the service runs it later all the same,
    its effect is undone, but in no order with what the operator did.
    """

    effect: str = ""
    run: int = 0
    overdue: bool = False
    tried: bool = False
    by_hand: bool = False


class Situation(NamedTuple):
    saga: int
    outbox: tuple[Event, ...]
    zombie_log: tuple[Event, ...] | None
    lanes: tuple[Lane, ...]
    zombies: tuple[tuple[str, Item, Event | None], ...]
    cells: tuple[tuple[Key, Cell], ...]
    told: str
    signalled: bool
    budget: Budget
    wrong: tuple[str, ...]


Change = Callable[["Draft"], None]
Move = tuple[tuple[object, ...], Situation, tuple[Event, ...]]
"""What happens, in words; the situation after it; and the records appended."""


class Draft:
    """A situation while it changes."""

    def __init__(self, world: World, now: Situation) -> None:
        self.world = world
        self.saga = now.saga
        self.outbox = list(now.outbox)
        self.zombie_log = None if now.zombie_log is None else list(now.zombie_log)
        self.lanes = list(now.lanes)
        self.zombies = list(now.zombies)
        self.cells = dict(now.cells)
        self.told = now.told
        self.signalled = now.signalled
        self.budget = list(now.budget)
        self.wrong = set(now.wrong)
        self.log: list[Event] = []

    def freeze(self) -> Situation:
        lanes = self.lanes
        if not self.budget[CRASH]:  # nobody can go back any more: what is behind makes no difference
            lanes = [lane._replace(items=lane.items[lane.at :], at=0) if lane.at else lane for lane in lanes]
        return Situation(
            self.saga,
            tuple(self.outbox),
            None if self.zombie_log is None else tuple(self.zombie_log),
            tuple(lanes),
            tuple(sorted(self.zombies, key=repr)) if self.zombies else (),
            tuple(sorted(self.cells.items())),
            self.told,
            self.signalled,
            Budget(*self.budget),
            tuple(sorted(self.wrong)),
        )

    def pay(self, fault: int) -> None:
        self.budget[fault] -= 1

    def cell(self, key: Key) -> Cell:
        return self.cells.get(key, NO_CELL)

    def append(self, event: Event) -> None:
        """A record is in the log: everybody who reads it learns of it."""
        world = self.world
        self.log.append(event)
        folded = world.folding.fold(self.saga, event)
        if event[0] == "acted" and folded.note is None:
            self._undo_by_hand(event)
        self.saga = folded.state
        self.wrong.update(folded.wrong)
        self.signalled = self.signalled or event[0] == "signal"
        if self.signalled and world.folding.views[self.saga].waiting and not world.folding.views[self.saga].paused:
            self.wrong.add("G1 a step waits for a signal that is in the log")
        self._trigger(event)
        if not world.habits.inbox and world.habits.scan:
            self._mark_answered(event)
        self._owe(folded.owed)
        ready = world.folding.views[self.saga].round_ready
        if ready and ("round", ready) not in self.outbox:
            self._owe((("round", ready),))

    def send(self, box: list[Event]) -> None:
        """A saga-log instance appends the first record of those it has decided."""
        event = box.pop(0)
        if event[0] == "decided" and event[1] in ("complete", "compensated"):
            self._tell(event[1])
        self.append(event)

    def finish(self, n: int) -> None:
        lane = self.lanes[n]
        self.lanes[n] = lane._replace(at=lane.at + 1, result=None)

    def swap(self, n: int) -> None:
        lane = self.lanes[n]
        before, (this, following), after = (
            lane.items[: lane.at],
            lane.items[lane.at : lane.at + 2],
            lane.items[lane.at + 2 :],
        )
        self.lanes[n] = lane._replace(items=(*before, following, this, *after))

    def _owe(self, events: tuple[Event, ...]) -> None:
        self.outbox += events
        if self.zombie_log is not None:
            self.zombie_log += events

    def _push(self, step: str, item: Item) -> None:
        n = self.world.number[step]
        lane = self.lanes[n]
        self.lanes[n] = lane._replace(items=(*lane.items, item))

    def _trigger(self, event: Event) -> None:
        graph = self.world.graph
        if (
            self.world.habits.pause
            and event[0] in ("started", "completed")
            and self.world.folding.views[self.saga].paused
        ):
            return
        match event:
            case ("started", start, _, scheduled) if not (scheduled and self.world.habits.schedule):
                for step in graph.roots:
                    self._push(step, Item(1 if start == START else 0))
            case ("completed", step, saga_round, late, _) if not late:
                for other in graph.chained[step]:
                    self._push(other, Item(saga_round))
            case ("decided", "execute", step, saga_round, *_):
                self._push(step, Item(saga_round))
            case ("decided", "compensate", step, saga_round, generation, _):
                own = self.world.folding.states[self.saga].instances[step, saga_round].own
                self._push(step, Item(saga_round, generation, own))
            case ("decided", "cancel", _, saga_round, *_):
                self._cancel(saga_round)
            case ("decided", "settle", step, saga_round, generation, _):
                self._push(step, Item(saga_round, generation, settle=True))

    def _cancel(self, saga_round: int) -> None:
        """Whoever reads of it knows that the round is lost, also for what is only triggered later."""
        for n, step in enumerate(self.world.steps):
            if step in self.world.contract.cancellable and saga_round not in self.lanes[n].cancelled:
                self.lanes[n] = self.lanes[n]._replace(cancelled=(*self.lanes[n].cancelled, saga_round))

    def _mark_answered(self, event: Event) -> None:
        if event[0] not in ("completed", "failed", "undone"):
            return
        generation = event[3] if event[0] == "undone" else 0
        n = self.world.number[event[1]]
        lane = self.lanes[n]
        items = tuple(
            item._replace(answered=True) if (item.round, item.generation) == (event[2], generation) else item
            for item in lane.items
        )
        answered = lane.answered if generation else tuple(sorted({*lane.answered, event[2]}))
        self.lanes[n] = lane._replace(items=items, answered=answered)

    def _tell(self, kind: str) -> None:
        outcome = "completed" if kind == "complete" else "compensated"
        if self.told and self.told != outcome:
            self.wrong.add("H1 two outcomes")
        if self.told:
            return
        self.told = outcome
        standing = self.world.folding.views[self.saga].standing
        for key, cell in self.cells.items():
            unwanted = outcome == "compensated" or key not in standing
            if key[1] > 0 and cell.effect == "standing" and unwanted and self.world.judges(key, self.cells):
                self.wrong.add(f"W1 effect {key} stands unwanted at the outcome")

    def _undo_by_hand(self, event: Event) -> None:
        _, step, saga_round, _, act = event
        keys: tuple[Key, ...] = ((step, saga_round),) if act == "skip" else ()
        if act == "resolve":
            keys = self.world.folding.views[self.saga].uncompensated
        for key in keys:
            cell = self.cell(key)
            effect = "undone" if cell.effect == "standing" else cell.effect
            self.cells[key] = cell._replace(effect=effect, by_hand=True)


NO_CELL = Cell()
NO_ITEM = Item(0)


class World:
    """The rules of the world: what can happen in each situation."""

    def __init__(
        self,
        contract: Saga,
        habits: Habits,
        only: Mapping[str, Only] = MappingProxyType({}),
        *,
        scheduled: bool = False,
        paused: bool = False,
    ) -> None:
        self.scheduled = scheduled
        self.paused = paused
        self.folding = Folding(contract, only)
        self.contract = contract
        self.graph = contract.graph
        self.habits = habits
        self.number = {step: n for n, step in enumerate(self.graph.before)}
        self.steps = tuple(self.graph.before)

    def start(self, budget: Budget) -> tuple[Situation, tuple[Event, ...]]:
        lanes = tuple(Lane() for _ in self.steps)
        nothing = Situation(self.folding.first, (), None, lanes, (), (), "", False, budget, ())
        draft = Draft(self, nothing)
        if self.paused:
            draft.append(("paused",))
        draft.append(("started", START, "request-1", self.scheduled))
        return draft.freeze(), tuple(draft.log)

    def moves(self, now: Situation) -> list[Move]:
        """Everything that can happen next."""
        found = []
        for label, change in self._changes(now):
            draft = Draft(self, now)
            change(draft)
            found.append((label, draft.freeze(), tuple(draft.log)))
        return found

    def is_quiet(self, now: Situation) -> bool:
        """Nothing more happens unless a client or a fault makes it."""
        return (
            not now.outbox
            and now.zombie_log is None
            and not now.zombies
            and not self.folding.views[now.saga].stuck
            and not self.folding.views[now.saga].waiting
            and not self.folding.views[now.saga].paused
            and all(lane.at == len(lane.items) for lane in now.lanes)
        )

    def wrong_at_the_end(self, now: Situation) -> list[str]:
        """What is wrong with a quiet situation."""
        view = self.folding.views[now.saga]
        if not now.told:
            return ["H4 the saga is lost: nothing can happen, and it has no outcome"]
        found = [] if view.settled else ["H5 the saga is not settled although nothing can happen"]
        standing = {key for key, cell in now.cells if cell.effect == "standing" and self.undoable(key)}
        wanted = set()
        if view.outcome == "completed":
            wanted = {key for key in view.standing if key not in view.substituted and self.undoable(key)}
        found += [f"H2 hanging effect {key} after {view.outcome}" for key in sorted(standing - wanted)]
        found += [f"H2 missing effect {key} after {view.outcome}" for key in sorted(wanted - standing)]
        return found

    def judges(self, key: Key, cells: Mapping[Key, Cell]) -> bool:
        """Whether the order in which this effect comes and goes is the protocol's: nobody has had a hand in it."""
        own = (key[0], *self.graph.ancestors[key[0]])
        return self.undoable(key) and not any(cells.get((step, key[1]), NO_CELL).by_hand for step in own)

    def undoable(self, key: Key) -> bool:
        return self.contract[key[0]].compensation is not None

    def _changes(self, now: Situation) -> Iterator[tuple[tuple[object, ...], Change]]:
        yield from self._saga_log(now)
        yield from self._clients(now)
        yield from self._operator(now)
        yield from self._timers(now)
        yield from self._settle_limit(now)
        for n, step in enumerate(self.steps):
            yield from self._worker(now, n, step)
        yield from self._zombies(now)

    def _saga_log(self, now: Situation) -> Iterator[tuple[tuple[object, ...], Change]]:
        if now.outbox:
            yield ("saga-log sends", now.outbox[0]), lambda draft: draft.send(draft.outbox)
        if now.zombie_log is not None:
            if now.zombie_log:
                yield ("zombie saga-log sends", now.zombie_log[0]), lambda draft: draft.send(draft.zombie_log or [])

            def die(draft: Draft) -> None:
                draft.zombie_log = None

            yield ("zombie saga-log dies",), die
        if now.budget.takeover:
            yield ("another saga-log takes over; the old one still has", now.outbox), self._take_over

    def _take_over(self, draft: Draft) -> None:
        """The new one sends what is owed and not in the log; what the old one sends, it sends beside it."""
        draft.pay(TAKEOVER)
        if draft.zombie_log is None:
            draft.zombie_log = list(draft.outbox)
        state = self.folding.states[draft.saga]
        draft.outbox = [decision_event(decision) for decision in state.owed]
        if ready := self.folding.views[draft.saga].round_ready:
            draft.outbox.append(("round", ready))

    def _clients(self, now: Situation) -> Iterator[tuple[tuple[object, ...], Change]]:
        if self.folding.views[now.saga].paused:
            yield ("operator resumes",), lambda draft: draft.append(("resumed",))
        elif now.budget.pause:

            def pause(draft: Draft) -> None:
                draft.pay(PAUSE)
                draft.append(("paused",))

            yield ("operator pauses",), pause
        if now.budget.cancel:

            def cancel(draft: Draft) -> None:
                draft.pay(CANCEL)
                draft.append(("cancelled", f"cancel-{draft.budget[CANCEL]}"))

            yield ("client cancels",), cancel
        if now.budget.crash and self.habits.replicas:

            def resend(draft: Draft) -> None:
                draft.pay(CRASH)
                draft.append(("started", START, "request-3", self.scheduled))

            yield ("client starts the saga again",), resend
        if now.budget.second_start:

            def start(draft: Draft) -> None:
                draft.pay(SECOND_START)
                draft.append(("started", OTHER_START, "request-2", False))

            yield ("client starts the id with another input",), start
        yield from self._signals(now)

    def _signals(self, now: Situation) -> Iterator[tuple[tuple[object, ...], Change]]:
        """The first one comes at any time before the outcome and costs nothing."""
        if not self.contract.signals:
            return
        if not now.signalled and not self.folding.views[now.saga].outcome:
            yield ("client signals",), lambda draft: draft.append(("signal", "signal-1"))
        if now.budget.signal:
            for request in ("signal-1", "signal-2"):

                def again(draft: Draft, request: str = request) -> None:
                    draft.pay(SIGNAL)
                    draft.append(("signal", request))

                yield ("client signals, out of turn, by", request), again

    def _operator(self, now: Situation) -> Iterator[tuple[tuple[object, ...], Change]]:
        for step, saga_round, generation in self.folding.views[now.saga].stuck:
            for act in ("retry", "skip", "resolve") if now.budget.act else ("retry",):

                def operate(draft: Draft, event: Event = ("acted", step, saga_round, generation, act)) -> None:
                    if event[4] != "retry":
                        draft.pay(ACT)
                    draft.append(event)

                yield ("operator", act, step, saga_round, generation), operate

    def _timers(self, now: Situation) -> Iterator[tuple[tuple[object, ...], Change]]:
        view = self.folding.views[now.saga]
        for key in view.waiting:
            if not view.paused and not self.folding.states[now.saga].only_forward:
                yield (
                    ("saga-log gives up waiting for the signal of", key),
                    lambda draft, key=key: draft.append(("no_signal", *key)),
                )
        if now.budget.timeout and not view.outcome:
            for key in view.in_flight:

                def time_out(draft: Draft, key: Key = key) -> None:
                    draft.pay(TIMEOUT)
                    if key[0] not in self.contract.forward_only:
                        draft.cells[key] = draft.cell(key)._replace(overdue=True)
                    draft.append(("timed_out", *key))

                yield ("saga-log gives up waiting for", key), time_out
        if now.budget.undo_failure:
            for awaited in view.awaiting:

                def give_up(draft: Draft, awaited: tuple[str, int, int] = awaited) -> None:
                    draft.pay(UNDO_FAILURE)
                    draft.append(("undo_timed_out", *awaited))

                yield ("saga-log gives up waiting for the compensation of", awaited), give_up

    def _settle_limit(self, now: Situation) -> Iterator[tuple[tuple[object, ...], Change]]:
        view = self.folding.views[now.saga]
        for key in view.in_flight if now.budget.settle and view.settles_early else ():

            def give_up(draft: Draft, key: Key = key) -> None:
                draft.pay(SETTLE)
                draft.append(("settle_limit", *key))

            yield ("saga-log gives up before its due on", key), give_up

    # ------------------------------------------------------------------------------------------------ the workers

    def _worker(self, now: Situation, n: int, step: str) -> Iterator[tuple[tuple[object, ...], Change]]:
        lane = now.lanes[n]
        if lane.at < len(lane.items):
            yield from self._next_item(now, n, step, lane)
        if now.budget.crash:
            for back in range(lane.at, -1, -1):
                if (back == lane.at and lane.result is None) or not lane.items:
                    continue

                def crash(draft: Draft, back: int = back) -> None:
                    draft.pay(CRASH)
                    answered = {item.round for item in lane.items[back:] if item.answered and not item.generation}
                    draft.lanes[n] = Lane(lane.items, back, None, tuple(sorted(answered)), lane.cancelled)

                yield (step, "crashes with", lane.result, "unpublished, back by", lane.at - back), crash

    def _next_item(self, now: Situation, n: int, step: str, lane: Lane) -> Iterator[tuple[tuple[object, ...], Change]]:
        item = lane.items[lane.at]
        replicas = now.budget.crash and self.habits.replicas
        if lane.result is not None:
            yield from self._publish_lane(now, n, step, lane.result)
            if replicas:

                def lag(draft: Draft) -> None:
                    draft.pay(CRASH)
                    draft.lanes[n] = lane._replace(result=None)
                    draft.zombies.append((step, NO_ITEM, lane.result))

                yield (step, "is a zombie now and will publish", lane.result), lag
            return
        if not self.habits.lanes and lane.at + 1 < len(lane.items):
            yield (step, "lets", lane.items[lane.at + 1], "overtake", item), lambda draft: draft.swap(n)
        if not self.habits.inbox and ((item.answered and self.habits.scan) or self._is_answered(lane, item)):
            yield (step, "skips what is answered", item), lambda draft: draft.finish(n)
            return
        for label, result, change in self._handle(now, step, item):

            def run(draft: Draft, result: Event = result, change: Change = change) -> None:
                change(draft)
                draft.lanes[n] = draft.lanes[n]._replace(result=result)

            yield label, run
        if replicas:

            def double(draft: Draft) -> None:
                draft.pay(CRASH)
                draft.zombies.append((step, item, None))

            yield (step, "has a zombie replica that will take too", item), double

    def _is_answered(self, lane: Lane, item: Item) -> bool:
        return not item.generation and item.round in lane.answered

    def _publish_lane(
        self, now: Situation, n: int, step: str, result: Event
    ) -> Iterator[tuple[tuple[object, ...], Change]]:
        for label, event, change in self._publish(now, step, result):

            def publish(draft: Draft, event: Event = event, change: Change = change) -> None:
                change(draft)
                draft.finish(n)
                draft.append(event)

            yield label, publish
            if now.budget.crash and self.habits.replicas:

                def twice(draft: Draft, event: Event = event, change: Change = change) -> None:
                    draft.pay(CRASH)
                    change(draft)
                    draft.finish(n)
                    draft.append(event)
                    draft.append(event)

                yield (*label, "TWICE"), twice

    def _zombies(self, now: Situation) -> Iterator[tuple[tuple[object, ...], Change]]:
        for i, (step, item, result) in enumerate(now.zombies):
            if result is None:
                for label, done, change in self._handle(now, step, item):

                    def run(draft: Draft, i: int = i, done: Event = done, change: Change = change) -> None:
                        change(draft)
                        draft.zombies[i] = (draft.zombies[i][0], NO_ITEM, done)

                    yield ("zombie", *label), run
            else:
                for label, event, change in self._publish(now, step, result):

                    def publish(draft: Draft, i: int = i, event: Event = event, change: Change = change) -> None:
                        del draft.zombies[i]
                        change(draft)
                        draft.append(event)

                    yield ("zombie", *label), publish

    def _handle(self, now: Situation, step: str, item: Item) -> Iterator[tuple[tuple[object, ...], Event, Change]]:
        if item.settle:
            settled: Event = ("undone", step, item.round, item.generation, "proceed", False)
            return iter([((step, "has settled"), settled, _nothing)])
        if item.generation:
            return self._compensate(now, step, item)
        return self._run(now, step, item.round)

    def _run(self, now: Situation, step: str, saga_round: int) -> Iterator[tuple[tuple[object, ...], Event, Change]]:
        """A run of a handler: what it may return, and what the service then knows."""
        key = (step, saga_round)
        cell = dict(now.cells).get(key, NO_CELL)
        outcomes = self._with_inbox(now, cell) if self.habits.inbox else self._without_inbox(now, cell)
        if saga_round in now.lanes[self.number[step]].cancelled:
            outcomes += self._cancelled(cell)
        run = cell.run + (0 if self.habits.inbox and cell.effect else 1)
        for ended, effect, cost in outcomes:

            def change(draft: Draft, effect: str = effect, cost: int = cost) -> None:
                draft.budget[FAILURE] -= cost
                draft.cells[key] = cell._replace(effect=effect, run=run, tried=not self.habits.inbox)
                if effect == "standing" and cell.effect != "standing" and self.judges(key, draft.cells):
                    self._check_new_effect(draft, key)

            yield (step, "runs in round", saga_round, ended), ("ran", saga_round, ended, run), change

    def _cancelled(self, cell: Cell) -> list[tuple[str, str, int]]:
        """What else a run comes to that is cancelled: before it has begun, or in the middle, with an effect or without.

        It may have ended all the same, or its worker, restarted, knows nothing of the command yet.
        """
        if self.habits.inbox:
            kinds = [("cancelled-none", "cancelled", 0), ("cancelled-unknown", "interrupted", 0)]
            return [] if cell.effect else kinds
        doubted = cell.tried or cell.effect
        never_ran = "cancelled-unknown" if doubted and self.habits.doubt else "cancelled-none"
        interrupted = "cancelled-unknown" if self.habits.interrupted else "cancelled-none"
        return [(never_ran, cell.effect, 0), (interrupted, cell.effect or "standing", 0)]

    def _with_inbox(self, now: Situation, cell: Cell) -> list[tuple[str, str, int]]:
        recorded = {
            "standing": "completed",
            "undone": "none" if self.habits.never_again else "completed",
            "never": "none",
            "rejected": "none",
            "unknown": "unknown",
            "cancelled": "cancelled-none",
            "interrupted": "cancelled-unknown",
        }
        if cell.effect:
            return [(recorded[cell.effect], cell.effect, 0)]
        if not now.budget.failure:
            return [("completed", "standing", 0)]
        kept = self.habits.keep_failures
        return [
            ("completed", "standing", 0),
            ("none", "rejected" if kept else "", 1),
            ("unknown", "unknown" if kept else "", 1),
        ]

    def _without_inbox(self, now: Situation, cell: Cell) -> list[tuple[str, str, int]]:
        completed = ("completed", cell.effect or "standing", 0)
        if not now.budget.failure:
            return [completed]
        rejected = "unknown" if cell.tried and self.habits.doubt else "none"
        return [
            completed,
            (rejected, cell.effect, 1),
            ("unknown", cell.effect, 1),
            ("unknown", cell.effect or "standing", 1),
        ]

    def _check_new_effect(self, draft: Draft, key: Key) -> None:
        step, saga_round = key
        if saga_round > 0 and self.contract[step].await_signal is not None and not draft.signalled:
            draft.wrong.add(f"G2 effect {key} made before the signal")
        if saga_round > 0 and self.folding.views[draft.saga].scheduled:
            draft.wrong.add(f"B1 effect {key} made before the saga has begun")
        if draft.told and saga_round > 0:
            draft.wrong.add(f"W2 effect {key} made after the outcome")
        substituted = self.folding.views[draft.saga].substituted
        for other in self.graph.before[step]:
            before = (other, saga_round)
            cell = draft.cell(before)
            if cell.effect == "undone" and not cell.by_hand and before not in substituted:
                draft.wrong.add(f"W3 effect {key} built on {before}, which is undone")

    def _compensate(self, now: Situation, step: str, item: Item) -> Iterator[tuple[tuple[object, ...], Event, Change]]:
        """A run of a compensation: its verdict, or a failure that has undone the effect all the same, or not."""
        key = (step, item.round)
        cell = dict(now.cells).get(key, NO_CELL)
        there = cell.effect in ("standing", "undone")
        for ending, cost, undoes in self._endings(now, item, cell):

            def change(draft: Draft, cost: int | None = cost, undoes: bool = undoes) -> None:
                if cost is not None:
                    draft.pay(cost)
                if cell.effect == "standing" and undoes:
                    draft.cells[key] = cell._replace(effect="undone")
                    self._check_order(draft, key)
                elif self.habits.inbox and cell.effect in ("", "unknown", "interrupted"):
                    draft.cells[key] = cell._replace(effect="never")

            label = (step, "compensates round", item.round, "generation", item.generation, ending, undoes)
            if ending == "fails":
                yield label, ("undo_failed", step, item.round, item.generation), change
            else:
                yield label, ("undone", step, item.round, item.generation, ending, there), change

    def _endings(self, now: Situation, item: Item, cell: Cell) -> Iterator[tuple[str, int | None, bool]]:
        """How a compensation may end, which budget that costs, and whether an effect is gone then."""
        yield "proceed", None, True
        if now.budget.retry:
            yield "retry", RETRY, True
        if now.budget.continues and item.own:
            yield "continue", CONTINUES, True
        if now.budget.undo_failure:
            yield "fails", UNDO_FAILURE, False
            if cell.effect == "standing":
                yield "fails", UNDO_FAILURE, True

    def _check_order(self, draft: Draft, key: Key) -> None:
        for other, cell in draft.cells.items():
            if cell.effect == "standing" and self.judges(other, draft.cells) and self._builds_on(draft, other, key):
                draft.wrong.add(f"H3 {key} undone while {other} stands, which builds on it")

    def _builds_on(self, draft: Draft, later: Key, earlier: Key) -> bool:
        """By the services' own knowledge, and the log's of what was skipped: the same round, or a later one in which
        ``earlier`` was not decided anew.
        """
        if later[0] not in self.graph.descendants[earlier[0]] or later[1] < earlier[1]:
            return False
        if later[1] == earlier[1]:
            return True
        skipped = self.folding.views[draft.saga].skipped
        return earlier[1] > 0 and not any(
            (earlier[0], between) in draft.cells or (earlier[0], between) in skipped
            for between in range(earlier[1] + 1, later[1] + 1)
        )

    def _publish(self, now: Situation, step: str, result: Event) -> Iterator[tuple[tuple[object, ...], Event, Change]]:
        """The answer as a record: for a completion on time or, where its due has passed, late."""
        if result[0] != "ran":
            yield (step, "publishes", result), result, _nothing
            return
        _, saga_round, ended, run = result
        if ended != "completed":
            yield (step, "publishes", *result), ("failed", step, saga_round, ended, run), _nothing
            return
        key = (step, saga_round)
        overdue = dict(now.cells).get(key, NO_CELL).overdue
        if not overdue:
            yield (step, "publishes", *result), ("completed", step, saga_round, False, run), _nothing
        if overdue or (now.budget.timeout and step not in self.contract.forward_only):

            def late(draft: Draft) -> None:
                if not overdue:
                    draft.pay(TIMEOUT)
                    draft.cells[key] = draft.cell(key)._replace(overdue=True)

            yield (step, "publishes late", *result), ("completed", step, saga_round, True, run), late


def _nothing(_draft: Draft) -> None:
    pass
