"""What an inbox promises, with naive handlers, through every driver: SQLite and PostgreSQL, sync and async."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from msgspec import UNSET

from choreo.contract import Saga, Step
from choreo.messages.records import CancelStep, CompensationFailed, StepCompensated, StepCompleted, StepFailed
from choreo.step import CompensationContext, Context, Options, Reject, Retry
from choreo.step.publish import Publisher
from tests.conformance.bank import FLAVOURS, Bank, open_bank, sqlite_url
from tests.unit.step_world import (
    World,
    compensate,
    completed,
    eventually,
    make_world,
    of,
    raw,
    running,
    until,
    until_committed,
    value,
)

UNCOMMITTED = Options(poll_timeout_s=0.02, commit_interval_s=1e6, commit_records=10**6, drain_timeout_s=0)

HURRIED = Saga("order", Step("reserve_stock"), Step("charge_card", compensation="refund_card", timeout="200ms"))

BESIDE = Saga(
    "order",
    Step("reserve_stock"),
    Step("charge_card", "refund_card", on_sibling_failure="cancel"),
    Step("weigh", after="reserve_stock"),
)

trigger, undo = completed, compensate


WAYS = [
    *(("sqlite", flavour) for flavour in FLAVOURS),
    *(pytest.param(("postgresql", each), marks=pytest.mark.postgres) for each in ("connection", "async session")),
]


@pytest.fixture(params=WAYS)
async def bank(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bank]:
    database, flavour = request.param
    url = sqlite_url(tmp_path) if database == "sqlite" else request.getfixturevalue("postgres_url")
    async with open_bank(url, flavour) as opened:
        yield opened


async def played(bank: Bank, *records: Any, answers: int | None = None) -> list[Any]:
    """The answers to these records, in a world of their own, given to a replica of its own."""
    world = await make_world()
    async with running(world, bank.service(bank.make_inbox())):
        found: list[Any] = []
        for number, record in enumerate(records, 1):
            await world.send(record)
            found = await world.answers(ANSWERS, count=number if answers is None else answers)
        return found


ANSWERS = (StepCompleted, StepFailed, StepCompensated, CompensationFailed)


async def test_effect_and_outcome_are_recorded_in_one_transaction(bank: Bank) -> None:
    (answer,) = await played(bank, trigger())
    assert isinstance(answer, StepCompleted)
    assert await bank.charged() == ["s-1"]
    assert list((await bank.rows()).values()) == ["completed"]


async def test_a_redelivery_is_told_what_is_recorded_and_runs_nothing(bank: Bank) -> None:
    first = await played(bank, trigger())
    again = await played(bank, trigger())
    assert first == again
    assert bank.calls == ["charge"]
    assert await bank.charged() == ["s-1"]


async def test_a_death_between_commit_and_publish_makes_no_second_effect(bank: Bank) -> None:
    world = await make_world()

    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    with patch.object(Publisher, "publish", hang):
        async with running(world, bank.service()) as handle:
            await world.send(trigger())

            async def is_recorded() -> bool:
                return "completed" in (await bank.rows()).values()

            await eventually(is_recorded)
            await handle.crash()
    async with running(world, bank.service()):
        await world.answer(StepCompleted)
    assert bank.calls == ["charge"]
    assert await bank.charged() == ["s-1"]


async def test_a_death_between_publish_and_commit_of_the_offset_says_the_same_again(bank: Bank) -> None:
    world = await make_world()
    async with running(world, bank.service(), options=UNCOMMITTED) as handle:
        await world.send(trigger())
        await world.answer(StepCompleted)
        await handle.crash()
    async with running(world, bank.service()) as handle:
        first, second = await world.answers(StepCompleted, count=2)
        await until_committed(world)
        assert value(handle, "choreo_step_events_total", result="republished") == 1
    assert first == second
    assert bank.calls == ["charge"]


async def test_a_definite_failure_stays_definite_after_a_death(bank: Bank) -> None:
    def reject(_: Context) -> None:
        raise Reject("over the limit", code="card_declined")

    bank.during = reject
    world = await make_world()
    async with running(world, bank.service(), options=UNCOMMITTED) as handle:
        await world.send(trigger())
        await world.answer(StepFailed)
        await handle.crash()
    async with running(world, bank.service()):
        first, second = await world.answers(StepFailed, count=2)
    assert first == second
    assert (first.failure.code, first.effect) == ("card_declined", "none")
    assert await bank.charged() == []


async def test_the_inbox_vouches_for_runs_that_were_cut_off(bank: Bank) -> None:
    raised: list[Exception] = []

    def fail(_: Context) -> None:
        raised.append(Reject("no") if raised else RuntimeError("the power went"))
        raise raised[-1]

    bank.during = fail
    world = await make_world()
    await world.send(trigger())  # in the log before the partition is ours: perhaps a redelivery
    with patch("choreo.step.running.Runner._publish"), patch("choreo.step.recorder.Recorder.conclude"):
        async with running(world, bank.service(), options=UNCOMMITTED) as handle:
            await until(lambda: raised)
            await handle.crash()
    async with running(world, bank.service()):
        answer = await world.answer(StepFailed)
    assert (answer.failure.kind, answer.effect) == ("rejected", "none")


async def test_what_a_crash_had_done_is_rolled_back_and_nothing_is_left_to_undo(bank: Bank) -> None:
    def crash(_: Context) -> None:
        raise RuntimeError("no")

    bank.during = crash
    failed, undone = await played(bank, trigger(), undo(effect=UNSET, own=True))
    assert (failed.failure.kind, failed.effect) == ("crashed", "unknown")
    assert isinstance(undone, StepCompensated)
    assert not undone.undone
    assert bank.calls == ["charge"]
    assert await bank.charged() == []


async def test_a_compensation_before_its_step_bars_it(bank: Bank) -> None:
    undone, failed = await played(bank, undo(), trigger())
    assert (undone.undone, undone.attempts) == (False, 0)
    assert (failed.failure.kind, failed.effect) == ("cancelled", "none")
    assert bank.calls == []
    assert await bank.charged() == []


async def test_a_step_that_was_given_up_and_had_not_begun_is_barred(bank: Bank) -> None:
    settled, failed, undone = await played(bank, undo(settle=True), trigger(), undo(generation=2))
    assert isinstance(settled, StepCompensated)
    assert (failed.failure.kind, failed.effect) == ("cancelled", "none")
    assert (undone.generation, undone.undone) == (2, False)
    assert bank.calls == []


async def test_a_step_that_was_given_up_and_had_completed_is_undone_by_the_next_command(bank: Bank) -> None:
    done, _, undone = await played(bank, trigger(), undo(settle=True), undo(generation=2))
    assert isinstance(done, StepCompleted)
    assert (undone.generation, undone.undone) == (2, True)
    assert await bank.charged() == []


async def test_a_compensated_step_never_says_again_that_it_has_completed(bank: Bank) -> None:
    done, undone = await played(bank, trigger(), undo())
    (again,) = await played(bank, trigger())
    assert isinstance(done, StepCompleted)
    assert undone.undone
    assert isinstance(again, StepFailed)
    assert (again.failure.kind, again.effect) == ("cancelled", "none")
    assert again.run != done.run
    assert await bank.charged() == []


async def test_a_command_is_carried_out_once(bank: Bank) -> None:
    _, first = await played(bank, trigger(), undo())
    (again,) = await played(bank, undo())
    (next_generation,) = await played(bank, undo(generation=2))
    assert first == again
    assert (next_generation.generation, next_generation.undone) == (2, True)
    assert bank.calls == ["charge", "refund"]


async def test_a_failed_compensation_is_recorded_and_tried_in_the_next_generation(bank: Bank) -> None:
    def fail(_: CompensationContext) -> None:
        raise RuntimeError("the gateway is away")

    bank.during_undo = fail
    _, failed = await played(bank, trigger(), undo())
    bank.during_undo = lambda _: None
    (again,) = await played(bank, undo())
    assert failed == again
    assert await bank.charged() == ["s-1"]
    (undone,) = await played(bank, undo(generation=2))
    assert undone.undone
    assert await bank.charged() == []


async def test_a_compensation_knows_the_effect_that_was_never_published(bank: Bank) -> None:
    seen: list[Any] = []

    def look(ctx: CompensationContext) -> None:
        seen.append(ctx.effect)

    bank.during_undo = look
    await played(bank, trigger(), undo(effect=UNSET))
    assert seen == [{"charge": "s-1"}]


async def test_the_verdict_of_a_compensation_is_recorded(bank: Bank) -> None:
    bank.during_undo = lambda _: Retry(3, base_backoff=1_000)
    _, first = await played(bank, trigger(), undo(own=True))
    (again,) = await played(bank, undo(own=True))
    assert first.verdict == "retry"
    assert first == again  # the same jitter, too


@pytest.mark.parametrize(
    ("effect", "code"), [(object(), "unencodable_effect"), ("x" * 300_000, "unencodable_effect")], ids=["what", "large"]
)
async def test_an_effect_that_cannot_be_told_is_rolled_back(bank: Bank, effect: object, code: str) -> None:
    bank.during = lambda _: effect
    (answer,) = await played(bank, trigger())
    assert (answer.failure.code, answer.effect) == (code, "none")
    assert await bank.charged() == []


async def test_a_context_that_becomes_too_large_is_rolled_back(bank: Bank) -> None:
    bank.during = lambda _: "x" * 200_000
    effects = {f"step_{number}": raw("x" * 240_000) for number in range(3)}
    (answer,) = await played(bank, trigger(effects=effects))
    assert (answer.failure.code, answer.effect) == ("context_too_large", "none")
    assert await bank.charged() == []


async def test_of_two_replicas_that_run_one_trigger_at_once_one_commits(bank: Bank) -> None:
    worlds: list[World] = [await make_world(), await make_world()]
    engines = [bank.engine]
    if bank.url.startswith("sqlite"):
        bank.engine = bank.make_engine()  # each process has its own
        engines.append(bank.engine)
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(_: Context) -> Any:
        loop.call_soon_threadsafe(began.set)
        if bank.is_async:
            return asyncio.sleep(0.3)
        return time.sleep(0.3)

    bank.during = slow
    services = [bank.service(), bank.service(bank.make_inbox())]
    async with running(worlds[0], services[0]), running(worlds[1], services[1]):
        for world in worlds:
            await world.send(trigger())
        first, second = [await world.answer(StepCompleted) for world in worlds]
    assert first == second
    assert await bank.charged() == ["s-1"]
    assert bank.calls == ["charge"]
    if len(engines) > 1:
        dispose = engines[0].dispose()
        if dispose is not None:
            await dispose


async def test_a_storm_of_redeliveries_makes_one_effect_each(bank: Bank) -> None:
    world = await make_world()
    sagas = [f"s-{number}" for number in range(5)]
    async with running(world, bank.service()):
        for _ in range(4):
            for saga_id in sagas:
                await world.send(trigger(saga_id))
        answers = await world.answers(StepCompleted, count=len(sagas))
        await until_committed(world)
    for _ in range(2):
        again = await played(bank, *(trigger(saga_id) for saga_id in sagas))
        assert {answer.id for answer in again} == {answer.id for answer in answers}
    assert sorted(await bank.charged()) == sagas


async def test_a_late_handler_does_not_commit(bank: Bank) -> None:
    released = threading.Event()

    def late(_: Context) -> Any:
        if bank.is_async:
            return asyncio.sleep(30)
        return released.wait(30) and None

    bank.during = late
    world = await make_world()
    async with running(world, bank.service(saga=HURRIED)):
        await world.send(trigger())
        await until(lambda: bank.calls)
        await asyncio.sleep(0.4)
        released.set()
        answer = await world.answer(StepFailed)
    assert answer.failure.kind == "timed_out"
    assert await bank.charged() == []
    assert list((await bank.rows()).values()) == ["failed"]


@pytest.mark.parametrize("dies", [False, True], ids=["", "and the process dies"])
async def test_what_was_cancelled_is_rolled_back_and_recorded_as_without_an_effect(bank: Bank, *, dies: bool) -> None:
    released = threading.Event()

    def hang(_: Context) -> Any:
        if bank.is_async:
            return asyncio.sleep(30)
        released.wait(30)
        if dies:
            raise SystemExit  # a thread of a process that is dead commits nothing
        return None

    bank.during = hang
    world = await make_world(BESIDE)
    async with running(world, bank.service(saga=BESIDE), options=UNCOMMITTED) as handle:
        await world.send(trigger())
        await until(lambda: bank.calls)
        if dies:
            await handle.crash()
        await world.send(CancelStep(**of(), failed="weigh"))
        if not dies:
            await asyncio.sleep(0.1)
            released.set()
            await world.answer(StepFailed)
            await handle.crash()
    released.set()
    async with running(world, bank.service(bank.make_inbox(), saga=BESIDE)):
        answers = await world.answers(StepFailed, count=1 if dies else 2)
        assert len(set(answers)) == 1, "a redelivery is told what is recorded"
        assert (answers[0].failure.kind, answers[0].effect) == ("cancelled", "none")
        await world.send(undo(effect=UNSET))
        assert not (await world.answer(StepCompensated)).undone
    assert bank.calls == ["charge"]
    assert await bank.charged() == []


async def test_rows_are_deleted_when_they_are_old(bank: Bank) -> None:
    await played(bank, trigger())
    for days, left in ((29, 1), (31, 0)):
        deleted: Any = bank.inbox.clean_up(time.time_ns() // 1_000_000 + days * 86_400_000)
        assert (await deleted if bank.is_async else deleted) == 1 - left
        assert len(await bank.rows()) == left
