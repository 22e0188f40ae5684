"""Inboxes beside what ``tests/conformance/test_inbox.py`` promises of all drivers: binding, set-up, work outside."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from msgspec import UNSET
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from choreo.contract import Saga, Step
from choreo.errors import ConfigurationError, DefinitionError
from choreo.inbox import Inbox
from choreo.inbox.inbox import CONCURRENCY_DEFAULT
from choreo.messages.records import SagaCompleted, StepCompensated, StepCompleted, StepFailed
from choreo.observe.events import OutcomeEvent
from choreo.step import CompensationContext, Context, NothingToUndo, Options, Reject, Service, StepRuntime
from choreo.testing import Runner
from tests.unit.step_world import (
    ORDER,
    compensate,
    completed,
    make_world,
    of,
    raw,
    running,
    until,
    until_committed,
    value,
)

UNCOMMITTED = Options(poll_timeout_s=0.02, commit_interval_s=1e6, commit_records=10**6, drain_timeout_s=0)
DAY_MS = 86_400_000


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path}/service.db")
    yield engine
    engine.dispose()


@pytest.fixture
def inbox(engine: Engine) -> Inbox:
    return Inbox(engine, create_tables=True)


def states(inbox: Inbox) -> list[str]:
    with inbox.source.engine.connect() as connection:
        return [row.state for row in connection.execute(sqlalchemy.select(inbox.table.c.state))]


def outside(inbox: Inbox, step: Any, undo: Any = lambda: None) -> Service:
    service = Service("payment", inbox=inbox)
    service.step(ORDER, "charge_card")(step)
    service.compensation(ORDER, "charge_card")(undo)
    return service


# Binding


def test_a_handler_that_asks_for_the_database_needs_an_inbox() -> None:
    service = Service("payment")
    service.step(ORDER, "charge_card")(lambda order: None)

    @service.compensation(ORDER, "charge_card")
    def refund(ctx: CompensationContext, session: Session) -> None: ...

    with pytest.raises(DefinitionError, match="asks for the database in session, but the service has no inbox"):
        service.hosted()


def test_a_session_goes_with_an_engine_of_its_own_kind(inbox: Inbox) -> None:
    service = Service("payment", inbox=inbox)

    async def charge(order: Any, session: AsyncSession) -> None: ...

    async def blocking(order: Any, connection: Connection | None = None) -> None: ...

    with pytest.raises(DefinitionError, match="annotated AsyncSession, but the engine is sync"):
        service.step(ORDER, "charge_card")(charge)
    with pytest.raises(DefinitionError, match="a sync query would hold up the event loop"):
        service.step(ORDER, "charge_card")(blocking)


def test_the_database_goes_by_keyword(inbox: Inbox) -> None:
    service = Service("payment", inbox=inbox)

    def charge(session: Session, /, order: Any) -> None: ...

    with pytest.raises(DefinitionError, match="'session' is positional-only"):
        service.step(ORDER, "charge_card")(charge)


# Set-up


def test_without_sqlalchemy_everything_else_works() -> None:
    program = """
import sys
sys.modules["sqlalchemy"] = None
from choreo import ConfigurationError, Inbox, Saga, Service, Step
service = Service("payment")
service.step(Saga("order", Step("a")), "a")(lambda order: None)
service.hosted()
try:
    Inbox("sqlite://")
except ConfigurationError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "Inbox(…) needs SQLAlchemy: pip install 'choreo-sagas[sqlalchemy]'"


def test_an_inbox_is_made_of_an_engine_or_a_session_factory() -> None:
    with pytest.raises(ConfigurationError, match="is no SQLAlchemy Engine"):
        Inbox("sqlite://")
    foreign = create_engine("sqlite://")
    foreign.dialect.name = "mysql"
    with pytest.raises(ConfigurationError, match="mysql is not supported"):
        Inbox(foreign)


def test_more_transactions_than_connections_are_refused(engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match="it must be from 1 to 1"):
        Inbox(engine, concurrency=2)
    pooled = create_engine("postgresql+psycopg://nowhere", pool_size=3, max_overflow=4)
    assert Inbox(pooled).concurrency == 3, "what is above is connected anew each time"
    assert Inbox(pooled, concurrency=7).concurrency == 7
    with pytest.raises(ConfigurationError, match="it must be from 1 to 7"):
        Inbox(pooled, concurrency=8)
    assert Inbox(create_engine("postgresql+psycopg://nowhere", pool_size=0)).concurrency == CONCURRENCY_DEFAULT


