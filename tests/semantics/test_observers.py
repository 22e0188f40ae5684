"""What users of Sage know of its handler of compensation errors, its final hooks and its tracers (``rows``)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from choreo.contract import Retries, Step
from choreo.inbox import Inbox
from choreo.observe.events import AttemptEnded, AttemptEvent, OutcomeEvent
from choreo.step import CompensationError, Resolved, RetryLater, Service, Stuck
from tests.semantics.play import Behaviour, Play, aborts, hangs, in_turn, raises, rejects, sleeps, undoes, works
from tests.semantics.world import BrokerWorld, RunnerWorld

World = RunnerWorld | BrokerWorld

ONCE = Retries(0)
LINE = (
    Step("a", "undo_a"),
    Step("b", "undo_b", timeout="200ms", compensation_retries=ONCE),
    Step("c", "undo_c", timeout="200ms"),
)

WRONG = {
    "exception": raises(ConnectionError("the bank is closed")),
    "exit": raises(SystemExit(1)),
    "timeout": hangs,
    "malformed answer": lambda _: "what is this?",
}

# S18


def handled_by(answer: Callable[[CompensationError], Any], asked: list[CompensationError]) -> Callable[[Play], None]:
    """The service of b asks this when its compensation has failed."""

    def prepare(play: Play) -> None:
        @play.service("b").on_compensation_error(play.saga)
        async def handle(event: CompensationError) -> Any:
            asked.append(event)
            return answer(event)

    return prepare


@pytest.mark.parametrize("name", WRONG)
async def test_s18_a_handler_may_resolve_the_error_and_the_way_back_goes_on(world: World, name: str) -> None:
    def resolve(event: CompensationError) -> Resolved:
        ledger = world.plays[0].ledger
        if "b" in ledger.standing(event.saga_id):
            ledger.undo_by_hand(event.saga_id, "b")
        return Resolved()

    asked: list[CompensationError] = []
    play = await world.play(*LINE, do={"c": rejects()}, undo={"b": WRONG[name]}, prepare=handled_by(resolve, asked))
    await play.fails()
    assert play.order("undo") == ["b", "a"]
    assert play.story == "+a +b -b -a"
    assert len(asked) == 1


async def test_s18_it_gets_the_error_and_what_remains_to_be_undone(world: World) -> None:
    asked: list[CompensationError] = []
    play = await world.play(
        *LINE, do={"c": rejects()}, undo={"b": WRONG["exception"]}, prepare=handled_by(lambda _: Stuck(), asked)
    )
    await play.start({"attrs": 1})
    await play.is_stuck()
    (event,) = asked
    assert isinstance(event.error, ConnectionError)
    assert (event.step, event.failure.message, event.attempts) == ("b", "the bank is closed", 1)
    assert event.remaining == ("a",)
    assert (event.context.input, event.context.effect) == ({"attrs": 1}, "b 1")


async def test_s18_it_may_ask_for_another_try_later(world: World) -> None:
    asked: list[CompensationError] = []
    play = await world.play(
        *LINE,
        do={"c": rejects()},
        undo={"b": in_turn(WRONG["exception"], undoes)},
        prepare=handled_by(lambda _: RetryLater("300ms"), asked),
    )
    await play.fails()
    first, second = play.called("undo", "b")
    assert second.at_ms - first.at_ms >= 300
    assert play.story == "+a +b -b -a"


async def test_s18_a_crash_in_it_leaves_the_saga_stuck(world: World) -> None:
    def crash(_: CompensationError) -> None:
        raise ValueError("worse and worse")

    asked: list[CompensationError] = []
    play = await world.play(
        *LINE, do={"c": rejects()}, undo={"b": WRONG["exception"]}, prepare=handled_by(crash, asked)
    )
    await play.start()
    status = await play.is_stuck()
    assert status.remaining == ("b", "a")
    assert play.order("undo") == ["b"]


async def test_s18_without_one_older_compensations_are_not_run(world: World) -> None:
    play = await world.play(*LINE, do={"c": rejects()}, undo={"b": WRONG["exception"]})
    await play.start()
    await play.is_stuck()
    assert play.order("undo") == ["b"]


async def test_s18_it_works_where_an_older_step_has_no_effect(world: World) -> None:
    # Sage cannot list what is left where an older stage has failed by an exception.
    fork = (
        Step("a", "undo_a"),
        Step("b", "undo_b", after="a", compensation_retries=ONCE),
        Step("c", "undo_c", after="a"),
    )
    asked: list[CompensationError] = []
    play = await world.play(
        *fork,
        do={"b": sleeps(0.2), "c": raises(ValueError())},
        undo={"b": WRONG["exception"]},
        prepare=handled_by(lambda _: Stuck(), asked),
    )
    await play.start()
    await play.is_stuck()
    (event,) = asked
    assert event.remaining[-1] == "a"


# S19


class Hooks:
    """Hooks of every outcome, in a service of their own and in one that runs a step."""

    def __init__(self) -> None:
        self.told: list[tuple[str, OutcomeEvent]] = []

    def __call__(self, play: Play) -> None:
        audit = Service(play._world.named("audit"))
        for name, hook in (("first", self.hook("first")), ("broken", self.breaks), ("last", self.hook("last"))):
            audit.on_outcome(play.saga, name=name)(hook)
        play.service("a").on_outcome(play.saga)(self.hook("a"))
        play.services.append(audit)

    def hook(self, name: str) -> Callable[[OutcomeEvent], Any]:
        async def hook(event: OutcomeEvent) -> None:
            self.told.append((name, event))

        return hook

    async def breaks(self, event: OutcomeEvent) -> None:
        self.told.append(("broken", event))
        raise SystemExit("a hook must harm nobody")

    def of(self, saga_id: str) -> set[str]:
        return {name for name, event in self.told if event.saga_id == saga_id}

    async def all_of(self, world: World, saga_id: str) -> OutcomeEvent:
        """Wait until all have run for the saga, and return what they were told."""
        await world.until(lambda: self.of(saga_id) == {"first", "broken", "last", "a"})
        events = [event for _, event in self.told if event.saga_id == saga_id]
        assert len({(event.outcome, event.cancelled, event.resolved) for event in events}) == 1
        return events[0]


async def test_s19_hooks_run_when_a_saga_completes(world: World) -> None:
    hooks = Hooks()
    play = await world.play(*LINE, prepare=hooks)
    await play.run()
    event = await hooks.all_of(world, play.saga_id)
    assert (event.outcome, event.effects) == ("completed", {"a": "a 1", "b": "b 1", "c": "c 1"})


@pytest.mark.parametrize("behaviour", [rejects("no"), aborts("no"), raises(ValueError("no"))])
async def test_s19_hooks_run_when_a_saga_fails(world: World, behaviour: Behaviour) -> None:
    hooks = Hooks()
    play = await world.play(*LINE, do={"c": behaviour}, prepare=hooks)
    await play.fails()
    event = await hooks.all_of(world, play.saga_id)
    assert (event.outcome, event.cancelled, event.step) == ("compensated", False, "c")
    assert event.failure is not None
    assert event.failure.message == "no"


async def test_s19_hooks_run_when_a_saga_is_cancelled(world: World) -> None:
    hooks = Hooks()
    play = await world.play(*LINE, do={"a": sleeps(0.2)}, prepare=hooks)
    await play.start()
    await play.is_called("do", "a")
    await world.cancel(play.saga, play.saga_id, reason="enough")
    await play.ends_compensated()
    event = await hooks.all_of(world, play.saga_id)
    assert (event.outcome, event.cancelled, event.reason) == ("compensated", True, "enough")


async def test_s19_hooks_run_when_a_stuck_saga_is_resolved_and_not_before(world: World) -> None:
    # Sage runs none once a compensation has crashed.
    hooks = Hooks()
    play = await world.play(*LINE, do={"c": rejects()}, undo={"b": WRONG["exception"]}, prepare=hooks)
    await play.start()
    await play.is_stuck()
    assert hooks.told == []
    play.ledger.undo_by_hand(play.saga_id, "b")
    await world.act(play.saga, play.saga_id, "skip", "b")
    await play.ends_compensated()
    event = await hooks.all_of(world, play.saga_id)
    assert (event.outcome, event.resolved) == ("compensated", True)


async def test_s19_a_hook_runs_again_if_it_was_killed(world: World) -> None:
    begun: list[str] = []

    async def hook(event: OutcomeEvent) -> None:
        begun.append(event.saga_id)
        if len(begun) == 1:
            await asyncio.Event().wait()

    def prepare(play: Play) -> None:
        audit = Service(play._world.named("audit"))
        audit.on_outcome(play.saga)(hook)
        play.services.append(audit)

    play = await world.play(Step("a"), prepare=prepare)
    await play.run()
    await world.until(lambda: begun)
    await world.kill("audit")
    await world.revive("audit")
    await world.until(lambda: begun == [play.saga_id] * 2)


async def test_s19_an_inbox_remembers_that_a_hook_has_run(world: World, tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/audit.db")
    told: list[str] = []

    def prepare(play: Play) -> None:
        audit = Service(play._world.named("audit"), inbox=Inbox(engine, create_tables=True))
        audit.on_outcome(play.saga, name="file")(lambda event: told.append(event.saga_id))
        play.services.append(audit)

    def remembered() -> Any:
        with engine.connect() as connection:
            return connection.exec_driver_sql("SELECT count(*) FROM choreo_inbox").scalar()

    play = await world.play(Step("a"), prepare=prepare)
    await play.run()
    await world.until(lambda: told and remembered())
    await world.kill("audit")
    await world.revive("audit")
    await play.run()
    await world.until(lambda: len(told) == 2)
    assert told[0] != told[1]
    engine.dispose()


# S20


class Tracer:
    """Remembers what it is told, and that a state comes back with its own attempt."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []
        self.ended: list[AttemptEnded] = []
        self.outcomes: list[OutcomeEvent] = []

    def __call__(self, play: Play) -> None:
        for service in play.services:
            service.trace(self)

    def before_step(self, event: AttemptEvent) -> str:
        return self._begins("step", event)

    def after_step(self, event: AttemptEnded, state: str) -> None:
        self._ends("step", event, state)

    def before_compensation(self, event: AttemptEvent) -> str:
        return self._begins("compensation", event)

    def after_compensation(self, event: AttemptEnded, state: str) -> None:
        self._ends("compensation", event, state)

    def on_outcome(self, event: OutcomeEvent) -> None:
        self.outcomes.append(event)

    def _begins(self, what: str, event: AttemptEvent) -> str:
        self.told.append((f"before {what}", event.step, event.attempt))
        return f"{event.step}/{event.attempt}"

    def _ends(self, what: str, event: AttemptEnded, state: str) -> None:
        assert state == f"{event.step}/{event.attempt}"
        self.told.append((f"after {what}", event.step, event.attempt))
        self.ended.append(event)


