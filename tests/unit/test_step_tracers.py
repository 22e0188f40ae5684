"""Tracers: what they are told, what they may return, and that nothing they do harms a saga."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from choreo import ids
from choreo.contract import Retries, Saga, Step
from choreo.errors import DefinitionError
from choreo.messages.records import CompensationFailed, StepCompensated, StepCompleted, StepFailed
from choreo.observe.events import AttemptEnded, AttemptEvent
from choreo.step import CompensationContext, Context, Options, Reject, Service
from tests.unit.step_world import (
    Running,
    World,
    compensate,
    completed,
    make_world,
    payment,
    raw,
    running,
    value,
)

AT_ONCE = Retries(2, backoff_ms_base=1, backoff_ms_max=1)
SHORT = Options(
    poll_timeout_s=0.02, commit_interval_s=0.02, drain_timeout_s=5, shutdown_timeout_s=5, observer_timeout_s=0.05
)
PARENT = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
CHILD = "00-" + "a" * 32 + "-" + "c" * 16 + "-01"


class Notes:
    """A tracer that writes everything down."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.states: list[Any] = []

    def before_step(self, event: AttemptEvent) -> str:
        self.told.append(("before_step", event))
        return f"state of attempt {event.attempt}"

    def after_step(self, event: AttemptEnded, state: Any) -> None:
        self.told.append(("after_step", event))
        self.states.append(state)

    async def before_compensation(self, event: AttemptEvent) -> str:
        self.told.append(("before_compensation", event))
        return f"state of undoing {event.attempt}"

    async def after_compensation(self, event: AttemptEnded, state: Any) -> None:
        self.told.append(("after_compensation", event))
        self.states.append(state)


async def charged(
    tracers: list[Any], step: Any = None, options: Options = SHORT, traceparent: bytes | None = None
) -> StepCompleted | StepFailed:
    """The answer of the step charge_card in a service with these tracers."""
    world = await make_world()
    service = payment(step)
    for tracer in tracers:
        service.trace(tracer)
    async with running(world, service, options=options):
        await world.send(completed(), **({} if traceparent is None else {"traceparent": traceparent}))
        return (await world.answers((StepCompleted, StepFailed)))[0]


async def test_a_tracer_is_told_before_and_after_an_attempt() -> None:
    notes = Notes()
    answer = await charged([notes], traceparent=PARENT.encode())
    (before, event), (after, ended) = notes.told
    assert (before, after) == ("before_step", "after_step")
    assert (event.service, event.group, event.saga, event.version) == ("payment", "choreo.payment", "order", 1)
    assert (event.saga_id, event.step, event.round, event.generation, event.attempt) == ("s-1", "charge_card", 1, 0, 1)
    assert (event.run, event.traceparent, event.topic) == (answer.run, PARENT, "choreo.order")
    assert (event.partition, event.offset, event.message_id) == (0, 0, completed().id)
    assert event.idempotency_key == ids.idempotency_key("s-1", answer.start, "charge_card", 1)
    assert (ended.result, ended.effect, ended.failure, ended.is_last) == ("ok", b'{"charge":"c-1"}', None, True)
    assert ended.duration_s >= 0
    assert notes.states == ["state of attempt 1"]


