"""Records that cannot be understood: answered from their headers, kept as dead letters, or parked."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from choreo.broker.announcement import announcement
from choreo.broker.dead_letter import read_dead_letter
from choreo.broker.registry import announce, register
from choreo.contract import Saga, Step
from choreo.messages.codec import encode
from choreo.messages.headers import JSON, MISPLACED, make_headers
from choreo.messages.records import CompensationFailed, StepCompleted, StepFailed
from choreo.step import Service
from choreo.step.running import Runner
from tests.unit.step_world import (
    ORDER,
    QUICK,
    World,
    compensate,
    completed,
    execute,
    make_world,
    payment,
    running,
    started,
    until,
    until_committed,
    value,
)


def headers_of(record: Any, **changes: bytes) -> tuple[tuple[str, bytes], ...]:
    made = make_headers(record, source="/test", content_type=JSON, traceparent=b"00-aa-bb-01")
    return tuple((name, changes.get(name.replace("-", "_"), text)) for name, text in made)


async def test_an_undecodable_trigger_fails_its_step_from_the_headers() -> None:
    world = await make_world()
    trigger = completed(round=3)
    async with running(world, payment()) as handle:
        await world.send_raw("s-1", b"{no json", headers_of(trigger))
        answer = await world.answer(StepFailed)
        await until_committed(world)
        assert value(handle, "choreo_step_events_total", result="failed") == 1
    assert (answer.saga_id, answer.start, answer.step, answer.round) == ("s-1", trigger.start, "charge_card", 3)
    assert (answer.failure.kind, answer.failure.code, answer.effect) == ("rejected", "undecodable", "none")
    assert answer.failure.message.startswith("not a record of choreo: ")
    assert await world.dead_letters() == [], "the saga-log keeps it, once for all services"


async def test_an_undecodable_compensate_fails_from_the_headers() -> None:
    world = await make_world()
    async with running(world, payment()):
        await world.send_raw("s-1", b"\xff\xfe", headers_of(compensate(generation=2, round=4)))
        answer = await world.answer(CompensationFailed)
    assert (answer.round, answer.generation, answer.failure.code) == (4, 2, "undecodable")


async def test_an_undecodable_trigger_is_answered_once_also_after_a_crash() -> None:
    world = await make_world()
    options = msgspec.structs.replace(QUICK, commit_interval_s=3_600)
    async with running(world, payment(), options=options) as handle:
        await world.send_raw("s-1", b"", headers_of(completed()))
        await world.send_raw("s-1", b"", headers_of(completed()))
        await world.answer(StepFailed)
        await handle.crash()
    async with running(world, payment()):
        await until_committed(world)
    failures = await world.answers(StepFailed)
    # Its answer is found as one without effect, so after the crash it is not said again: nothing can have run.
    assert len(failures) == 1


@pytest.mark.parametrize("dies", [False, True], ids=["", "and the process dies between them"])
async def test_a_good_copy_behind_a_damaged_one_is_not_run_but_answered_again(*, dies: bool) -> None:
    # The saga-log may not have taken the refusal: it came before what it answers. Only a further answer ends the wait.
    world, calls = await make_world(), []
    options = msgspec.structs.replace(QUICK, commit_interval_s=3_600)

    def service() -> Service:
        return payment(lambda ctx: calls.append(ctx.saga_id))

    async with running(world, service(), options=options) as handle:
        await world.send_raw("s-1", b"{no json", headers_of(completed()))
        await world.answer(StepFailed)
        if dies:
            await handle.crash()
        else:
            await send_good_copies(world)
    if dies:
        async with running(world, service()):
            await send_good_copies(world)
    refused, again = await world.answers(StepFailed)
    assert (refused.effect, refused.failure.code) == ("none", "undecodable")
    assert (again.effect, again.failure.kind, again.failure.code) == ("unknown", "cancelled", "redelivered")
    assert calls == []


async def send_good_copies(world: World) -> None:
    await world.send(completed())
    await world.answers(StepFailed, count=2)
    await world.send(completed())  # once more, which is settled by now
    await asyncio.sleep(0.1)


async def test_a_damaged_copy_behind_a_good_one_is_passed_over() -> None:
    world = await make_world()
    async with running(world, payment()):
        await world.send(completed())
        await world.answer(StepCompleted)
        await world.send_raw("s-1", b"{no json", headers_of(completed()))
        await until_committed(world)
    assert not [entry for entry in await world.log() if isinstance(entry.record, StepFailed)]


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("not a saga id!", {}),
        ("s-1", {"choreo_start": b"xyz"}),
        ("s-1", {"choreo_round": b"99999999"}),
    ],
)
async def test_headers_that_no_answer_can_be_made_from_stop_nothing(key: str, changes: dict[str, bytes]) -> None:
    world = await make_world()
    async with running(world, payment()):
        await world.send_raw(key, b"{", headers_of(completed(), **changes))
        await until_committed(world)
        await world.send(completed("s-2"))
        await world.answer(StepCompleted)
    assert {entry.record.saga_id for entry in await world.log()} == {"s-2"}


async def test_the_record_is_believed_and_not_its_headers() -> None:
    world = await make_world()
    lying = headers_of(completed(), choreo_round=b"7", choreo_start=b"f" * 16)
    elsewhere = headers_of(execute(), ce_type=b"choreo.execute.v1")
    async with running(world, payment(lambda ctx: ctx.round)):
        await world.send_raw("s-1", encode(completed()), lying)
        await world.send_raw("s-2", encode(execute("s-2", step="send_receipt")), elsewhere)
        await world.send_raw("s-3", encode(compensate("s-3", step="reserve_stock")), elsewhere)
        await until_committed(world)
        answers = await world.answers(StepCompleted)
    assert [(answer.saga_id, answer.round, answer.start) for answer in answers] == [("s-1", 1, completed().start)]


async def test_a_trigger_in_the_wrong_partition_is_neither_run_nor_answered() -> None:
    world = await make_world()
    async with running(world, payment()):
        await world.send_raw("s-1", encode(completed()), ((MISPLACED, b"?"), *headers_of(completed())))
        await until_committed(world)
        await world.send(completed("s-2"))
        await world.answer(StepCompleted)
    assert [answer.saga_id for answer in await world.answers((StepCompleted, StepFailed))] == ["s-2"]


async def test_a_content_type_that_nobody_knows_is_undecodable() -> None:
    world = await make_world()
    async with running(world, payment()):
        await world.send_raw("s-1", encode(completed()), headers_of(completed(), content_type=b"text/html"))
        answer = await world.answer(StepFailed)
    assert "content-type is 'text/html'" in answer.failure.message


async def test_a_record_under_another_key_or_in_another_topic_is_not_run() -> None:
    world = await make_world()
    other = Saga("refund", Step("reserve_stock"), Step("charge_card"))
    async with running(world, payment()):
        await world.send_raw("s-2", encode(completed("s-1")), headers_of(completed("s-1")))
        record = started(contract=other)
        trigger = msgspec.structs.replace(completed(), saga="refund")
        await world.send_raw("s-1", encode(trigger), headers_of(trigger))
        answers = await world.answers(StepFailed, count=2)
    assert [answer.saga_id for answer in answers] == ["s-2", "s-1"]
    assert {answer.failure.code for answer in answers} == {"undecodable"}
    assert record.saga == "refund"


async def test_a_version_that_is_not_held_is_parked_and_run_after_an_upgrade() -> None:
    second = Saga("order", Step("reserve_stock"), Step("charge_card"), version=2)
    world = await make_world(ORDER, second)
    calls: list[int] = []

    def charge(ctx: Any) -> None:
        calls.append(ctx.version)

    old = payment(charge)
    async with running(world, old) as handle:
        await world.send(completed("new", version=2))
        await world.send(completed("old"))
        await world.answer(StepCompleted)
        assert value(handle, "choreo_records_parked", saga="order") == 1
        assert await world.committed() in (None, 0)
    assert value(handle, "choreo_records_parked", saga="order") == 0
    assert calls == [1]
    new = payment(charge)
    new.step(second, "charge_card")(charge)
    async with running(world, new):
        await until_committed(world)
    assert calls == [1, 2]
    assert await world.dead_letters() == []


@pytest.mark.parametrize(
    "second",
    [
        Saga("order", Step("check_fraud"), Step("charge_card"), version=2),
        Saga("order", Step("check_fraud"), Step("charge_card_at_last"), version=2),
    ],
    ids=["a step that follows another one there", "a step that is new"],
)
async def test_a_trigger_that_only_another_version_knows_waits_for_the_upgrade(second: Saga) -> None:
    world = await make_world(ORDER, second)
    await register(world.broker, [second])
    calls: list[tuple[str, int]] = []

    def charge(ctx: Any) -> None:
        calls.append((ctx.step, ctx.version))

    async with running(world, payment(charge)) as handle:
        await world.send(completed("new", "check_fraud", version=2))
        await world.send(completed("old"))
        await world.answer(StepCompleted)
        await until(lambda: value(handle, "choreo_records_parked", saga="order") == 1)
        assert await world.committed() in (None, 0)
    new = payment(charge)
    new.step(second, second.steps[-1].name)(charge)
    async with running(world, new):
        await until_committed(world)
    assert calls == [("charge_card", 1), (second.steps[-1].name, 2)]


async def test_what_another_version_has_for_others_is_passed_over() -> None:
    second = Saga("order", Step("reserve_stock"), Step("pack"), Step("charge_card"), Step("greet"), version=2)
    world = await make_world(ORDER, second)
    registry = await register(world.broker, [second])
    depot = Service("depot")
    depot.step(second, "pack")(lambda: None)
    async with running(world, payment()) as handle:
        await world.send(started(version=2, contract=second))  # reserve_stock, which version 1 has as another's
        await announce(world.broker, registry, [announcement(depot.name, depot.group, depot.hosted())])
        await world.send(completed(version=2))  # pack, which the depot has announced
        await until_committed(world)
        assert value(handle, "choreo_records_parked", saga="order") in (None, 0)
        await world.send(completed("s-2", step="charge_card", version=2))  # greet, which nobody has
        await world.send(completed("s-3", step="pack", version=2))  # charge_card, which is ours
        await until(lambda: value(handle, "choreo_records_parked", saga="order") == 2)


async def test_a_version_in_the_headers_that_is_not_the_records_is_refused() -> None:
    world = await make_world()
    async with running(world, payment()):
        await world.send(completed(), choreo_version=b"2")
        await world.send(execute("s-2"), choreo_version=b"2")
        answer = await world.answer(StepFailed)
        await until_committed(world)
    assert [entry.record.saga_id for entry in await world.log()] == ["s-2"], "whom the first is for, nobody can say"
    assert (answer.saga_id, answer.failure.code) == ("s-2", "undecodable")
    assert "header choreo_version is b'2', the record is of version 1" in answer.failure.message


async def test_a_record_of_a_release_without_the_version_in_its_headers_is_run() -> None:
    world = await make_world()
    trigger = completed()
    headers = tuple(header for header in headers_of(trigger) if header[0] != "choreo_version")
    async with running(world, payment()):
        await world.send_raw("s-1", encode(trigger), headers)
        assert (await world.answer(StepCompleted)).step == "charge_card"


@pytest.mark.parametrize("trigger", [completed(version=2), execute(version=2)])
async def test_past_a_limit_a_version_that_is_not_held_is_handed_on_as_failed(trigger: Any) -> None:
    world = await make_world()
    options = msgspec.structs.replace(QUICK, park_limit_s=0.05)
    async with running(world, payment(), options=options) as handle:
        await world.send(trigger)
        await world.send(compensate(version=2))
        answer = await world.answer(StepFailed)
        undone = await world.answer(CompensationFailed)
        await until_committed(world)
        assert value(handle, "choreo_dead_letters_total", reason="unknown_version") == 2
    assert (answer.version, answer.failure.code, answer.effect) == (2, "unknown_version", "none")
    assert (undone.version, undone.failure.code) == (2, "unknown_version")
    first, _ = await world.dead_letters()
    letter = read_dead_letter(first)
    assert letter is not None
    assert (letter.id, letter.topic, letter.key, letter.value) == ("0/0", "choreo.order", b"s-1", encode(trigger))
    assert letter.headers == make_headers(trigger, source="/test", content_type=JSON)
    assert (letter.reason, letter.error, letter.source) == ("unknown_version", "UnknownVersion", "/choreo/payment")


async def test_the_limit_of_a_parked_record_counts_from_its_append() -> None:
    world = await make_world()
    world.broker._log.now_ms = lambda: 1_000_000
    await world.send(completed(version=2))
    world.broker._log.now_ms = lambda: 1_700_000
    await world.send(completed("new"))
    async with running(world, payment()):  # ten minutes are the default
        answer = await world.answer(StepFailed)
    assert (answer.failure.code, answer.effect) == ("unknown_version", "unknown"), "it may be a redelivery"


async def test_an_error_of_choreos_own_fails_the_step_and_not_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await make_world()
    real = Runner.begin

    def broken(self: Any, record: Any, *rest: Any) -> Any:
        if record.saga_id == "unlucky":
            raise AssertionError("a bug")
        return real(self, record, *rest)

    monkeypatch.setattr(Runner, "begin", broken)
    async with running(world, payment()):
        await world.send(completed("unlucky"))
        failed = await world.answer(StepFailed)
        await world.send(completed("lucky"))
        done = await world.answer(StepCompleted)
        await until_committed(world)
    assert (failed.saga_id, failed.failure.code, failed.effect) == ("unlucky", "internal_error", "unknown")
    assert done.saga_id == "lucky"


async def test_a_dead_letter_that_cannot_be_kept_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await make_world()
    del world.broker._log.specs["choreo.order.dead-letters"]
    options = msgspec.structs.replace(QUICK, park_limit_s=0.05)
    async with running(world, payment(), options=options) as handle:
        await world.send(completed(version=2))
        await world.answer(StepFailed)
        await until_committed(world)
        await until(lambda: value(handle, "choreo_dead_letters_total") == 1)
        await asyncio.sleep(0)
