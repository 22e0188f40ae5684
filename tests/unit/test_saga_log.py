"""The saga-log over a log in memory, with services whose records are written by hand."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from choreo.broker.memory import MemoryBroker
from choreo.broker.port import TopicPartition
from choreo.broker.registry import register
from choreo.client import Client
from choreo.contract import Saga, Step, when
from choreo.core import Phase, SagaState
from choreo.errors import BrokerUnavailable, ConfigurationError, StoreError
from choreo.messages.headers import MSGPACK
from choreo.messages.records import (
    AnyRecord,
    Compensate,
    CompensationFailed,
    Execute,
    OperatorActed,
    Record,
    RoundStarted,
    SagaCompensated,
    SagaCompleted,
    SagaStuck,
    StepCompensated,
    StepFailed,
    StepRecord,
    StepSkipped,
)
from choreo.observe.metrics import Metrics
from choreo.saga_log import SagaLog
from choreo.saga_log.timer import EARLY_PAUSE_MS, Timers
from choreo.store import Advance, Checkpoint, Query, Store, open_store
from choreo.store.memory import MemoryStore
from tests.unit.by_hand import DIAMOND, LINE, T0, FakeClock, Pen, a_broker, a_pen, messages_of

BY_SAGA_LOG = (Execute, StepSkipped, Compensate, RoundStarted, SagaStuck, SagaCompleted, SagaCompensated)


@asynccontextmanager
async def running(broker: Any, *contracts: Saga, store: Store | None = None, **options: Any) -> AsyncIterator[SagaLog]:
    """A saga-log that is stopped gracefully at the end of the block."""
    log = SagaLog(
        broker, store or MemoryStore(), contracts, **({"poll_timeout_s": 0.01, "save_interval_s": 0.0} | options)
    )
    task = asyncio.create_task(log.run())
    try:
        yield log
        if task.done():
            task.result()
    finally:
        await log.stop()
        await asyncio.wait((task,))
    if not task.cancelled():
        task.result()


async def until(condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            held = condition()
            if inspect.isawaitable(held):
                held = await held
            if held:
                return
            await asyncio.sleep(0.002)


async def quiet(pen: Pen, log: SagaLog) -> list[AnyRecord]:
    """All records, when the saga-log has nothing more to say to them."""
    seen = -1
    while True:
        messages = await pen.log()
        states = log.states()
        last = {message.key: message.offset for message in messages}
        folded = all(
            key is not None and key.decode() in states and states[key.decode()].offset >= offset
            for key, offset in last.items()
        )
        if folded and len(messages) == seen:
            return await pen.records()
        seen = len(messages)
        await asyncio.sleep(0.003)


def kinds(records: list[Any], *wanted: type[Record]) -> list[str]:
    return [
        f"{type(each).__name__}:{each.step if isinstance(each, StepRecord) else ''}"
        for each in records
        if isinstance(each, wanted or BY_SAGA_LOG)
    ]


def answer_to(command: Compensate) -> StepCompensated:
    return StepCompensated(
        saga=command.saga,
        version=command.version,
        saga_id=command.saga_id,
        start=command.start,
        step=command.step,
        round=command.round,
        generation=command.generation,
        run="undo",
        undone=True,
    )


async def serve(pen: Pen, log: SagaLog) -> list[AnyRecord]:
    """Answer every command, as services would, until the saga-log has nothing more to say."""
    while True:
        records = await quiet(pen, log)
        said = {each.id for each in records}
        todo = []
        for each in {one.id: one for one in records}.values():
            if isinstance(each, Compensate) and f"{each.id}/answer/undo" not in said:
                todo.append(pen.write(answer_to(each)))
            if isinstance(each, Execute) and f"{each.instance}/run" not in said:
                todo.append(pen.completed(each.saga_id, each.step, saga_round=each.round))
        if not todo:
            return records
        for one in todo:
            await one


# What it decides.


async def test_a_line_that_runs_through_is_completed() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    async with running(broker, LINE) as log:
        await pen.whole_line("s")
        records = await quiet(pen, log)
        assert kinds(records) == ["SagaCompleted:"]
        [outcome] = [each for each in records if isinstance(each, SagaCompleted)]
        assert bytes(outcome.result) == b'"c-done"'
        assert log.states()["s"].phase is Phase.COMPLETED


async def test_a_join_gets_execute_when_both_branches_stand() -> None:
    broker = await a_broker(DIAMOND)
    pen = await a_pen(broker, DIAMOND)
    async with running(broker, DIAMOND) as log:
        await pen.start("s")
        for step in ("a", "b"):
            await pen.completed("s", step)
        assert kinds(await quiet(pen, log)) == []
        await pen.completed("s", "c")
        records = await quiet(pen, log)
        assert kinds(records) == ["Execute:d"]
        assert isinstance(records[-1], Execute)
        assert {step: bytes(effect) for step, effect in records[-1].effects.items()} == {
            step: f'"{step}-done"'.encode() for step in "abc"
        }


async def test_a_failure_is_compensated_in_reverse_order() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    async with running(broker, LINE) as log:
        await pen.start("s")
        await pen.completed("s", "a")
        await pen.completed("s", "b")
        await pen.failed("s", "c")
        records = await serve(pen, log)
        assert kinds(records) == ["Compensate:b", "Compensate:a", "SagaCompensated:"]


async def test_each_decision_of_a_normal_run_is_in_the_log_once() -> None:
    broker = await a_broker(LINE, partitions=3)
    pen = await a_pen(broker, LINE)
    async with running(broker, LINE, records_max=7) as log:
        for number in range(40):
            await pen.whole_line(f"good{number}")
            await pen.start(f"bad{number}")
            await pen.completed(f"bad{number}", "a")
            await pen.failed(f"bad{number}", "b")
        records = await serve(pen, log)
    said = Counter(each.id for each in records)
    assert set(said.values()) == {1}
    assert Counter(type(each).__name__ for each in records if isinstance(each, BY_SAGA_LOG)) == {
        "SagaCompleted": 40,
        "Compensate": 40,
        "SagaCompensated": 40,
    }


async def test_a_saga_in_message_pack_is_answered_in_message_pack_and_in_its_trace() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE, MSGPACK)
    async with running(broker, LINE) as log:
        await pen.whole_line("s")
        await quiet(pen, log)
    headers = dict((await pen.log())[-1].headers)
    assert headers["content-type"] == MSGPACK.encode()
    assert headers["traceparent"] == b"00-ab-cd-01"
    assert headers["ce_source"] == b"/choreo/saga-log"


async def test_a_retry_starts_the_next_round_when_its_backoff_is_over() -> None:
    clock = FakeClock()
    broker = await a_broker(LINE, now_ms=clock.now_ms)
    pen = await a_pen(broker, LINE)
    async with running(broker, LINE, clock=clock) as log:
        await pen.start("s")
        await pen.completed("s", "a")
        await pen.failed("s", "b")
        await quiet(pen, log)
        await pen.compensated("s", "a", verdict="retry", retry_limit=3, backoff_ms=10_000)
        await quiet(pen, log)
        clock.ms += 9_000
        await asyncio.sleep(0.03)
        assert kinds(await quiet(pen, log)) == ["Compensate:a"]
        clock.ms += 2_000
        await until(lambda: log.states()["s"].round == 2)
        assert kinds(await quiet(pen, log)) == ["Compensate:a", "RoundStarted:", "Execute:a"]


async def test_a_step_whose_condition_does_not_hold_is_skipped_by_a_record_and_counted_once() -> None:
    contract = Saga("order", Step("a"), Step("b", when=when.effect("a", "count") > 0), Step("c"))
    broker = await a_broker(contract)
    pen = await a_pen(broker, contract)
    metrics, store = Metrics(), MemoryStore()
    async with running(broker, contract, store=store, metrics=metrics) as log:
        await pen.start("s")
        await pen.completed("s", "a")
        assert kinds(await quiet(pen, log)) == ["StepSkipped:b", "Execute:c"]
        assert value(metrics, "choreo_steps_skipped_total", saga="order", step="b") == 1
    async with running(broker, contract, store=MemoryStore(), metrics=Metrics()) as log:
        assert kinds(await quiet(pen, log)) == ["StepSkipped:b", "Execute:c"], "a rebuild says nothing again"


async def test_a_compensation_that_fails_for_good_is_told_to_operators_who_can_retry(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    metrics = Metrics()
    async with running(broker, LINE, metrics=metrics) as log:
        await pen.start("s")
        await pen.completed("s", "a")
        await pen.failed("s", "b")
        await quiet(pen, log)
        await pen.compensation_failed("s", "a")
        assert kinds(await quiet(pen, log))[-1] == "SagaStuck:a"
        assert value(metrics, "choreo_sagas_in_progress", saga="order", phase="stuck") == 1
        [line] = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert "retry the compensation" in line.getMessage()
        assert "the bank is closed" in line.getMessage()
        assert (line.saga_id, line.step) == ("s", "a")  # type: ignore[attr-defined]
        about = pen.about("s")
        await pen.write(
            OperatorActed(**about, step="a", act="retry", generation=1, request="o1", operator="ann", reason="paid")
        )
        records = await serve(pen, log)
        assert kinds(records)[-2:] == ["Compensate:a", "SagaCompensated:"]


# Time.


async def test_a_step_that_does_not_answer_by_its_due_is_given_up_after_the_grace() -> None:
    clock = FakeClock()
    broker = await a_broker(LINE, now_ms=clock.now_ms)
    pen = await a_pen(broker, LINE)
    async with running(broker, LINE, clock=clock) as log:
        await pen.start("s")
        await pen.completed("s", "a")
        await pen.completed("s", "b")
        await quiet(pen, log)
        clock.ms = T0 + 60_000 + 5_000
        await asyncio.sleep(0.03)
        assert log.states()["s"].phase is Phase.FORWARD
        clock.ms += 1
        await until(lambda: log.states()["s"].phase is not Phase.FORWARD)
        records = await serve(pen, log)
    [given_up] = [each for each in records if isinstance(each, StepFailed)]
    assert (given_up.step, given_up.failure.kind, given_up.run) == ("c", "timed_out", "")
    assert kinds(records) == ["Compensate:c", "Compensate:b", "Compensate:a", "SagaCompensated:"]


async def test_a_timer_that_the_brokers_clock_finds_early_fires_again_after_a_pause() -> None:
    clock, brokers = FakeClock(), FakeClock()
    broker = await a_broker(LINE, now_ms=brokers.now_ms)
    pen = await a_pen(broker, LINE)
    metrics = Metrics()

    def fired() -> float:
        return value(metrics, "choreo_timers_fired_total", saga="order")

    async with running(broker, LINE, clock=clock, metrics=metrics) as log:
        await pen.start("s")
        await pen.completed("s", "a")
        await pen.completed("s", "b")
        await quiet(pen, log)
        clock.ms = T0 + 66_000
        await until(lambda: fired() == 1)
        await asyncio.sleep(0.05)
        assert fired() == 1, "it does not fire in a loop"
        clock.ms += 499
        await asyncio.sleep(0.05)
        assert fired() == 1
        clock.ms += 1
        await until(lambda: fired() == 2)
        assert log.states()["s"].phase is Phase.FORWARD
        brokers.ms = clock.ms
        clock.ms += 500
        await until(lambda: log.states()["s"].phase is Phase.COMPENSATING)
        assert fired() == 3


async def test_a_due_that_passed_while_nobody_ran_is_not_said_before_the_log_is_read() -> None:
    clock = FakeClock()
    broker = await a_broker(LINE, now_ms=clock.now_ms)
    pen = await a_pen(broker, LINE)
    await pen.start("s")
    await pen.completed("s", "a")
    await pen.completed("s", "b")
    await pen.completed("s", "c")
    clock.ms += 3_600_000
    async with running(broker, LINE, clock=clock, records_max=1) as log:
        await until(lambda: "s" in log.states() and log.states()["s"].outcome is not None)
        records = await quiet(pen, log)
    assert kinds(records, StepFailed, *BY_SAGA_LOG) == ["SagaCompleted:"]


async def test_a_compensation_that_does_not_answer_leaves_the_saga_stuck() -> None:
    clock = FakeClock()
    broker = await a_broker(LINE, now_ms=clock.now_ms)
    pen = await a_pen(broker, LINE)
    async with running(broker, LINE, clock=clock) as log:
        await pen.start("s")
        await pen.completed("s", "a")
        await pen.failed("s", "b")
        await quiet(pen, log)
        clock.ms += 15 * 60_000 + 6_000
        await until(lambda: log.states()["s"].phase is Phase.STUCK)
        assert kinds(await quiet(pen, log), CompensationFailed, SagaStuck) == ["CompensationFailed:a", "SagaStuck:a"]


# Crashes.


class Reaper:
    """Kills a saga-log at its n-th await on the outside world, before or after the world has done it."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.dead = False

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.dead = True
        if self.dead:
            raise asyncio.CancelledError

    def mortal(self, inner: Any) -> Any:
        return _Mortal(inner, self)


