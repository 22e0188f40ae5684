"""What a service makes of ``CancelStep``: its runs end, and what it says of their effects is true (rules 5, 25)."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from choreo.contract import Retries, Saga, Step
from choreo.messages.records import CancelStep, StepCompleted, StepFailed
from choreo.observe.events import AttemptEnded
from choreo.step import Context, Options, Reject, Service
from tests.unit.step_world import compensate, completed, make_world, of, running, until, until_committed, value

BESIDE = Saga(
    "order",
    Step("reserve_stock"),
    Step("charge_card", "refund_card", timeout="1h", on_sibling_failure="cancel"),
    Step("weigh", after="reserve_stock"),
)
PATIENT = Saga(
    "order",
    *BESIDE.steps[:1],
    Step(
        "charge_card",
        "refund_card",
        on_sibling_failure="cancel",
        retries=Retries(3, backoff_ms_base=600_000, backoff_ms_max=600_000, jitter=False),
    ),
    Step("weigh", after="reserve_stock"),
)
UNCOMMITTED = Options(poll_timeout_s=0.02, commit_interval_s=1e6, commit_records=10**6, drain_timeout_s=0)


def cancel(step: str = "charge_card", **changes: Any) -> CancelStep:
    return CancelStep(**{**of(step=step, **changes), "failed": "weigh"})


def charging(run: Any, saga: Saga = BESIDE, **options: Any) -> Service:
    service = Service("payment", **options)
    service.step(saga, "charge_card")(run)
    service.compensation(saga, "charge_card")(lambda: None)
    return service


class Hanging:
    """A handler that hangs, and what became of it."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0

    async def __call__(self, order: Any) -> None:
        self.begun += 1
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def test_a_handler_is_cancelled_and_its_effect_is_unknown() -> None:
    hanging, ended = Hanging(), []

    class Tracer:
        def after_step(self, event: AttemptEnded, _state: object) -> None:
            ended.append(event)

    world = await make_world(BESIDE)
    async with running(world, charging(hanging.__call__, tracers=[Tracer()])) as handle:
        await world.send(completed())
        await until(lambda: hanging.begun)
        await world.send(cancel())
        answer = await world.answer(StepFailed)
        await until_committed(world)
        attempts = value(handle, "choreo_step_attempts_total", step="charge_card", result="cancelled")
    assert (answer.failure.kind, answer.failure.code, answer.effect) == ("cancelled", "sibling_failed", "unknown")
    assert (answer.attempts, hanging.cancelled, attempts) == (1, 1, 1)
    [event] = ended
    assert (event.result, event.failure.kind, event.is_last) == ("cancelled", "cancelled", True)


async def test_what_it_returns_or_decides_when_it_is_cancelled_counts() -> None:
    for ending in ("returns", "rejects"):
        begun = asyncio.Event()

        async def stubborn(order: Any, begun: asyncio.Event = begun, ending: str = ending) -> str:
            begun.set()
            try:
                await asyncio.sleep(1_000)
            except asyncio.CancelledError:
                if ending == "rejects":
                    raise Reject("nothing was done") from None
            return "charged"

        world = await make_world(BESIDE)
        async with running(world, charging(stubborn)):
            await world.send(completed())
            await begun.wait()
            await world.send(cancel())
            if ending == "returns":
                await world.answer(StepCompleted)
            else:
                answer = await world.answer(StepFailed)
                assert (answer.failure.kind, answer.effect) == ("rejected", "none")


@pytest.mark.parametrize("other", [{"saga_id": "s-2"}, {"saga_round": 2}], ids=["another saga", "another round"])
async def test_others_are_left_alone(other: dict[str, Any]) -> None:
    released = asyncio.Event()

    async def wait(order: Any) -> str:
        await released.wait()
        return "charged"

    world = await make_world(BESIDE)
    async with running(world, charging(wait)):
        await world.send(completed())
        await world.send(cancel(**other))
        await world.send(completed("s-3"))  # whoever has read this has read the command
        await asyncio.sleep(0.1)
        released.set()
        assert len(await world.answers(StepCompleted, count=2)) == 2


