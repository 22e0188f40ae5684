"""Inboxes under real deaths: processes that are killed or stopped at chosen points, a database that goes away."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, text

from choreo.broker import open_broker
from choreo.broker.port import Broker, TopicPartition
from choreo.broker.registry import ensure_saga_topics
from choreo.broker.topics import saga_topic
from choreo.errors import Undecodable
from choreo.messages.codec import decode, encode
from choreo.messages.headers import JSON, make_headers
from choreo.messages.records import CompensationFailed, StepCompensated, StepCompleted, StepFailed
from choreo.step import Context, Service
from tests.conformance.bank import Bank, sqlite_url
from tests.integration.inbox_contract import HURRIED
from tests.local_postgres import LocalPostgres
from tests.unit.step_world import compensate, completed, make_world, running, until, value

ANSWERS = (StepCompleted, StepFailed, StepCompensated, CompensationFailed)
TOPIC = saga_topic("order")
SESSION_MS = 3_000  # how long a stopped process is believed to be alive

_schemas = itertools.count()


class Deployment:
    """A log, a database, and the processes of one service."""

    def __init__(self, url: str, broker: Broker, bank: Bank, database: str, directory: Path) -> None:
        self.bank = bank
        self._url = url
        self._broker = broker
        self._database = database
        self._directory = directory
        self._processes: list[asyncio.subprocess.Process] = []
        self._said: list[Path] = []

    async def start(self, pause: str = "") -> asyncio.subprocess.Process:
        """Another replica."""
        said = self._directory / f"process-{len(self._processes)}"
        arguments = (self._url, self._database, self.bank.schema or "", pause)
        with said.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(Path(__file__).with_name("inbox_process.py")), *arguments, stdout=out
            )
        self._processes.append(process)
        self._said.append(said)
        return process

    async def paused(self, process: asyncio.subprocess.Process, pause: str) -> None:
        said = self._said[self._processes.index(process)]
        await self._until(lambda: f"paused {pause}" in said.read_text())

    @property
    def calls(self) -> list[str]:
        """Of handlers, in all processes."""
        lines = [line for said in self._said for line in said.read_text().splitlines()]
        return [line for line in lines if line in ("charge", "refund")]

    async def kill(self, process: asyncio.subprocess.Process) -> None:
        process.send_signal(signal.SIGKILL)
        await process.wait()

    async def send(self, record: Any) -> None:
        producer = await self._broker.producer()
        headers = make_headers(record, source="/test", content_type=JSON, traceparent=None)
        await producer.send(TOPIC, key=record.saga_id, value=encode(record), headers=headers)

    async def answers(self, count: int, *, different: bool = False) -> list[Any]:
        """Wait for so many answers of the service; ``different``: what is said again is left out.

        On a busy machine a replica may lose its session, and the next one says again what is recorded.
        """
        found: list[Any] = []

        async def look() -> bool:
            all_found = [record for record in await self._log() if isinstance(record, ANSWERS)]
            found[:] = {record.id: record for record in all_found}.values() if different else all_found
            return len(found) >= count

        async with asyncio.timeout(60):
            while not await look():
                await asyncio.sleep(0.05)
        return found

    async def answers_until(self, seconds: float) -> list[Any]:
        """The different answers of the service when some time has passed."""
        await asyncio.sleep(seconds)
        return list({record.id: record for record in await self._log() if isinstance(record, ANSWERS)}.values())

    async def end(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                await self.kill(process)

    async def _log(self) -> list[Any]:
        tp = TopicPartition(TOPIC, 0)
        _, end = (await self._broker.offsets([tp]))[tp]
        reader = await self._broker.reader()
        reader.seek(tp, 0)
        records = []
        while reader.position(tp) < end:
            for message in await reader.poll(timeout_s=0.1):
                if (message.header("ce_source") or b"") != b"/test":
                    try:
                        records.append(decode(message.key, message.value, message.headers))
                    except Undecodable:
                        continue
        await reader.close()
        return records

    async def _until(self, condition: Any) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def deployed(database: str, directory: Path) -> AsyncIterator[Deployment]:
    schema = f"deployed_{os.getpid()}_{next(_schemas)}" if database.startswith("postgresql") else None
    bank = Bank(database, "connection", schema)
    if schema is not None:
        await bank.run(text(f"CREATE SCHEMA {schema}"))
    bank.inbox.create_tables()
    url = f"sqlite:///{directory}/log.db?session_timeout_ms={SESSION_MS}&heartbeat_ms=500"
    broker = await open_broker(url)
    await ensure_saga_topics(broker, [HURRIED], partitions=1)
    deployment = Deployment(url, broker, bank, database, directory)
    try:
        yield deployment
    finally:
        await deployment.end()
        await broker.close()
        await bank.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Deployment]:
    url = sqlite_url(tmp_path) if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    async with deployed(url, tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("pause", "calls", "answers"),
    [
        ("in the transaction", 2, 1),  # what was begun is rolled back, and done again
        ("before the answer", 1, 1),  # committed: what is recorded is published
        ("behind the answer", 1, 2),  # and published again, because the offset was not committed
    ],
)
async def test_a_killed_replica_leaves_one_effect_and_one_outcome(
    deployment: Deployment, pause: str, calls: int, answers: int
) -> None:
    process = await deployment.start(pause)
    await deployment.send(completed())
    await deployment.paused(process, pause)
    await deployment.kill(process)
    await deployment.start()
    found = await deployment.answers(answers)
    assert {answer.id for answer in found} == {found[0].id}
    assert isinstance(found[0], StepCompleted)
    assert len(deployment.calls) == calls
    assert await deployment.bank.charged() == ["s-1"]


async def test_a_compensation_whose_step_never_came_is_empty_and_bars_it(deployment: Deployment) -> None:
    await deployment.start()
    await deployment.send(compensate())
    await deployment.send(completed())
    undone, failed = await deployment.answers(2)
    assert isinstance(undone, StepCompensated)
    assert not undone.undone
    assert (failed.failure.kind, failed.effect) == ("cancelled", "none")
    assert deployment.calls == []
    assert await deployment.bank.charged() == []


async def test_a_step_that_hangs_until_it_was_undone_has_no_effect_any_more(deployment: Deployment) -> None:
    hanging = await deployment.start("before the transaction")
    await deployment.send(completed())
    await deployment.paused(hanging, "before the transaction")
    await deployment.start()  # gets the partition when the session of the other has ended
    await deployment.send(compensate())
    done, undone = await deployment.answers(2, different=True)
    assert isinstance(done, StepCompleted)
    assert undone.undone
    hanging.send_signal(signal.SIGCONT)
    # Either it finds first that the partition is another's by now and says nothing, or that the step was undone.
    for late in (await deployment.answers_until(5.0))[2:]:
        assert (late.failure.kind, late.failure.code, late.effect) == ("cancelled", "compensated", "none")
    assert deployment.calls == ["charge", "refund"]
    assert await deployment.bank.charged() == []


@pytest.mark.postgres
async def test_a_replica_that_is_stopped_in_its_transaction_does_not_hold_the_others_for_ever(
    postgres_url: str, tmp_path: Path
) -> None:
    async with deployed(postgres_url, tmp_path) as deployment:
        stopped = await deployment.start("in the transaction")
        await deployment.send(completed())
        await deployment.paused(stopped, "in the transaction")
        await deployment.start()
        (done,) = await deployment.answers(1)  # when the server has ended the transaction, 5 s after its time
        assert isinstance(done, StepCompleted)
        stopped.send_signal(signal.SIGCONT)
        again = (await deployment.answers(2))[1]
        assert again == done
        assert await deployment.bank.charged() == ["s-1"]


@pytest.mark.postgres
@pytest.mark.parametrize("flavour", ["connection", "async session"])
async def test_a_database_that_is_away_is_ridden_out(own_postgres: LocalPostgres, flavour: str) -> None:
    bank = Bank(own_postgres.url, flavour, None)
    created = bank.inbox.create_tables()
    if created is not None:
        await created
    world = await make_world()
    killed = False

    def kill_once(_: Context) -> None:
        nonlocal killed
        if not killed:
            killed = True
            own_postgres.kill()  # with the effect made, and not committed

    bank.during = kill_once
    async with running(world, bank.service()) as handle:
        await world.send(completed("s-1"))
        await until(lambda: (value(handle, "choreo_inbox_errors_total") or 0) >= 2)
        await world.send(completed("s-2"))
        await asyncio.sleep(0.2)
        assert await world.log() == [
            entry for entry in await world.log() if entry.message.header("ce_source") == b"/test"
        ]
        await asyncio.to_thread(own_postgres.start)
        answers = await world.answers(StepCompleted, count=2)
        assert (value(handle, "choreo_step_attempts_total", result="inbox_unavailable") or 0) >= 1
    assert {answer.attempts for answer in answers} == {1}
    assert sorted(await bank.charged()) == ["s-1", "s-2"]
    await bank.dispose()


@pytest.mark.postgres
async def test_a_deadlock_is_tried_again_and_is_no_failure(postgres_url: str) -> None:
    schema = f"deadlock_{os.getpid()}"
    bank = Bank(postgres_url, "connection", schema)
    await bank.run(text(f"CREATE SCHEMA {schema}"))
    bank.inbox.create_tables()
    await bank.run(text(f"CREATE TABLE {schema}.locks (name TEXT PRIMARY KEY)"))
    await bank.run(text(f"INSERT INTO {schema}.locks VALUES ('left'), ('right')"))
    other = create_engine(bank.url)
    tries: list[int] = []

    def charge(order: dict[str, Any], ctx: Context, connection: Connection) -> str:
        tries.append(ctx.attempt)
        if len(tries) == 1:
            connection.execute(text("SET LOCAL deadlock_timeout = '100ms'"))
            lock = f"SELECT 1 FROM {schema}.locks WHERE name = '%s' FOR UPDATE"
            connection.exec_driver_sql(lock % "left")
            with other.connect() as rival:
                rival.exec_driver_sql(lock % "right")
                waiting = asyncio.run_coroutine_threadsafe(
                    asyncio.to_thread(rival.exec_driver_sql, lock % "left"), loop
                )
                try:
                    connection.exec_driver_sql(lock % "right")
                finally:
                    connection.rollback()
                    waiting.result(10)
        return "charged"

    loop = asyncio.get_running_loop()
    service = Service("payment", inbox=bank.inbox)
    service.step(HURRIED, "charge_card")(charge)
    service.compensation(HURRIED, "charge_card")(lambda: None)
    world = await make_world(HURRIED)
    async with running(world, service) as handle:
        await world.send(completed())
        answer = await world.answer(StepCompleted)
        assert value(handle, "choreo_step_attempts_total", result="inbox_unavailable") == 1
    assert tries == [1, 1]
    assert answer.attempts == 1
    other.dispose()
    await bank.dispose()
