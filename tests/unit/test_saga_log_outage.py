"""The saga-log while its store is away: it decides on, loses nothing, and catches up when the store is back."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from choreo.broker.port import Message, TopicPartition
from choreo.broker.registry import register
from choreo.contract import Saga, Step
from choreo.errors import StoreConflict, StoreError, StoreUnavailable
from choreo.messages.records import Compensate, SagaCompensated
from choreo.saga_log import SagaLog
from choreo.saga_log.ownership import Ownership
from choreo.saga_log.shard import Shard
from choreo.store import open_store
from choreo.store.memory import MemoryStore
from choreo.store.port import Advance, Checkpoint
from tests.unit.by_hand import LINE, a_broker, a_pen
from tests.unit.test_saga_log import folded_to_the_end, has, kinds, parked, quiet, running, serve, until

TP = TopicPartition("choreo.order", 0)


class Away(MemoryStore):
    """A store whose server can be away. The last save before that may have been done all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.forgets_to_answer = False
        self.asked = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name == "close" or not inspect.iscoroutinefunction(found):
            return found

        async def asked(*args: Any, **kwargs: Any) -> Any:
            self.asked += 1
            if self.away:
                raise StoreUnavailable("no route to the store")
            result = await found(*args, **kwargs)
            if name == "save" and self.forgets_to_answer:
                self.forgets_to_answer, self.away = False, True
                raise StoreUnavailable("the connection broke")
            return result

        return asked


async def test_it_decides_on_without_its_store_and_saves_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = Away()
    async with running(broker, LINE, store=store) as log:
        await pen.start("before")
        await quiet(pen, log)
        store.away = True
        for number in range(5):
            await pen.whole_line(f"s{number}")
            await quiet(pen, log)
        assert kinds(await pen.records()) == ["SagaCompleted:"] * 5
        assert log.not_ready_because() is None
        assert caplog.text.count("no route to the store") == 1, "said once, not with every batch"
        store.away = False
        await until(lambda: len(store._rows) == 6)
        checkpoint = await store.checkpoint(TP)
        assert checkpoint is not None
        assert checkpoint.offset == len(await pen.log())


async def test_a_save_that_was_done_but_not_answered_is_found_and_gone_on_from() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = Away()
    async with running(broker, LINE, store=store) as log:
        await pen.start("s")
        await quiet(pen, log)
        store.forgets_to_answer = True
        await pen.completed("s", "a")
        await until(lambda: store.away)
        await pen.failed("s", "b")
        await until(lambda: has(pen, Compensate))
        store.away = False
        assert kinds(await serve(pen, log)) == ["Compensate:a", "SagaCompensated:"]
        await until(lambda: folded_to_the_end(log, broker))
        await until(lambda: store._checkpoints[TP].offset == log._own.shards[TP].offset)


async def test_a_record_whose_state_only_the_store_has_waits_and_is_then_folded_once() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    store = Away()
    async with running(broker, LINE, store=store, resting_max=0) as log:
        await pen.start("s")
        await pen.failed("s", "a")
        await until(lambda: has(pen, SagaCompensated))
        await until(lambda: not log.states())
        store.away = True
        await pen.completed("s", "a", run="another")
        await until(lambda: "waiting for the store" in str(log.not_ready_because()))
        assert "s" not in log.states()
        store.away = False
        await until(lambda: "s" in log.states())
        assert log.not_ready_because() is None
        assert log.states()["s"].instances["a", 1].runs == ("failed:run", "completed:another")


async def test_a_partition_that_waits_for_the_store_stops_no_other() -> None:
    broker = await a_broker(LINE, partitions=2)
    pen = await a_pen(broker, LINE)
    homes = {await broker.partition_of("choreo.order", name): name for name in (f"s{n}" for n in range(20))}
    resting, running_on = homes[0], homes[1]
    store = Away()
    async with running(broker, LINE, store=store, resting_max=0) as log:
        await pen.start(running_on)
        await pen.start(resting)
        await pen.failed(resting, "a")
        await until(lambda: has(pen, SagaCompensated))
        await until(lambda: set(log.states()) == {running_on})
        store.away = True
        await pen.completed(resting, "a", run="another")
        await until(lambda: "waiting for the store" in str(log.not_ready_because()))
        await pen.completed(running_on, "a")
        await pen.failed(running_on, "b")
        await until(lambda: has(pen, Compensate))
        assert set(log.states()) == {running_on}
        store.away = False
        await until(lambda: resting in log.states())