class _Mortal:
    def __init__(self, inner: Any, reaper: Reaper) -> None:
        self._inner, self._reaper = inner, reaper

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(found) or name == "close":
            return found

        async def mortal(*args: Any, **kwargs: Any) -> Any:
            self._reaper.step()
            result = await found(*args, **kwargs)
            self._reaper.step()
            return self._reaper.mortal(result) if name in ("producer", "consumer") else result

        return mortal


async def a_hard_day(pen: Pen) -> None:
    """A saga that completes, one that fails, one that is cancelled, and bytes that nobody can read."""
    await pen.whole_line("good")
    await pen.start("bad")
    await pen.completed("bad", "a")
    await pen.raw("bad", b"?")
    await pen.completed("bad", "b")
    await pen.failed("bad", "c", effect="unknown")
    await pen.start("gone")
    await pen.cancel("gone")
    await pen.completed("gone", "a")
    await pen.failed("gone", "b")
    await pen.start("good", 2, request="r2")


def meaning(states: dict[str, SagaState]) -> dict[str, Any]:
    """What must not depend on where a saga-log was killed."""
    return {
        saga_id: (state.phase, state.outcome, state.undone, sorted(state.standing), state.owed, state.is_settled)
        for saga_id, state in states.items()
    }


async def day_with_a_death(at: int, store: Store | None) -> tuple[bool, list[AnyRecord], dict[str, Any], int]:
    broker = await a_broker(LINE, options="?session_timeout_ms=60&heartbeat_ms=20")  # a dead member is soon forgotten
    pen = await a_pen(broker, LINE)
    await a_hard_day(pen)
    reaper = Reaper(at)
    first = SagaLog(
        reaper.mortal(broker),
        reaper.mortal(store or MemoryStore()),
        [LINE],
        poll_timeout_s=0.001,
        records_max=3,
        save_interval_s=0.0,
    )
    task = asyncio.create_task(first.run())
    try:
        async with asyncio.timeout(5):
            while not reaper.dead and not await folded_to_the_end(first, broker):
                await asyncio.sleep(0.001)
    finally:
        task.cancel()
        await asyncio.wait((task,))
    assert task.cancelled() or task.exception() is None
    async with running(broker, LINE, store=store, poll_timeout_s=0.001) as second:
        await until(lambda: folded_to_the_end(second, broker))
        while await answer_all(pen):
            await until(lambda: folded_to_the_end(second, broker))
        records = await readable(pen)
    from choreo.broker.registry import Registry
    from choreo.saga_log.replay import replay

    states = {state.saga_id: state async for state, _ in replay(broker, "order", registry=Registry(broker))}
    letters = len(await messages_of(broker, "choreo.order.dead-letters"))
    return reaper.dead, records, meaning(states), letters