async def test_every_attempt_of_a_run_is_told_with_a_state_of_its_own() -> None:
    notes = Notes()
    saga = Saga("order", Step("charge_card", retries=AT_ONCE))
    service = Service("payment", tracers=[notes])

    @service.step(saga, "charge_card")
    async def charge(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise LookupError("no card")
        raise Reject("declined", "declined")

    world = await make_world(saga)
    async with running(world, service):
        await world.start(contract=saga)
        answer = await world.answer(StepFailed)
    ended = [event for what, event in notes.told if what == "after_step"]
    assert [(event.attempt, event.result, event.is_last) for event in ended] == [
        (1, "crashed", False),
        (2, "rejected", True),
    ]
    assert [event.failure.kind for event in ended] == ["crashed", "rejected"]
    assert ended[1].failure == answer.failure
    assert notes.states == ["state of attempt 1", "state of attempt 2"]


async def test_compensations_are_told_with_their_generation() -> None:
    notes = Notes()
    world = await make_world()

    def refund(ctx: CompensationContext) -> None:
        raise OSError("gateway")

    service = payment(undo=refund)
    service.trace(notes)
    async with running(world, service):
        await world.send(compensate(generation=3))
        await world.answer(CompensationFailed)
    (before, event), (after, ended) = notes.told
    assert (before, after) == ("before_compensation", "after_compensation")
    assert (event.step, event.generation, ended.result, ended.effect) == ("charge_card", 3, "crashed", None)
    assert notes.states == ["state of undoing 1"]


async def test_an_effect_that_cannot_be_sent_is_told_as_the_failure_that_it_is() -> None:
    notes = Notes()
    await charged([notes], lambda: object())
    ended = notes.told[1][1]
    assert (ended.result, ended.effect, ended.failure.code) == ("crashed", None, "unencodable_effect")


async def test_several_tracers_wrap_an_attempt_like_brackets() -> None:
    order: list[str] = []

    class Bracket:
        def __init__(self, name: str) -> None:
            self.name = name

        async def before_step(self, event: AttemptEvent) -> None:
            order.append(f"{self.name}(")

        async def after_step(self, event: AttemptEnded, state: None) -> None:
            order.append(f"){self.name}")

    await charged([Bracket("outer"), Bracket("inner")], lambda: order.append("handler"))
    assert order == ["outer(", "inner(", "handler", ")inner", ")outer"]


@pytest.mark.parametrize("handler_is_async", [False, True])
async def test_a_handler_sees_the_context_variables_of_async_tracers(handler_is_async: bool) -> None:
    span = ContextVar("span", default="none")

    class Spans:
        async def before_step(self, event: AttemptEvent) -> None:
            span.set(f"span of {event.step}")

    async def charge_async() -> str:
        return span.get()

    answer = await charged([Spans()], charge_async if handler_is_async else lambda: span.get())
    assert isinstance(answer, StepCompleted)
    assert bytes(answer.effect) == b'"span of charge_card"'


async def test_a_tracers_trace_context_goes_to_the_handler_and_on_with_the_answer() -> None:
    class Child:
        async def before_step(self, event: AttemptEvent) -> str:
            assert event.traceparent == PARENT
            return CHILD

        def traceparent(self, state: str) -> str:
            return state

    world = await make_world()
    service = payment(lambda ctx: ctx.traceparent)
    service.trace(Child())
    async with running(world, service):
        await world.send(completed(), traceparent=PARENT.encode())
        answer = await world.answer(StepCompleted)
        (entry,) = [entry for entry in await world.log() if entry.record.id == answer.id]
    assert bytes(answer.effect) == f'"{CHILD}"'.encode()
    assert entry.message.header("traceparent") == CHILD.encode()


class Raising:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def before_step(self, event: AttemptEvent) -> None:
        raise self.error

    async def after_step(self, event: AttemptEnded, state: Any) -> None:
        assert state is None
        raise self.error

    def traceparent(self, state: Any) -> str:
        return "nonsense"


@pytest.mark.parametrize("error", [KeyError("x"), StopIteration(), SystemExit(1), asyncio.CancelledError()])
async def test_a_tracer_that_raises_is_counted_and_logged_and_harms_nothing(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    world, notes = await make_world(), Notes()
    service = payment()
    service.trace(Raising(error))
    service.trace(notes)
    async with running(world, service) as handle:
        await world.send(completed(), traceparent=PARENT.encode())
        answer = await world.answer(StepCompleted)
        assert value(handle, "choreo_observer_errors_total", kind="tracer") == 3
        (entry,) = [entry for entry in await world.log() if entry.record.id == answer.id]
    assert entry.message.header("traceparent") == PARENT.encode(), "a malformed one is not handed on"
    assert [what for what, _ in notes.told] == ["before_step", "after_step"], "the others are told all the same"
    assert [line.getMessage() for line in caplog.records if line.levelno == logging.ERROR] == [
        "tracer Raising failed in before_step, which is ignored",
        "tracer Raising failed in traceparent, which is ignored",
        "tracer Raising failed in after_step, which is ignored",
    ]


def errors_of(handle: Running) -> float | None:
    return value(handle, "choreo_observer_errors_total", kind="tracer")


async def all_charged(world: World, count: int) -> None:
    for number in range(count):
        await world.send(completed(f"s-{number}"))
    await world.answers(StepCompleted, count=count)


async def test_an_async_tracer_that_hangs_is_cancelled_in_bounded_time() -> None:
    class Hanging:
        async def before_step(self, event: AttemptEvent) -> None:
            await asyncio.sleep(60)

    world = await make_world()
    service = payment()
    service.trace(Hanging())
    async with running(world, service, options=SHORT) as handle:
        await all_charged(world, 3)
        assert errors_of(handle) == 3


async def test_a_sync_tracer_that_hangs_holds_one_thread_and_is_passed_over_until_it_returns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = threading.Event()
    calls: list[str] = []

    class Hanging:
        def before_step(self, event: AttemptEvent) -> None:
            calls.append(event.saga_id)
            release.wait(20)

    caplog.set_level(logging.WARNING)
    world, service = await make_world(), payment()
    service.trace(Hanging())
    async with running(world, service, options=SHORT) as handle:
        try:
            await all_charged(world, 20)
            assert errors_of(handle) == 20
            assert len(calls) == 1
        finally:
            release.set()
        for number in itertools.count(20):
            await world.send(completed(f"s-{number}"))
            await world.answers(StepCompleted, count=number + 1)
            if len(calls) > 1:
                break
    assert len(caplog.records) == 1, "a line for the hanging thread, none for each time it was passed over"


async def test_an_attempt_that_is_cancelled_at_a_stop_is_told_as_cancelled() -> None:
    notes, world = Notes(), await make_world()
    began = asyncio.Event()

    async def charge() -> None:
        began.set()
        await asyncio.sleep(60)

    service = payment(charge)
    service.trace(notes)
    async with running(world, service) as handle:
        await world.send(completed())
        await began.wait()
        await handle.crash()
    assert [(what, event.result) for what, event in notes.told if what == "after_step"] == [("after_step", "cancelled")]


async def test_a_tracer_may_have_any_of_the_methods() -> None:
    class Undone:
        def __init__(self) -> None:
            self.results: list[str] = []

        def after_compensation(self, event: AttemptEnded, state: None) -> None:
            self.results.append(event.result)

    tracer, world = Undone(), await make_world()
    service = payment()
    service.trace(tracer)
    async with running(world, service):
        await world.send(completed())
        await world.send(compensate(effects={"reserve_stock": raw(1)}))
        await world.answer(StepCompensated)
    assert tracer.results == ["ok"]


def test_what_is_no_tracer_is_refused_with_all_reasons() -> None:
    class Wrong:
        def before_step(self) -> None: ...

        def after_step(self, event: AttemptEnded) -> None: ...

        async def traceparent(self, state: object) -> str:
            return ""

    service = Service("payment")
    with pytest.raises(DefinitionError) as wrong:
        service.trace(object())
    assert "none of the methods before_step" in wrong.value.problems[0]
    with pytest.raises(DefinitionError) as wrong:
        Service("payment", tracers=[Wrong()])
    assert [problem.partition(" must")[0] for problem in wrong.value.problems] == [
        "before_step",
        "after_step",
        "traceparent",
    ]
    notes = Notes()
    service.trace(notes)
    with pytest.raises(DefinitionError, match="watches this service already"):
        service.trace(notes)