async def test_an_assignment_waits_for_a_store_that_is_away() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    await pen.whole_line("s")
    store = Away()
    store.away = True
    async with running(broker, LINE, store=store) as log:
        await until(lambda: store.asked > 2)
        assert "folding the log again" in str(log.not_ready_because())
        assert kinds(await pen.records()) == []
        store.away = False
        await until(lambda: folded_to_the_end(log, broker))
        assert kinds(await pen.records()) == ["SagaCompleted:"]


async def test_it_does_not_go_live_on_a_log_that_it_could_not_compare(caplog: pytest.LogCaptureFixture) -> None:
    store = Away()
    other = await a_broker(LINE)
    async with running(other, LINE, store=store) as log:
        pen = await a_pen(other, LINE)
        await pen.start("theirs")
        await pen.completed("theirs", "a")
        await quiet(pen, log)
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    for name in ("ours", "too"):
        await pen.whole_line(name)
    wipe = store.wipe
    refused = 0

    async def wipe_later(tp: TopicPartition) -> None:
        nonlocal refused
        refused += 1
        if refused < 4:
            raise StoreUnavailable("no route to the store")
        await wipe(tp)

    store.wipe = wipe_later  # type: ignore[method-assign]
    async with running(broker, LINE, store=store) as log:
        await until(lambda: "ours" in log.states())
        assert kinds(await quiet(pen, log)) == ["SagaCompleted:"] * 2
        assert set(log.states()) == {"ours", "too"}
    assert refused == 4


async def test_what_waits_for_a_contract_is_tried_again_when_the_store_is_back() -> None:
    later = Saga("order", Step("a", compensation="undo_a"), version=2)
    broker = await a_broker(LINE)
    pen, new_pen = await a_pen(broker, LINE), await a_pen(broker, later)
    store = Away()
    async with running(broker, LINE, store=store) as log:
        await new_pen.whole_line("s")
        await until(lambda: parked(store, TP, 2))
        store.away = True
        await register(broker, [later])
        await new_pen.start("newer")  # so that it looks for contracts
        await pen.start("old")
        await until(lambda: "old" in log.states())
        assert "s" not in log.states()
        store.away = False
        await until(lambda: {"s", "newer"} <= set(log.states()))
        await quiet(pen, log)
        assert log.states()["s"].instances["a", 1].runs == ("completed:run",)
        await until(lambda: not store._parked[TP])


async def test_a_store_that_no_waiting_mends_ends_the_saga_log(tmp_path: Path) -> None:
    broker = await a_broker(LINE)
    store = await open_store(f"sqlite:///{tmp_path}/s.db")
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        async with running(broker, LINE, store=store) as log:
            await until(lambda: log._ended.is_set())


async def test_a_store_that_is_away_is_not_asked_at_every_turn_for_what_it_has() -> None:
    store = Away()
    own = Ownership(
        await a_broker(LINE), store, {}, lambda name, version: None, resting_max=1, active_max=1, on_dropped=print
    )
    await store.save([Advance(TP, None, Checkpoint(17, "m"), ())])
    shard = Shard(TP, "order", lambda name, version: None, checkpoint=Checkpoint(17, "m"), offset=17, end=17)
    own.shards[TP] = shard
    store.asked, store.away = 0, True
    for _ in range(3):
        await own.learn()
    assert store.asked == 1
    assert shard.known.read_after == ""
    store.away = False
    shard.apply([Message("choreo.order", 0, 17, 1, b"s-1", b"no record", ())])
    await own.save()
    await own.learn()
    assert shard.known.read_after is None


async def test_states_of_a_store_that_was_put_back_under_us_are_not_believed() -> None:
    """A backup in the store's place has older states, from which decisions would be taken a second time, otherwise."""
    tp = TopicPartition("choreo.order", 0)
    store = MemoryStore()
    shard = Shard(tp, "order", lambda name, version: None, checkpoint=Checkpoint(17, "m"), offset=17, end=17)
    own = Ownership(
        await a_broker(LINE), store, {}, lambda name, version: None, resting_max=1, active_max=1, on_dropped=print
    )
    own.shards[tp] = shard
    asks = [Message("choreo.order", 0, 17, 1, b"s-1", b"", ())]
    with pytest.raises(StoreConflict, match="the store is at None, not at"):
        await SagaLog._admit(SimpleNamespace(_store=store, _own=own), shard, asks)  # type: ignore[arg-type]
    with pytest.raises(StoreConflict, match="the store is at None, not at"):
        await own.learn()
    assert shard.missing(asks) == {"s-1"}, "nothing was learnt from a store that is not where it was left"