async def folded_to_the_end(log: SagaLog, broker: MemoryBroker) -> bool:
    """It has read all there is, and everything owed is in the log."""
    shards = log._own.shards.values()
    ends = await broker.offsets([shard.tp for shard in shards])
    if log._busy.locked() or not shards or log.not_ready_because():
        return False
    owing = any(state.owed for shard in shards for state in shard.states().values())
    return not owing and all(shard.offset == ends[shard.tp][1] for shard in shards)


async def readable(pen: Pen) -> list[AnyRecord]:
    from choreo.messages.codec import decode

    return [decode(each.key, each.value, each.headers) for each in await pen.log() if each.value != b"?"]


async def answer_all(pen: Pen) -> bool:
    """Answer every Compensate that is not answered; says whether there was one."""
    records = await readable(pen)
    said = {each.id for each in records}
    commands = {each.id: each for each in records if isinstance(each, Compensate)}
    todo = [each for each in commands.values() if f"{each.id}/answer/undo" not in said]
    for each in todo:
        await pen.write(answer_to(each))
    return bool(todo)


@pytest.mark.parametrize("keeps_its_store", [False, True])
async def test_killed_at_any_await_and_restarted_it_loses_and_doubles_nothing(*, keeps_its_store: bool) -> None:
    async def day(at: int) -> tuple[bool, list[AnyRecord], dict[str, Any], int]:
        return await day_with_a_death(at, MemoryStore() if keeps_its_store else None)

    _, undisturbed, expected, letters_expected = await day(10**9)
    assert letters_expected == 1
    assert {each.id for each in undisturbed if isinstance(each, SagaCompleted | SagaCompensated)} == {
        "good/outcome",
        "bad/outcome",
        "gone/outcome",
    }
    deaths = 0
    for at in range(1, 400):
        died, records, states, letters = await day(at)
        if not died:
            break
        deaths += 1
        assert states == expected, f"killed at await {at}"
        contents: dict[str, AnyRecord] = {}
        for each in records:
            if isinstance(each, BY_SAGA_LOG):
                assert contents.setdefault(each.id, each) == each, f"two contents of {each.id}, killed at await {at}"
        assert set(contents) == {each.id for each in undisturbed if isinstance(each, BY_SAGA_LOG)}
        assert 1 <= letters <= 2
    assert deaths > 40
    assert not died, "the loop covers the whole run"


async def test_killed_after_every_record_and_restarted_it_decides_the_same() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = MemoryStore()
    steps: list[Callable[[], Awaitable[Any]]] = [
        lambda: pen.start("s"),
        lambda: pen.completed("s", "a"),
        lambda: pen.completed("s", "b"),
        lambda: pen.failed("s", "c"),
        lambda: pen.compensated("s", "b"),
        lambda: pen.compensated("s", "a"),
    ]
    for step in steps:
        await step()
        log = SagaLog(broker, store, [LINE], poll_timeout_s=0.005, save_interval_s=0.0)
        task = asyncio.create_task(log.run())
        await until(lambda log=log: folded_to_the_end(log, broker))  # type: ignore[misc]
        task.cancel()
        await asyncio.wait((task,))
    assert kinds(await pen.records()) == ["Compensate:b", "Compensate:a", "SagaCompensated:"]


