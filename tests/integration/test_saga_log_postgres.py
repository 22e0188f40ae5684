"""Saga-logs over one PostgreSQL: they take over from each other, and the server dies, forgets and comes back."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from choreo.broker.memory import MemoryBroker
from choreo.broker.port import TopicPartition
from choreo.broker.registry import Registry
from choreo.cli.app import run_command
from choreo.cli.exits import Exit
from choreo.core import SagaState
from choreo.errors import ConfigurationError, StoreError
from choreo.messages.records import Compensate, SagaCompensated, SagaCompleted
from choreo.observe.metrics import Metrics
from choreo.saga_log.check import Checked, check
from choreo.saga_log.replay import replay
from choreo.store import Query, Store, open_store
from choreo.store.inspection import open_inspection
from tests.local_postgres import LocalPostgres
from tests.unit.by_hand import LINE, Pen, a_broker, a_pen
from tests.unit.test_check_store import fill
from tests.unit.test_saga_log import answer_all, folded_to_the_end, has, quiet, running, serve, until, value

pytestmark = pytest.mark.postgres

QUICK_TO_FORGET = "?heartbeat_ms=20&session_timeout_ms=200"


@pytest.fixture
async def url(postgres_url: str) -> AsyncIterator[str]:
    schema = f"t_{uuid.uuid4().hex[:12]}"
    yield f"{postgres_url}?schema={schema}"
    await administer(postgres_url, f"DROP SCHEMA IF EXISTS {schema} CASCADE")


async def administer(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url.partition("?")[0])
    await connection.execute(statement)
    await connection.close()


async def as_the_log_has_it(broker: MemoryBroker) -> dict[str, SagaState]:
    return {state.saga_id: state async for state, _ in replay(broker, "order", registry=Registry(broker))}


async def as_the_store_has_it(store: Store) -> dict[str, SagaState]:
    found = {row.saga_id: await store.find(row.saga, row.saga_id) for row in await store.search(Query(limit=10_000))}
    return {saga_id: state for saga_id, state in found.items() if state is not None}


async def saved_to_the_end(store: Store, broker: MemoryBroker) -> bool:
    tps = [TopicPartition("choreo.order", number) for number in range(await broker.partitions("choreo.order"))]
    ends = await broker.offsets(tps)
    checkpoints = {tp: await store.checkpoint(tp) for tp in tps}
    return all(checkpoint is not None and checkpoint.offset == ends[tp][1] for tp, checkpoint in checkpoints.items())


async def some_of_everything(pen: Pen, sagas: int, rng: random.Random, prefix: str = "s") -> None:
    """Sagas that complete and sagas that fail, their records interleaved."""
    left = {f"{prefix}{n}": ["start", "a", "b", "c" if n % 2 else "fail"] for n in range(sagas)}
    while left:
        name = rng.choice(sorted(left))
        match left[name].pop(0):
            case "start":
                await pen.start(name)
            case "fail":
                await pen.failed(name, "c")
            case step:
                await pen.completed(name, step)
        if not left[name]:
            del left[name]


def outcomes(states: dict[str, SagaState]) -> Counter[str]:
    return Counter(state.phase.value for state in states.values())


async def test_instances_with_one_store_take_over_from_each_other_while_sagas_run(url: str, rng: random.Random) -> None:
    broker = await a_broker(LINE, partitions=4, options=QUICK_TO_FORGET)
    pen = await a_pen(broker, LINE)
    stores = [await open_store(url) for _ in range(3)]

    async def one_comes_and_goes(store: Store) -> None:
        for _ in range(4):
            async with running(broker, LINE, store=store, resting_max=5) as log:
                await until(lambda log=log: bool(log._own.shards))  # type: ignore[misc]
                await asyncio.sleep(rng.uniform(0.02, 0.2))

    async with running(broker, LINE, store=stores[0], resting_max=5) as stays:
        comings = asyncio.gather(*(one_comes_and_goes(store) for store in stores[1:]))
        for turn in range(5):
            await some_of_everything(pen, 12, rng, f"t{turn}-")
            while await answer_all(pen):
                await asyncio.sleep(0.02)
        await comings
        await until(lambda: len(stays._own.shards) == 4)
        while True:
            await until(lambda: folded_to_the_end(stays, broker), 10)
            if not await answer_all(pen):
                break
        log = await as_the_log_has_it(broker)
    assert outcomes(log) == {"completed": 30, "compensated": 30}
    assert await as_the_store_has_it(stores[0]) == log
    contents = {}
    for record in await pen.records():  # said twice at most in the same words
        if isinstance(record, Compensate | SagaCompleted | SagaCompensated):
            assert contents.setdefault(record.id, record) == record
    for store in stores:
        await store.close()


async def test_an_instance_that_does_not_know_that_it_was_deposed_does_no_harm(url: str, rng: random.Random) -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    ours, theirs = await open_store(url), await open_store(url)
    # In groups of their own both own every partition, all the time: each save of one deposes the other.
    async with running(broker, LINE, store=ours) as one, running(broker, LINE, store=theirs, group="other") as other:
        await some_of_everything(pen, 20, rng)
        for _ in range(4):
            await until(lambda: folded_to_the_end(one, broker), 10)
            await until(lambda: folded_to_the_end(other, broker), 10)
            await answer_all(pen)
        await until(lambda: folded_to_the_end(one, broker), 10)
        await until(lambda: folded_to_the_end(other, broker), 10)
    log = await as_the_log_has_it(broker)
    assert outcomes(log) == {"completed": 10, "compensated": 10}
    assert await as_the_store_has_it(ours) == log
    await ours.close()
    await theirs.close()


async def test_the_server_is_killed_and_restarted_while_sagas_run(
    own_postgres: LocalPostgres, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    broker = await a_broker(LINE, partitions=2)
    pen = await a_pen(broker, LINE)
    store = await open_store(own_postgres.url)
    async with running(broker, LINE, store=store, resting_max=0) as log:
        await some_of_everything(pen, 10, rng, "before")
        await serve_all(pen, log, broker)
        await pen.start("known")
        await until(lambda: "known" in log.states())
        await asyncio.to_thread(own_postgres.kill)
        await pen.completed("known", "a")
        await pen.failed("known", "b")
        await until(lambda: has(pen, Compensate))  # what is in memory goes on
        await some_of_everything(pen, 10, rng, "during")
        await until(lambda: "waiting for the store" in str(log.not_ready_because()) or len(log.states()) > 5)
        await asyncio.to_thread(own_postgres.start)
        await some_of_everything(pen, 10, rng, "after")
        await serve_all(pen, log, broker)
        from_log = await as_the_log_has_it(broker)
        assert outcomes(from_log) == {"completed": 15, "compensated": 16}
        await until(lambda: log._own._trouble == "")
    assert await as_the_store_has_it(store) == from_log
    assert "is away" in caplog.text
    assert own_postgres.password not in caplog.text
    await store.close()


async def serve_all(pen: Pen, log: object, broker: MemoryBroker) -> None:
    while True:
        await until(lambda: folded_to_the_end(log, broker), 15)  # type: ignore[arg-type]
        if not await answer_all(pen):
            return


async def test_a_saga_log_that_starts_while_the_server_is_away_is_ready_when_it_is_back(
    own_postgres: LocalPostgres,
) -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    await pen.whole_line("s")
    store = await open_store(own_postgres.url)
    await asyncio.to_thread(own_postgres.kill)
    async with running(broker, LINE, store=store) as log:
        await asyncio.sleep(0.2)
        assert "folding the log again" in str(log.not_ready_because())
        await asyncio.to_thread(own_postgres.start)
        await until(lambda: has(pen, SagaCompleted))
        await until(lambda: log.not_ready_because() is None)
    await store.close()


async def test_a_deleted_schema_is_rebuilt_from_the_log_while_it_runs_and_between_runs(
    url: str, rng: random.Random
) -> None:
    broker = await a_broker(LINE, partitions=2)
    pen = await a_pen(broker, LINE)
    store = await open_store(url)
    drop = f"DROP SCHEMA {url.partition('schema=')[2]} CASCADE"
    async with running(broker, LINE, store=store) as log:
        await some_of_everything(pen, 10, rng)
        await serve(pen, log)
        await administer(url, drop)
        homes = {await broker.partition_of("choreo.order", name): name for name in (f"x{n}" for n in range(20))}
        for name in homes.values():  # a record for either partition, so that both notice
            await pen.start(name)
        await until(lambda: saved_to_the_end(store, broker))
        said = await serve(pen, log)
    expected = await as_the_log_has_it(broker)
    assert await as_the_store_has_it(store) == expected
    await administer(url, drop)
    await store.close()
    store = await open_store(url)
    async with running(broker, LINE, store=store) as log:
        await until(lambda: folded_to_the_end(log, broker))
    assert await as_the_store_has_it(store) == expected
    assert await pen.records() == said, "a rebuild says nothing"
    await store.close()


async def test_another_instance_starts_from_the_newest_checkpoint(url: str, rng: random.Random) -> None:
    broker = await a_broker(LINE, partitions=2)
    pen = await a_pen(broker, LINE)
    first = await open_store(url)
    async with running(broker, LINE, store=first) as log:
        await some_of_everything(pen, 20, rng)
        await serve(pen, log)
        await pen.start("s")
        await pen.completed("s", "a")
        await quiet(pen, log)
    await first.close()
    second, metrics = await open_store(url), Metrics()
    async with running(broker, LINE, store=second, metrics=metrics) as log:
        await until(lambda: log.not_ready_because() is None)
        assert len(log.states()) <= 3, "what rests stays where it is"
        assert log.states()["s"].standing == {"a": 1}
        assert value(metrics, "choreo_log_replayed_records_total", source="rebuild") <= 2, "one to prove each partition"
        await pen.failed("s", "b")
        await serve_all(pen, log, broker)
    assert (await as_the_store_has_it(second))["s"].phase.value == "compensated"
    await second.close()


# The check.


async def checked(broker: MemoryBroker, url: str) -> Checked:
    inspection = await open_inspection(url)
    try:
        return await check(broker, inspection, "order", registry=Registry(broker), dropped_before_ms=0)
    finally:
        await inspection.close()


async def test_the_check_agrees_with_an_honest_store_and_finds_a_tampered_row(url: str, rng: random.Random) -> None:
    broker = await a_broker(LINE, partitions=2)
    pen = await a_pen(broker, LINE)
    schema = url.partition("schema=")[2]
    store = await open_store(url)
    async with running(broker, LINE, store=store) as log:
        working = asyncio.create_task(some_of_everything(pen, 40, rng))
        while not working.done():
            assert (await checked(broker, url)).differences == [], "also beside a saga-log at work"
        await working
        await serve(pen, log)
    await store.close()
    whole = await checked(broker, url)
    assert whole.agrees
    assert sum(each.sagas for each in whole.partitions) == 40
    await administer(url, f"UPDATE {schema}.sagas SET phase = 'stuck', due_ms = 7 WHERE saga_id = 's3'")
    await administer(url, f"UPDATE {schema}.sagas SET blob = '\\xc1' WHERE saga_id = 's4'")
    await administer(url, f"DELETE FROM {schema}.sagas WHERE saga_id = 's5'")
    differences = {(each.saga_id, each.field) for each in (await checked(broker, url)).differences}
    assert differences == {("s3", "phase"), ("s3", "due_ms"), ("s4", "blob"), ("s5", "saga")}


async def test_looking_makes_no_schema_and_changes_none(url: str, postgres_url: str) -> None:
    with pytest.raises(ConfigurationError, match="no store of this release"):
        await open_inspection(url)
    schema = url.partition("schema=")[2]
    connection = await asyncpg.connect(postgres_url)
    assert await connection.fetchval("SELECT to_regnamespace($1)::text", schema) is None
    await connection.close()
    await (await open_store(url)).close()
    inspection = await open_inspection(url)
    await administer(url, f"DROP SCHEMA {schema} CASCADE")
    with pytest.raises(StoreError, match="lost its tables"):
        await inspection.contents(TopicPartition("choreo.order", 0))
    await inspection.close()


def test_the_command_checks_a_store_in_postgresql(
    postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = f"t_{uuid.uuid4().hex[:12]}"
    log_url, url = f"sqlite:///{tmp_path}/log.db", f"{postgres_url}?schema={schema}"
    fill(log_url, url)
    command = ["check-store", "tests.unit.by_hand:LINE", "--broker", log_url, "--store", url]
    assert run_command(command) == Exit.DONE
    asyncio.run(administer(postgres_url, f"UPDATE {schema}.sagas SET round = 2"))
    assert run_command(command) == Exit.NO
    assert "s  round: the store has 2, the log says 1" in capsys.readouterr().out
    asyncio.run(administer(postgres_url, f"DROP SCHEMA {schema} CASCADE"))
    assert run_command(command) == Exit.CONFIGURATION
    said = capsys.readouterr()
    assert postgres_url.split(":")[2].split("@", maxsplit=1)[0] not in said.out + said.err