@pytest.mark.parametrize(("journal", "is_told"), [("delete", True), ("wal", False)])
async def test_a_slow_journal_is_told_of_at_the_start(
    engine: Engine, caplog: pytest.LogCaptureFixture, *, journal: str, is_told: bool
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(f"PRAGMA journal_mode = {journal}")
    world = await make_world()
    async with running(world, outside(Inbox(engine, create_tables=True), lambda order: None)):
        await world.send(completed())
        await world.answer(StepCompleted)
    told = [record.getMessage() for record in caplog.records if "journal_mode = WAL" in record.getMessage()]
    assert len(told) == is_told
    assert not is_told or "service.db has a rollback journal (delete)" in told[0]


def test_rows_are_kept_longer_than_sagas_take(engine: Engine) -> None:
    service = outside(Inbox(engine, keep="36h"), lambda order: None)
    world = asyncio.run(make_world())
    with pytest.raises(DefinitionError, match="keeps rows for 1d12h, saga 'order' may take 1d"):
        StepRuntime(service, world.broker)


async def test_a_missing_table_is_told_at_the_start(engine: Engine) -> None:
    world = await make_world()
    runtime = StepRuntime(outside(Inbox(engine), lambda order: None), world.broker)
    with pytest.raises(ConfigurationError, match="table 'choreo_inbox' is missing in sqlite://"):
        await runtime.run()


async def test_tables_of_several_services_are_told_apart_by_name(engine: Engine) -> None:
    first, second = Inbox(engine, table="payment_inbox"), Inbox(engine, table="stock_inbox")
    first.create_tables()
    first.create_tables()  # changes nothing
    second.create_tables()
    assert {"payment_inbox", "stock_inbox"} <= set(sqlalchemy.inspect(engine).get_table_names())


async def test_an_async_inbox_makes_its_tables_when_awaited(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/service.db")
    inbox = Inbox(engine)
    made = inbox.create_tables()
    assert made is not None
    await made
    deleted = inbox.clean_up()
    assert not isinstance(deleted, int)
    assert await deleted == 0
    await engine.dispose()


def test_old_rows_are_deleted_in_batches(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.inbox.inbox.DELETED_AT_ONCE", 10)
    inbox.create_tables()
    now_ms = 100 * DAY_MS
    rows = [
        {
            "key": f"k-{age}-{n}",
            "state": "told",
            "content_type": "",
            "generation": 0,
            "written_ms": now_ms - age * DAY_MS,
        }
        for age in (1, 29, 31)
        for n in range(25)
    ]
    with inbox.source.engine.begin() as connection:
        connection.execute(inbox.table.insert(), rows)
    assert inbox.clean_up(now_ms) == 25
    assert len(states(inbox)) == 50


# Handlers that work outside of the transaction


async def test_a_handler_without_a_session_is_recorded_behind_its_work(inbox: Inbox) -> None:
    calls: list[str] = []

    async def charge(order: Any, ctx: Context) -> str:
        calls.append(ctx.idempotency_key)
        return "charged"

    world = await make_world()
    for _ in range(2):
        async with running(world, outside(inbox, charge), options=UNCOMMITTED) as handle:
            if not calls:
                await world.send(completed())
            await world.answers(StepCompleted, count=len(calls) or 1)
            await handle.crash()
    async with running(world, outside(inbox, charge)):
        answers = await world.answers(StepCompleted, count=2)
    assert len({answer.id for answer in answers}) == 1
    assert len(calls) == 1


async def test_a_run_outside_that_was_cut_off_leaves_what_its_compensation_undoes(inbox: Inbox) -> None:
    began, undone = asyncio.Event(), []

    async def hang(order: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    def undo(ctx: CompensationContext) -> None:
        undone.append(ctx.effect)

    world = await make_world()
    async with running(world, outside(inbox, hang), options=UNCOMMITTED) as handle:
        await world.send(completed())
        await began.wait()
        await handle.crash()
    assert states(inbox) == ["begun"]

    def reject(order: Any) -> None:
        raise Reject("not any more")

    async with running(world, outside(inbox, reject, undo)):
        failed = await world.answer(StepFailed)
        await world.send(compensate(effect=UNSET, own=True))
        answer = await world.answer(StepCompensated)
    assert failed.effect == "unknown"  # the run before may have left something
    assert answer.undone
    assert undone == [None]


async def test_a_step_that_never_began_outside_is_not_undone(inbox: Inbox) -> None:
    called: list[str] = []
    world = await make_world()
    service = outside(inbox, lambda order: called.append("step"), lambda: called.append("undo"))
    async with running(world, service):
        await world.send(compensate())
        answer = await world.answer(StepCompensated)
        await world.send(completed())
        failed = await world.answer(StepFailed)
    assert not answer.undone
    assert (failed.failure.kind, failed.effect) == ("cancelled", "none")
    assert called == []


async def test_the_contract_may_ask_for_an_answer_though_there_is_nothing_to_undo(engine: Engine) -> None:
    always = Saga("order", Step("reserve_stock"), Step("charge_card", "refund_card", compensate_on_failure="always"))
    service = Service("payment", inbox=Inbox(engine, create_tables=True))
    told: list[Any] = []

    @service.step(always, "charge_card")
    def charge(order: Any, connection: Connection) -> None:
        raise Reject("no")

    @service.compensation(always, "charge_card")
    def refund(ctx: CompensationContext, connection: Connection) -> None:
        told.append(ctx.effect)

    world = await make_world(always)
    async with running(world, service):
        await world.send(completed())
        await world.answer(StepFailed)
        await world.send(compensate(effect=UNSET, own=True))
        answer = await world.answer(StepCompensated)
    assert told == [None]
    assert not answer.undone


async def test_a_handler_that_commits_by_itself_is_told_so(engine: Engine) -> None:
    service = Service("payment", inbox=Inbox(engine, create_tables=True))

    @service.step(ORDER, "charge_card")
    def charge(order: Any, connection: Connection) -> None:
        connection.commit()

    service.compensation(ORDER, "charge_card")(lambda: NothingToUndo())
    world = await make_world()
    async with running(world, service):
        await world.send(completed())
        failed = await world.answer(StepFailed)
    assert "the handler has committed or rolled back the connection" in failed.failure.message
    assert failed.effect == "unknown"


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_runner_runs_services_with_inboxes_in_virtual_time(tmp_path: Path, *, is_async: bool) -> None:
    saga = Saga("order", Step("charge_card", "refund_card", retries=2), Step("ship", deadline="1h"))
    path = f"{tmp_path}/service.db"
    engine: Any = create_async_engine(f"sqlite+aiosqlite:///{path}") if is_async else create_engine(f"sqlite:///{path}")
    service = Service("shop", inbox=Inbox(engine, create_tables=True))
    attempts: list[int] = []

    def charge(order: Any, ctx: Context, connection: Connection) -> str:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            raise ConnectionError("away")
        return "charged"

    async def charge_async(order: Any, ctx: Context, session: AsyncSession) -> str:
        return charge(order, ctx, await session.connection())  # type: ignore[arg-type]

    service.step(saga, "charge_card")(charge_async if is_async else charge)
    service.compensation(saga, "charge_card")(lambda: None)
    service.step(saga, "ship")(lambda ctx: f"for {ctx.effects['charge_card']}")
    async with Runner(service) as runner:
        outcome = await runner.run(saga, {})
    assert attempts == [1, 2]
    assert bytes(outcome.result) == b'"for charged"'
    disposed = engine.dispose()
    if disposed is not None:
        await disposed


# Hooks


async def test_a_hook_that_has_run_does_not_run_again(inbox: Inbox) -> None:
    told: list[str] = []
    service = Service("audit", inbox=inbox)

    @service.on_outcome(ORDER)
    def file(event: OutcomeEvent) -> None:
        told.append(event.saga_id)

    about = {key: of()[key] for key in ("saga", "version", "saga_id", "start")}
    world = await make_world()
    async with running(world, service, options=UNCOMMITTED) as handle:
        await world.send(SagaCompleted(**about, result=raw(None), effects={}))
        await until(lambda: states(inbox) == ["told"])
        await handle.crash()
    async with running(world, service) as handle:

        async def is_committed() -> bool:
            return await world.committed("choreo.audit") == await world.end()

        async with asyncio.timeout(20):
            while not await is_committed():
                await asyncio.sleep(0.01)
    assert told == ["s-1"]


async def test_errors_of_the_database_are_counted_and_do_not_stop_the_partition(inbox: Inbox, engine: Engine) -> None:
    inbox.create_tables()
    world = await make_world()
    with engine.connect() as rival:
        rival.exec_driver_sql("BEGIN IMMEDIATE")
        async with running(world, outside(Inbox(_impatient(engine)), lambda order: "charged")) as handle:
            await world.send(completed())
            await until(lambda: (value(handle, "choreo_inbox_errors_total") or 0) >= 2)
            assert handle.runtime.not_ready_because() is None
            rival.rollback()
            await world.answer(StepCompleted)
            await until_committed(world)


def _impatient(engine: Engine) -> Engine:
    return create_engine(engine.url, connect_args={"timeout": 0}, poolclass=sqlalchemy.pool.NullPool)