async def test_a_deleted_store_is_rebuilt_to_the_same_states() -> None:
    broker = await a_broker(LINE, partitions=2)
    pen = await a_pen(broker, LINE)
    store = MemoryStore()
    async with running(broker, LINE, store=store) as log:
        for number in range(10):
            await pen.whole_line(f"good{number}")
            await pen.start(f"bad{number}")
            await pen.completed(f"bad{number}", "a")
            await pen.failed(f"bad{number}", "b")
        records = await serve(pen, log)
    rebuilt = MemoryStore()
    async with running(broker, LINE, store=rebuilt) as log:
        await until(lambda: log.not_ready_because() is None and len(log.states()) == 20)
        assert await pen.records() == records, "a rebuild says nothing"
    assert store._rows == rebuilt._rows
    assert store._checkpoints == rebuilt._checkpoints


async def test_it_goes_on_from_the_store_without_reading_the_log_again(tmp_path: Path) -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = await open_store(f"sqlite:///{tmp_path}/s.db")
    async with running(broker, LINE, store=store) as log:
        await pen.start("s")
        await pen.completed("s", "a")
        await quiet(pen, log)
    metrics = Metrics()
    async with running(broker, LINE, store=store, metrics=metrics) as log:
        await until(lambda: log.not_ready_because() is None)
        assert log.states()["s"].standing == {"a": 1}
        await pen.failed("s", "b")
        assert kinds(await quiet(pen, log)) == ["Compensate:a"]
        assert value(metrics, "choreo_log_replayed_records_total", source="rebuild") == 1, "the one that proves the log"
    await store.close()


async def test_a_pause_of_the_type_outlives_a_restart_and_holds_what_starts_later(tmp_path: Path) -> None:
    broker = await a_broker(LINE, partitions=3)
    pen = await a_pen(broker, LINE)
    store = await open_store(f"sqlite:///{tmp_path}/s.db")
    metrics = Metrics()
    async with Client(broker) as client:
        async with running(broker, LINE, store=store) as log:
            await pen.start("before")
            await client.pause(LINE, operator="ada", reason="moving house")
            await pen.completed("before", "a")
            await until(lambda: "before" in log.states() and log.states()["before"].standing == {"a": 1})
        async with running(broker, LINE, store=store, metrics=metrics) as log:
            await pen.start("later")
            await until(lambda: log.states().get("later", SagaState("")).is_paused)
            await until(lambda: value(metrics, "choreo_sagas_paused", saga="order") == 2)
            assert log.states()["later"].instance(("a", 1)).held
            assert log.states()["before"].instance(("b", 1)).held
            assert (await client.status(LINE, "later")).paused[0].operator == "ada"
            await client.resume(LINE, operator="ada", reason="moved")
            await until(lambda: value(metrics, "choreo_sagas_paused", saga="order") == 0)
            for saga_id, step in (("before", "b"), ("later", "a")):
                state = log.states()[saga_id]
                assert state.instance((step, 1)).in_flight
                assert not state.is_paused
    await store.close()


async def test_a_settled_saga_comes_back_from_the_store_when_a_record_comes() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    async with running(broker, LINE, resting_max=0) as log:
        await pen.start("s")
        await pen.failed("s", "a")
        await until(lambda: has(pen, SagaCompensated))
        await until(lambda: not log.states())
        await pen.completed("s", "a", run="another")
        await until(lambda: "s" in log.states())
        await pen.failed("s", "b")
        await until(lambda: has(pen, Compensate))
        assert kinds(await pen.records()) == ["SagaCompensated:", "Compensate:a"]