async def test_a_trigger_behind_the_command_does_not_run_and_has_certainly_had_no_effect() -> None:
    hanging = Hanging()
    world = await make_world(BESIDE)
    async with running(world, charging(hanging.__call__)):
        await world.send(cancel(step="weigh"))
        await world.send(completed())
        answer = await world.answer(StepFailed)
    assert (answer.failure.kind, answer.effect, answer.attempts) == ("cancelled", "none", 0)
    assert hanging.begun == 0


async def test_a_wait_for_the_next_attempt_is_cut_short() -> None:
    tried: list[int] = []

    async def fail(ctx: Context) -> None:
        tried.append(ctx.attempt)
        raise RuntimeError("the power went")

    world = await make_world(PATIENT)
    async with running(world, charging(fail, PATIENT)):
        await world.send(completed())
        await until(lambda: tried)
        await world.send(cancel())
        answer = await world.answer(StepFailed)
    assert (answer.failure.kind, answer.effect, tried) == ("cancelled", "unknown", [1])


async def test_a_wait_for_a_slot_is_cut_short() -> None:
    hanging = Hanging()
    world = await make_world(BESIDE)
    options = Options(concurrency=1, poll_timeout_s=0.02, shutdown_timeout_s=0.2)
    async with running(world, charging(hanging.__call__), options=options):
        await world.send(completed("s-0"))
        await until(lambda: hanging.begun)
        await world.send(completed())
        await asyncio.sleep(0.1)
        await world.send(cancel())
        answer = await world.answer(StepFailed)
    assert (answer.saga_id, answer.failure.kind, answer.effect) == ("s-1", "cancelled", "none")


async def test_a_thread_is_not_waited_for_but_keeps_its_lane() -> None:
    begun, released = threading.Event(), threading.Event()
    left: list[float] = []

    def block(ctx: Context) -> str:
        begun.set()
        released.wait(30)
        left.append(ctx.time_left_s())
        return "charged"

    world = await make_world(BESIDE)
    async with running(world, charging(block)):
        await world.send(completed())
        await until(begun.is_set)
        await world.send(cancel())
        answer = await world.answer(StepFailed)
        assert (answer.failure.kind, answer.effect) == ("cancelled", "unknown")
        await world.send(compensate())
        await asyncio.sleep(0.1)
        assert not [entry for entry in await world.log() if type(entry.record).__name__ == "StepCompensated"]
        released.set()
        await until_committed(world)
    assert left == [0.0]


async def test_after_a_death_what_the_log_has_cancelled_is_not_begun_again() -> None:
    hanging = Hanging()
    world = await make_world(BESIDE)
    async with running(world, charging(hanging.__call__), options=UNCOMMITTED) as handle:
        await world.send(completed())
        await until(lambda: hanging.begun)
        await handle.crash()
    await world.send(cancel())
    async with running(world, charging(hanging.__call__)):
        answer = await world.answer(StepFailed)
    assert (answer.failure.kind, answer.attempts) == ("cancelled", 0)
    assert answer.effect == "unknown", "the run that was cut off may have had one"
    assert hanging.begun == 1


async def test_after_a_death_behind_the_answer_it_is_said_again_with_an_unknown_effect() -> None:
    hanging = Hanging()
    world = await make_world(BESIDE)
    async with running(world, charging(hanging.__call__), options=UNCOMMITTED) as handle:
        await world.send(cancel())
        await world.send(completed())
        await world.answer(StepFailed)
        await handle.crash()
    async with running(world, charging(hanging.__call__)):
        first, second = await world.answers(StepFailed, count=2)
    assert (first.effect, second.effect) == ("none", "unknown")
    assert second.failure.kind == "cancelled"
    assert hanging.begun == 0


async def test_bytes_that_cannot_be_read_cancel_nothing() -> None:
    world = await make_world(BESIDE)
    async with running(world, charging(lambda order: "charged")):
        await world.send_raw("s-1", b"{", (("ce_type", b"choreo.cancel_step.v1"),))
        await world.send(completed())
        await world.answer(StepCompleted)