async def test_s20_tracers_are_told_before_and_after_every_step_and_compensation(world: World) -> None:
    tracer = Tracer()
    play = await world.play(
        Step("a", "undo_a"),
        Step("b", "undo_b", after="a"),
        Step("c", "undo_c", after="a"),
        Step("d", after=("b", "c")),
        do={"d": rejects()},
        prepare=tracer,
    )
    await play.fails()
    await world.until(lambda: len(tracer.outcomes) == 4)
    assert Counter(tracer.told) == Counter(
        [
            *((f"{when} step", step, 1) for when in ("before", "after") for step in "abcd"),
            *((f"{when} compensation", step, 1) for when in ("before", "after") for step in "abc"),
        ]
    )
    for step in "abcd":
        assert tracer.told.index(("before step", step, 1)) < tracer.told.index(("after step", step, 1))


async def test_s20_each_attempt_is_told_with_how_it_ended(world: World) -> None:
    tracer = Tracer()
    retries = Retries(3, backoff_ms_base=10)
    behaviour = in_turn(raises(ConnectionError("away")), hangs, works)
    play = await world.play(Step("a", timeout="200ms", retries=retries), do={"a": behaviour}, prepare=tracer)
    await play.run()
    assert [(event.attempt, event.result, event.is_last) for event in tracer.ended] == [
        (1, "crashed", False),
        (2, "timed_out", False),
        (3, "ok", True),
    ]
    assert tracer.ended[0].failure is not None
    assert tracer.ended[0].failure.message == "away"
    assert tracer.ended[1].duration_s >= 0.2
    assert tracer.ended[2].effect is not None