class AskedStore(MemoryStore):
    """A store that knows for which sagas it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def load(self, tp: TopicPartition, saga_ids: Collection[str]) -> Mapping[str, SagaState]:
        self.asked += saga_ids
        return await super().load(tp, saga_ids)


async def test_for_new_sagas_the_store_is_not_asked_and_for_finished_ones_it_is() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = AskedStore()
    async with running(broker, LINE, store=store, resting_max=0) as log:
        await pen.start("before")
        await pen.failed("before", "a")
        await until(lambda: has(pen, SagaCompensated))
        await until(lambda: not log.states())
    async with running(broker, LINE, store=store, resting_max=0) as log:
        await until(lambda: [each.known.read_after for each in log._own.shards.values()] == [None])
        for name in ("new", "newer"):
            await pen.start(name)
            await pen.failed(name, "a")
        await until(lambda: len(store._rows) == 3 and not log.states())
        assert not {"new", "newer"}.intersection(store.asked)
        for name in ("before", "new"):
            await pen.start(name, request="again")
        await until(lambda: {"before", "new"} <= set(store.asked))
        await until(lambda: folded_to_the_end(log, broker))
        assert kinds(await pen.records()) == ["SagaCompensated:"] * 5, "told again, and nothing begun again"


async def has(pen: Pen, kind: type[Record]) -> bool:
    return any(isinstance(each, kind) for each in await pen.records())


async def test_an_outcome_that_is_asked_for_again_during_a_repair_is_told_again() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    async with running(broker, LINE) as log:
        await pen.start("s")
        await pen.failed("s", "a")
        await quiet(pen, log)
        await pen.completed("s", "a", run="another")  # now b is in flight, so the saga is not settled
        await quiet(pen, log)
        for request in ("r2", "r3"):
            await pen.start("s", request=request)
            await quiet(pen, log)
        assert kinds(await pen.records()) == ["SagaCompensated:"] * 3


async def test_a_rebuild_never_moves_the_groups_offset_back() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    for name in ("s", "t"):
        await pen.whole_line(name)
    committed: list[int] = []
    commit = broker._log.commit

    async def noted(group: str, member: str, offsets: Any) -> None:
        committed.extend(place.offset for place in offsets.values())
        await commit(group, member, offsets)

    broker._log.commit = noted  # type: ignore[method-assign]
    for _ in range(2):
        async with running(broker, LINE, records_max=1) as log:
            await until(lambda log=log: folded_to_the_end(log, broker))  # type: ignore[misc]
    assert committed == sorted(committed)
    assert committed[-1] == len(await pen.log())


async def test_a_log_that_ends_with_a_hole_is_read_to_its_end() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    await pen.whole_line("s")
    appended = await pen.raw("s", b"?")
    del broker._log._partitions[TopicPartition("choreo.order", 0)]._records[appended.offset]
    async with running(broker, LINE) as log:
        await until(lambda: log.not_ready_because() is None and "s" in log.states())
        await until(lambda: has(pen, SagaCompleted))


# The store.


async def test_a_store_that_is_ahead_of_the_log_is_of_another_log() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = MemoryStore()
    await store.save([Advance(TopicPartition("choreo.order", 0), None, Checkpoint(900, "x"), [])])
    await pen.whole_line("s")
    async with running(broker, LINE, store=store) as log:
        await until(lambda: "s" in log.states())
        assert kinds(await quiet(pen, log)) == ["SagaCompleted:"]
    checkpoint = await store.checkpoint(TopicPartition("choreo.order", 0))
    assert checkpoint is not None
    assert checkpoint.offset == 5


async def test_a_store_whose_last_record_is_another_one_is_of_another_log() -> None:
    other = await a_broker(LINE)
    store = MemoryStore()
    async with running(other, LINE, store=store) as log:
        pen = await a_pen(other, LINE)
        await pen.start("theirs")
        await pen.completed("theirs", "a")
        await quiet(pen, log)
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    await pen.whole_line("ours")
    async with running(broker, LINE, store=store) as log:
        await until(lambda: "ours" in log.states())
        assert kinds(await quiet(pen, log)) == ["SagaCompleted:"]
        assert set(log.states()) == {"ours"}
    assert await store.find("order", "theirs") is None


async def test_a_store_that_lags_behind_what_the_log_still_has_is_rebuilt() -> None:
    clock = FakeClock()
    broker = await a_broker(LINE, now_ms=clock.now_ms)
    pen = await a_pen(broker, LINE)
    store = MemoryStore()
    async with running(broker, LINE, store=store, clock=clock) as log:
        await pen.start("old")
        await quiet(pen, log)
    for number in range(3):
        clock.ms += 5 * 86_400_000
        await pen.start(f"new{number}")
    async with running(broker, LINE, store=store, clock=clock) as log:
        await until(lambda: "new2" in log.states())
        assert "old" not in log.states()


async def test_when_another_instance_has_saved_the_partition_is_loaded_again() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = MemoryStore()
    tp = TopicPartition("choreo.order", 0)
    async with running(broker, LINE, store=store) as log:
        await pen.start("s")
        await quiet(pen, log)
        checkpoint = await store.checkpoint(tp)
        assert checkpoint is not None
        store._checkpoints[tp] = checkpoint._replace(offset=0)  # as a slower instance would leave it
        await pen.completed("s", "a")
        await pen.completed("s", "b")
        await pen.completed("s", "c")
        await until(lambda: store._checkpoints[tp].offset == 5)
        await until(lambda: log.not_ready_because() is None)
        assert set(kinds(await pen.records())) == {"SagaCompleted:"}


class FullDisk(MemoryStore):
    """A store that cannot be written for a while."""

    full = True

    async def save(self, advances: Any) -> None:
        if self.full:
            raise StoreError("the disk is full")
        await super().save(advances)


class CountingStore(MemoryStore):
    """A store that knows how often it was written."""

    saves = 0

    async def save(self, advances: Sequence[Advance]) -> None:
        self.saves += 1
        await super().save(advances)


async def test_a_saga_that_goes_through_many_batches_is_saved_once_and_at_the_end() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = CountingStore()
    async with running(broker, LINE, store=store, save_interval_s=60.0) as log:
        await pen.start("first")
        await quiet(pen, log)
        await pen.start("s")
        await pen.completed("s", "a")
        await quiet(pen, log)
        await pen.completed("s", "b")
        await pen.completed("s", "c")
        assert kinds(await quiet(pen, log))[-1] == "SagaCompleted:"
        assert store.saves <= 1
        assert await store.find("order", "s") is None
    found = await store.find("order", "s")
    assert found is not None
    assert found.phase is Phase.COMPLETED
    assert store.saves <= 2


async def test_a_store_that_cannot_be_written_stops_no_saga(caplog: pytest.LogCaptureFixture) -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = FullDisk()
    async with running(broker, LINE, store=store) as log:
        await pen.whole_line("s")
        await pen.whole_line("t")
        assert kinds(await quiet(pen, log)) == ["SagaCompleted:", "SagaCompleted:"]
        assert "the disk is full" in caplog.text
        store.full = False
        await until(lambda: len(store._rows) == 2)


async def test_a_store_that_is_damaged_while_it_is_used_is_rebuilt(tmp_path: Path) -> None:
    import sqlite3

    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = await open_store(f"sqlite:///{tmp_path}/s.db")
    async with running(broker, LINE, store=store, resting_max=0) as log:
        await pen.start("s")
        await pen.failed("s", "a")
        await until(lambda: has(pen, SagaCompensated))
        await until(lambda: not log.states())
        with sqlite3.connect(tmp_path / "s.db") as connection:
            connection.execute("UPDATE sagas SET blob = x'c1'")
        connection.close()
        await pen.start("t")
        await pen.completed("s", "a", run="another")
        await until(lambda: {"s", "t"} <= set(log.states()))
    assert await store.find("order", "t") is not None
    await store.close()


async def test_sagas_that_rest_for_longer_than_the_retention_leave_the_store() -> None:
    clock = FakeClock()
    broker = await a_broker(LINE, now_ms=clock.now_ms)
    pen = await a_pen(broker, LINE)
    store = MemoryStore()
    async with running(broker, LINE, store=store, clock=clock) as log:
        await pen.start("ended")
        await pen.failed("ended", "a")
        await pen.start("running")
        await quiet(pen, log)
        clock.ms += 8 * 86_400_000
        await until(lambda: ("choreo.order", "ended") not in store._rows)
        assert ("choreo.order", "running") in store._rows


# What it cannot read.


async def test_bytes_that_are_no_record_go_to_the_dead_letters_and_the_partition_goes_on() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    metrics = Metrics()
    async with running(broker, LINE, metrics=metrics) as log:
        await pen.start("s")
        await pen.raw("s", b"\xff\x00", (("content-type", b"application/json"), ("foreign", b"\xfe")))
        for step in "abc":
            await pen.completed("s", step)
        await until(lambda: log.states().get("s", SagaState("s")).finished_ms > 0)
    [letter] = await messages_of(broker, "choreo.order.dead-letters")
    assert (letter.key, letter.value) == (b"s", b"\xff\x00")
    headers = dict(letter.headers)
    assert headers["foreign"] == b"\xfe"
    assert (headers["choreo_error_reason"], headers["choreo_error_type"]) == (b"undecodable", b"Undecodable")
    assert b"not a record of choreo" in headers["choreo_error_message"]
    assert (headers["choreo_original_topic"], headers["choreo_original_partition"]) == (b"choreo.order", b"0")
    assert (headers["choreo_original_offset"], int(headers["choreo_original_timestamp"]) > 0) == (b"1", True)
    assert value(metrics, "choreo_dead_letters_total", topic="choreo.order", reason="undecodable") == 1


async def test_a_saga_with_a_dead_letter_says_so_in_memory_in_the_store_and_in_every_fold() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = MemoryStore()
    await pen.raw("s", b"before the start, of which nothing is known yet")
    await pen.start("s")
    await pen.raw("s", b"?")
    await pen.start("t", contract_hash="f" * 32)
    await pen.start("t")
    await pen.start("t", contract_hash="f" * 32)
    async with running(broker, LINE, store=store) as log:
        await until(lambda: log.states().get("t", SagaState("t")).dead_letters == 1)
        assert log.states()["s"].dead_letters == 1
        await pen.completed("s", "a")
        await until(lambda: log.states()["s"].standing == {"a": 1})
    stored = await store.find("order", "s")
    assert stored is not None
    assert stored.dead_letters == 1
    async with Client(broker) as client:
        assert (await client.status(LINE, "s")).dead_letters == 1
        assert (await client.status(LINE, "t")).dead_letters == 1


async def test_a_rebuild_does_not_write_dead_letters_again() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    await pen.raw("s", b"?")
    await pen.start("s")
    await pen.completed("s", "a")
    for _ in range(3):
        async with running(broker, LINE, records_max=1) as log:
            await until(lambda log=log: "s" in log.states() and log.states()["s"].standing == {"a": 1})  # type: ignore[misc]
            await asyncio.sleep(0.01)
    assert len(await messages_of(broker, "choreo.order.dead-letters")) == 1


async def test_a_dead_letter_that_was_left_at_a_stop_is_written_by_the_next_owner() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = MemoryStore()
    async with running(DeafBroker(broker, 0), LINE, store=store, clock=FakeClock()) as log:
        await pen.start("s")
        await pen.raw("s", b"\xff\x00")
        await until(lambda: "s" in log.states())
        await log.stop()
    assert await messages_of(broker, "choreo.order.dead-letters") == []
    async with running(broker, LINE, store=store) as log:
        await until(lambda: folded_to_the_end(log, broker))
    [letter] = await messages_of(broker, "choreo.order.dead-letters")
    assert (letter.key, letter.value) == (b"s", b"\xff\x00")


async def test_a_dead_letter_that_is_too_large_with_its_reason_keeps_what_fits() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    async with running(broker, LINE):
        await pen.raw("s", b"x" * 1_048_500, (("foreign", b"y" * 50),))
        await pen.raw("s", b"x" * 500_000, (("foreign", b"y" * 548_500),))

        async def letters() -> bool:
            return len(await messages_of(broker, "choreo.order.dead-letters")) == 2

        await until(letters)
    first, second = await messages_of(broker, "choreo.order.dead-letters")
    assert (first.value, first.header("foreign"), first.header("choreo_original_cut")) == (b"", None, b"value")
    assert (len(second.value), second.header("foreign")) == (500_000, None)
    assert second.header("choreo_original_cut") == b"headers"


async def test_a_start_under_a_changed_contract_is_refused() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    async with running(broker, LINE) as log:
        await pen.start("s", contract_hash="f" * 32)
        await pen.start("t")
        await until(lambda: "t" in log.states())
        assert "s" not in log.states()
    [letter] = await messages_of(broker, "choreo.order.dead-letters")
    assert letter.header("choreo_error_type") == b"ContractMismatch"
    assert LINE.content_hash.encode() in (letter.header("choreo_error_message") or b"")


NEXT = Saga("order", Step("x", compensation="undo_x"), version=2)


async def test_a_saga_of_an_unknown_contract_waits_until_the_contract_is_published() -> None:
    clock = FakeClock()
    broker = await a_broker(LINE)
    pen, old = await a_pen(broker, NEXT), await a_pen(broker, LINE)
    store, metrics = MemoryStore(), Metrics()
    async with running(broker, LINE, store=store, clock=clock, metrics=metrics) as log:
        await pen.start("s")
        await pen.completed("s", "x")
        await old.start("t")
        await until(lambda: "t" in log.states())
        assert "s" not in log.states()
        await until(lambda: value(metrics, "choreo_records_parked", saga="order") == 2)
        await register(broker, [NEXT])
        clock.ms += 5_000
        await until(lambda: "s" in log.states())
        await until(lambda: has(pen, SagaCompleted))
        await until(lambda: value(metrics, "choreo_records_parked", saga="order") == 0)
    assert await store.parked_sagas(TopicPartition("choreo.order", 0)) == {}
    assert await store.find("order", "s") is not None


async def test_what_waits_for_a_contract_survives_a_restart(tmp_path: Path) -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, NEXT)
    store = await open_store(f"sqlite:///{tmp_path}/s.db")
    tp = TopicPartition("choreo.order", 0)
    await pen.start("s")
    async with running(broker, LINE, store=store):
        await until(lambda: parked(store, tp))
    async with running(broker, LINE, store=store) as log:
        await until(lambda: log.not_ready_because() is None)
        await pen.completed("s", "x")
        await until(lambda: parked(store, tp, 2))
    async with running(broker, LINE, NEXT, store=store) as log:
        await until(lambda: has(pen, SagaCompleted))
    assert not await parked(store, tp)
    await store.close()


async def parked(store: Store, tp: TopicPartition, number: int = 1) -> bool:
    return len(await store.load_parked(tp, "s")) >= number


async def test_a_contract_that_is_published_just_before_its_saga_starts_is_found_at_once() -> None:
    broker = await a_broker(LINE)
    pen, other = await a_pen(broker, NEXT), await a_pen(broker, Saga("order", Step("y"), version=9))
    metrics = Metrics()
    async with running(broker, LINE, clock=FakeClock(), metrics=metrics) as log:
        await other.start("t")
        await until(lambda: value(metrics, "choreo_records_parked", saga="order") == 1)
        await register(broker, [NEXT])
        await pen.start("s")
        await until(lambda: "s" in log.states())
        assert value(metrics, "choreo_records_parked", saga="order") == 1


async def test_a_join_whose_context_is_too_large_fails_and_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Saga(
        "wide",
        *(Step(f"s{n}", compensation=f"undo{n}", after=()) for n in range(5)),
        Step("j", after=[f"s{n}" for n in range(5)]),  # type: ignore[arg-type]
    )
    broker = await a_broker(wide)
    pen = await a_pen(broker, wide)
    async with running(broker, wide) as log:
        await pen.start("s")
        for number in range(5):
            await pen.completed("s", f"s{number}", "x" * 200_000)
        await until(lambda: has(pen, StepFailed))
        [failed] = [each for each in await pen.records() if isinstance(each, StepFailed)]
        assert (failed.step, failed.failure.kind, failed.failure.code, failed.effect) == (
            "j",
            "rejected",
            "context_too_large",
            "none",
        )
        records = await serve(pen, log)
        await until(lambda: log.states()["s"].is_settled)  # what was owed is told, if in other words
    assert Counter(kinds(records)) == {f"Compensate:s{n}": 1 for n in range(5)} | {"SagaCompensated:": 1}


async def test_an_outcome_that_is_too_large_is_told_without_the_effects() -> None:
    chain = Saga("chain", *(Step(f"s{n}") for n in range(5)))
    broker = await a_broker(chain)
    pen = await a_pen(broker, chain)
    async with running(broker, chain) as log:
        await pen.start("s")
        for number in range(5):
            await pen.completed("s", f"s{number}", "x" * 200_000)
        await until(lambda: log.states().get("s", SagaState("s")).finished_ms > 0)
        [outcome] = [each for each in await pen.records() if isinstance(each, SagaCompleted)]
    assert outcome.effects == {}
    assert len(bytes(outcome.result)) == 200_002


# Several instances, outages, the end.


async def test_two_instances_share_the_partitions_and_take_over_from_each_other() -> None:
    broker = await a_broker(LINE, partitions=4, options="?heartbeat_ms=20&session_timeout_ms=200")
    pen = await a_pen(broker, LINE)
    store = MemoryStore()
    async with running(broker, LINE, store=store) as first:
        for number in range(20):
            await pen.start(f"s{number}")
        await until(lambda: len(first.states()) == 20)
        async with running(broker, LINE, store=store) as second:
            await until(lambda: len(first._own.shards) == len(second._own.shards) == 2)
            for number in range(20):
                await pen.completed(f"s{number}", "a")
                await pen.completed(f"s{number}", "b")
            await until(lambda: {**first.states(), **second.states()}.keys() == {f"s{n}" for n in range(20)})
        await until(lambda: len(first._own.shards) == 4)
        for number in range(20):
            await pen.completed(f"s{number}", "c")
        records = await quiet(pen, first)
    assert Counter(kinds(records)) == {"SagaCompleted:": 20}
    assert {row.phase for row in await store.search(Query())} == {"completed"}


class Flaky:
    """A producer for which the broker is away for the first few sends; the record may have arrived all the same."""

    def __init__(self, inner: Any, outages: int) -> None:
        self._inner, self.outages = inner, outages

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        if self.outages > 0:
            self.outages -= 1
            if self.outages % 2:
                await self._inner.send(*args, **kwargs)
            raise BrokerUnavailable("the broker is away")
        return await self._inner.send(*args, **kwargs)

    async def close(self) -> None:
        await self._inner.close()


class FlakyBroker:
    def __init__(self, inner: MemoryBroker, outages: int) -> None:
        self._inner, self.outages = inner, outages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def producer(self) -> Any:
        return Flaky(await self._inner.producer(), self.outages)


class Deaf(Flaky):
    """A producer whose records do not arrive."""

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        raise BrokerUnavailable("the broker is away")


class DeafBroker(FlakyBroker):
    """It can be read from, and takes nothing."""

    async def producer(self) -> Any:
        return Deaf(await self._inner.producer(), 0)


async def test_it_sends_again_until_the_broker_is_back() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    async with running(FlakyBroker(broker, 7), LINE, clock=FakeClock()) as log:
        await pen.whole_line("s")
        await until(lambda: log.states().get("s", SagaState("s")).finished_ms > 0)
        records = await quiet(pen, log)
    assert set(kinds(records)) == {"SagaCompleted:"}


class LateBroker(FlakyBroker):
    """It cannot say where the log ends for a while."""

    async def offsets(self, tps: Any) -> Any:
        # The registry has read the contracts by then.
        if self.outages > 0 and any(tp.topic == "choreo.order" for tp in tps):
            self.outages -= 1
            raise BrokerUnavailable("no leader")
        return await self._inner.offsets(tps)

    async def producer(self) -> Any:
        return await self._inner.producer()


async def test_a_partition_that_cannot_be_opened_is_opened_later_from_its_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    await pen.whole_line("s")
    async with running(LateBroker(broker, 3), LINE) as log:
        await until(lambda: folded_to_the_end(log, broker))
        assert kinds(await pen.records()) == ["SagaCompleted:"]
    assert "cannot be opened yet" in caplog.text


async def test_instances_with_stores_of_their_own_take_over_from_each_other() -> None:
    broker = await a_broker(LINE, options="?heartbeat_ms=20&session_timeout_ms=200")
    pen = await a_pen(broker, LINE)
    stores = [MemoryStore(), MemoryStore()]
    steps: list[Callable[[], Awaitable[Any]]] = [
        lambda: pen.start("s"),
        lambda: pen.completed("s", "a"),
        lambda: pen.completed("s", "b"),
        lambda: pen.failed("s", "c"),
        lambda: pen.compensated("s", "b"),
        lambda: pen.compensated("s", "a"),
    ]
    for turn, step in enumerate(steps):
        await step()
        async with running(broker, LINE, store=stores[turn % 2]) as log:
            await until(lambda log=log: folded_to_the_end(log, broker))  # type: ignore[misc]
    assert kinds(await pen.records()) == ["Compensate:b", "Compensate:a", "SagaCompensated:"]


async def test_an_instance_that_lost_its_partition_unawares_repeats_at_most_what_everyone_knows() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = MemoryStore()
    async with running(broker, LINE, store=store) as one, running(broker, LINE, store=store, group="other") as other:
        for number in range(10):
            await pen.start(f"s{number}")
            await pen.completed(f"s{number}", "a")
            await pen.failed(f"s{number}", "b")
        await until(lambda: folded_to_the_end(one, broker))
        while await answer_all(pen):
            await until(lambda: folded_to_the_end(one, broker))
        await until(lambda: folded_to_the_end(other, broker))
        records = await pen.records()
    contents: dict[str, AnyRecord] = {}
    for each in records:
        assert contents.setdefault(each.id, each) == each
    assert {each.id for each in records if isinstance(each, SagaCompensated)} == {f"s{n}/outcome" for n in range(10)}


async def test_it_stops_although_the_broker_is_away() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    async with running(FlakyBroker(broker, 10**9), LINE, clock=FakeClock()) as log:
        await pen.whole_line("s")
        await until(lambda: log.states().get("s", SagaState("s")).outcome is not None)
        async with asyncio.timeout(2):
            await log.stop()


async def test_stop_finishes_the_batch_saves_and_leaves_the_group() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = MemoryStore()
    async with running(broker, LINE, store=store) as log:
        await pen.start("s")
        await quiet(pen, log)
        await log.stop()
        assert log.not_ready_because() == "the saga-log is not running"
    assert await store.find("order", "s") is not None
    async with running(broker, LINE, store=store) as log:
        await until(lambda: log.not_ready_because() is None and "s" in log.states(), 0.5)


async def test_a_saga_log_without_contracts_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no contracts"):
        SagaLog(await a_broker(LINE), MemoryStore(), [])


async def test_stop_before_run_returns() -> None:
    await SagaLog(await a_broker(LINE), MemoryStore(), [LINE]).stop()


# Metrics.


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


async def test_what_happened_is_counted_once_over_restarts_and_what_is_is_shown_again() -> None:
    clock = FakeClock()
    broker = await a_broker(LINE, now_ms=clock.now_ms)
    pen = await a_pen(broker, LINE)
    metrics = Metrics()
    async with running(broker, LINE, metrics=metrics, clock=clock) as log:
        await pen.start("ends")
        await quiet(pen, log)
        clock.ms += 2_000
        await pen.failed("ends", "a")
        await quiet(pen, log)
        clock.ms += 1
        await pen.start("goes-on")
        await pen.start("goes-on")
        await pen.completed("goes-on", "a", due_ms=1)
        await quiet(pen, log)
        assert value(metrics, "choreo_sagas_started_total", saga="order") == 2
        assert value(metrics, "choreo_sagas_finished_total", saga="order", outcome="compensated") == 1
        assert value(metrics, "choreo_saga_duration_seconds_sum", saga="order", outcome="compensated") == 2
        assert value(metrics, "choreo_compensate_commands_total", saga="order") == 1
        assert value(metrics, "choreo_events_late_total", saga="order", step="a") == 1
        assert value(metrics, "choreo_events_duplicate_total", saga="order") == 1
        await until(lambda: value(metrics, "choreo_sagas_in_progress", saga="order", phase="compensating") == 1)
        assert value(metrics, "choreo_saga_oldest_in_progress_timestamp_seconds", saga="order") == (T0 + 2_001) / 1_000
        await until(lambda: value(metrics, "choreo_timers_pending", saga="order") == 1)
        records = len(await pen.log())
        topic, group = "choreo.order", "choreo.saga-log"
        assert value(metrics, "choreo_messages_consumed_total", topic=topic, group=group) == records
        assert (
            metrics.registry.get_sample_value(
                "choreo_consumer_lag_records", {"topic": topic, "partition": "0", "group": group}
            )
            == 0
        )
    again = Metrics()
    async with running(broker, LINE, metrics=again, clock=clock) as log:  # without its store
        await until(lambda: log.not_ready_because() is None and len(log.states()) == 2)
        await until(lambda: value(again, "choreo_sagas_in_progress", saga="order", phase="compensating") == 1)
        assert value(again, "choreo_log_replayed_records_total", source="rebuild") == records
        for name in ("sagas_started", "compensate_commands", "events_duplicate"):
            assert value(again, f"choreo_{name}_total", saga="order") == 0
        assert value(again, "choreo_sagas_finished_total", saga="order", outcome="compensated") == 0
        await pen.compensated("goes-on", "a")
        await until(lambda: value(again, "choreo_sagas_finished_total", saga="order", outcome="compensated") == 1)
        await until(lambda: value(again, "choreo_sagas_in_progress", saga="order", phase="compensating") == 0)
        await until(
            lambda: (
                again.registry.get_sample_value("choreo_saga_oldest_in_progress_timestamp_seconds", {"saga": "order"})
                is None
            )
        )


# Timers, without a saga-log.


def test_a_fired_timer_waits_until_its_record_is_read_back() -> None:
    timers = Timers()
    timers.set("s", 100, offset=5)
    assert timers.due(99, 10) == []
    assert timers.due(100, 10) == ["s"]
    timers.fired("s", 100, offset=9)
    timers.set("s", 100, offset=8)  # another record of the saga was read first
    assert timers.next_ms() is None
    timers.set("s", 100, offset=9)
    assert timers.next_ms() == 600
    timers.set("s", 2_000, offset=10)
    assert timers.next_ms() == 2_000
    assert len(timers) == 1


def test_a_timer_that_fired_by_a_clock_that_was_ahead_does_not_wait_for_that_clock() -> None:
    hour_ms = 3_600_000
    timers = Timers()
    timers.set("s", 1_000, 0)
    assert timers.due(hour_ms, 10) == ["s"]
    timers.fired("s", hour_ms, 5)
    timers.set("s", 1_000, 5)
    assert timers.next_ms() == hour_ms + EARLY_PAUSE_MS
    assert timers.due(900, 10) == []  # the clock is set right
    assert timers.due(1_000, 10) == ["s"]


def test_a_clock_that_is_set_right_before_a_fired_record_is_read_back_delays_nothing() -> None:
    hour_ms = 3_600_000
    timers = Timers()
    timers.set("s", 1_000, 0)
    timers.due(hour_ms, 10)
    timers.fired("s", hour_ms, 5)
    assert timers.due(900, 10) == []
    timers.set("s", 1_000, 5)
    assert timers.due(1_000, 10) == ["s"]


def test_timers_that_were_moved_or_taken_away_do_not_fire() -> None:
    timers = Timers()
    timers.set("a", 100, offset=1)
    timers.set("b", 100, offset=1)
    timers.set("a", 300, offset=2)
    timers.set("b", None, offset=2)
    assert timers.due(200, 10) == []
    assert timers.due(300, 10) == ["a"]
    assert timers.next_ms() is None


def test_timers_that_are_moved_for_ever_take_no_room() -> None:
    timers = Timers()
    for at_ms in range(100_000):
        timers.set("a", at_ms, offset=at_ms)
    assert len(timers._heap) < 2_000
    assert timers.due(10**9, 10) == ["a"]


def test_at_most_so_many_timers_fire_at_once_the_earliest_first() -> None:
    timers = Timers()
    for number in range(10):
        timers.set(f"s{number}", 100 - number, offset=1)
    assert timers.due(100, 3) == ["s9", "s8", "s7"]
    assert timers.due(100, 3) == ["s6", "s5", "s4"]