async def test_s20_tracers_are_told_of_the_outcome(world: World) -> None:
    tracer = Tracer()
    play = await world.play(Step("a"), prepare=tracer)
    outcome = await play.run()
    await world.until(lambda: tracer.outcomes)
    assert [(event.outcome, event.saga_id) for event in tracer.outcomes] == [("completed", outcome.saga_id)]


class Broken:
    """Fails in everything."""

    def before_step(self, _: AttemptEvent) -> None:
        raise ValueError("no")

    def after_step(self, _: AttemptEnded, __: Any) -> None:
        raise SystemExit("no")

    def before_compensation(self, _: AttemptEvent) -> None:
        raise KeyError("no")

    def after_compensation(self, _: AttemptEnded, __: Any) -> None:
        raise ValueError("no")

    def on_outcome(self, _: OutcomeEvent) -> None:
        raise ValueError("no")


async def test_s20_a_tracer_that_crashes_harms_nobody_and_is_counted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    # In Sage the crash is not logged, and its error becomes the state of the next tracer.
    tracer = Tracer()

    def prepare(play: Play) -> None:
        for service in play.services:
            service.trace(Broken())
        tracer(play)

    play = await world.play(*LINE, do={"c": in_turn(rejects(), works)}, prepare=prepare)
    await play.fails(id="bad")
    await play.run(id="good")
    assert len(tracer.ended) == 8
    assert "tracer Broken failed in before_step" in caplog.text
    counted = sum(
        sample.value
        for metric in world.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "choreo_observer_errors_total"
    )
    assert counted >= 16
