"""All handlers of one saga in one database transaction: committed when it completes, rolled back when it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Connection, Engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from choreo.contract import Retries, Saga, Step
from choreo.errors import ConfigurationError, DefinitionError, SagaFailed
from choreo.step import CompensationContext, Context, Reject, Service
from choreo.testing import Runner

ORDER = Saga(
    "order",
    Step("a", "undo_a"),
    Step("b", after="a", retries=Retries(1, backoff_ms_base=10)),
    Step("c", after="a"),
    Step("d", after=("b", "c")),
)

INSERT = text("INSERT INTO lines VALUES (:line)")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/orders.db")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE lines (line TEXT)"))
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(engine: Engine) -> AsyncIterator[AsyncEngine]:
    made = create_async_engine(str(engine.url).replace("sqlite:", "sqlite+aiosqlite:"))
    yield made
    await made.dispose()


def lines(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return sorted(line for (line,) in connection.execute(text("SELECT line FROM lines")))


def sync_service() -> Service:
    service = Service("orders")

    @service.step(ORDER, "a")
    def a(ctx: Context, order: dict[str, Any], connection: Connection) -> None:
        connection.execute(INSERT, {"line": "a"})

    @service.step(ORDER, "b")
    async def b(order: dict[str, Any], ctx: Context, *, session: Session | None = None) -> None:
        assert session is not None
        session.execute(INSERT, {"line": f"b in attempt {ctx.attempt}"})
        await asyncio.sleep(10)  # c waits for its turn
        if ctx.attempt == 1:
            raise ConnectionError("the line broke")

    @service.step(ORDER, "c")
    def c(order: dict[str, Any], session: Session | None = None) -> None:
        assert session is not None
        session.execute(INSERT, {"line": "c"})
        session.commit()  # of its savepoint; the saga decides the rest

    @service.step(ORDER, "d")
    def d(order: dict[str, Any], ctx: Context, connection: Connection | None = None) -> None:
        assert connection is not None
        connection.execute(INSERT, {"line": "d"})
        if order["fails"]:
            raise Reject("no")

    @service.compensation(ORDER, "a")
    def undo(ctx: CompensationContext, order: dict[str, Any], connection: Connection | None = None) -> None:
        assert connection is not None
        order["seen"] = [line for (line,) in connection.execute(text("SELECT line FROM lines"))]
        assert "a" in order["seen"]

    return service


def async_service() -> Service:
    service = Service("orders")

    @service.step(ORDER, "a")
    async def a(order: dict[str, Any], connection: AsyncConnection | None = None) -> None:
        assert connection is not None
        await connection.execute(INSERT, {"line": "a"})

    @service.step(ORDER, "b")
    async def b(order: dict[str, Any], ctx: Context, session: AsyncSession) -> None:
        await session.execute(INSERT, {"line": f"b in attempt {ctx.attempt}"})
        if ctx.attempt == 1:
            raise ConnectionError("the line broke")

    @service.step(ORDER, "c")
    async def c(order: dict[str, Any], session: AsyncSession | None = None) -> None:
        assert session is not None
        await session.execute(INSERT, {"line": "c"})
        await session.commit()

    @service.step(ORDER, "d")
    async def d(order: dict[str, Any], connection: AsyncConnection | None = None) -> None:
        assert connection is not None
        await connection.execute(INSERT, {"line": "d"})
        if order["fails"]:
            raise Reject("no")

    service.compensation(ORDER, "a")(lambda: None)
    return service


@pytest.mark.parametrize("made_of", [lambda engine: engine, lambda engine: sessionmaker(bind=engine)])
async def test_sync_handlers_share_a_transaction(engine: Engine, made_of: Any) -> None:
    async with Runner(sync_service(), transaction=made_of(engine)) as runner:
        with pytest.raises(SagaFailed):
            await runner.run(ORDER, {"fails": True})
        assert lines(engine) == []
        await runner.run(ORDER, {"fails": False})
        # The first attempt of b has left nothing behind.
        assert lines(engine) == ["a", "b in attempt 2", "c", "d"]


@pytest.mark.parametrize("made_of", [lambda engine: engine, lambda engine: async_sessionmaker(bind=engine)])
async def test_async_handlers_share_a_transaction(engine: Engine, async_engine: AsyncEngine, made_of: Any) -> None:
    async with Runner(async_service(), transaction=made_of(async_engine)) as runner:
        with pytest.raises(SagaFailed):
            await runner.run(ORDER, {"fails": True})
        assert lines(engine) == []
        await runner.run(ORDER, {"fails": False})
        assert lines(engine) == ["a", "b in attempt 2", "c", "d"]


async def test_real_time_will_do_as_well(engine: Engine) -> None:
    saga, service = Saga("one", Step("a")), Service("one")

    @service.step(saga, "a")
    def a(_: Any, connection: Connection | None = None) -> None:
        assert connection is not None
        connection.execute(INSERT, {"line": "a"})

    async with Runner(service, transaction=engine, time="real") as runner:
        await runner.run(saga, {})
    assert lines(engine) == ["a"]


async def test_what_has_no_outcome_is_rolled_back_when_the_runner_closes(engine: Engine) -> None:
    saga, service = Saga("two", Step("a"), Step("b")), Service("two")
    waiting = asyncio.Event()

    @service.step(saga, "a")
    def a(_: Any, connection: Connection | None = None) -> None:
        assert connection is not None
        connection.execute(INSERT, {"line": "a"})

    @service.step(saga, "b")
    async def b() -> None:
        waiting.set()
        await asyncio.Event().wait()

    async with Runner(service, transaction=engine) as runner:
        await runner.start(saga, {})
        await waiting.wait()
    assert lines(engine) == []


async def test_a_commit_that_fails_is_the_callers_to_know(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/deferred.db")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE parents (id INTEGER PRIMARY KEY)"))
        connection.execute(
            text("CREATE TABLE children (p INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)")
        )
    sqlalchemy.event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys = ON"))
    engine.dispose()
    saga, service = Saga("one", Step("a")), Service("one")

    @service.step(saga, "a")
    def a(_: Any, connection: Connection | None = None) -> None:
        assert connection is not None
        connection.execute(text("INSERT INTO children VALUES (7)"))

    async with Runner(service, transaction=engine) as runner:
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            await runner.run(saga, {})
    engine.dispose()


async def test_what_a_binding_says_of_retries_still_counts(engine: Engine) -> None:
    saga, service, attempts = Saga("one", Step("a", retries=5)), Service("one"), []

    @service.step(saga, "a", never_retry=(ValueError,))
    def a(_: Any, ctx: Context, connection: Connection | None = None) -> None:
        attempts.append(ctx.attempt)
        raise ValueError

    async with Runner(service, transaction=engine) as runner:
        with pytest.raises(SagaFailed):
            await runner.run(saga, {})
    assert attempts == [1]


def test_a_handler_that_asks_for_the_other_kind_is_refused(engine: Engine) -> None:
    with pytest.raises(
        DefinitionError, match=r"parameter 'connection' is annotated AsyncConnection, but .* engine is sync"
    ):
        Runner(async_service(), transaction=engine)
    with pytest.raises(
        DefinitionError, match=r"parameter 'connection' is annotated Connection, but .* engine is async"
    ):
        Runner(sync_service(), transaction=create_async_engine("sqlite+aiosqlite://"))


def test_what_is_no_source_of_transactions_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is no SQLAlchemy Engine, sessionmaker, AsyncEngine or"):
        Runner(sync_service(), transaction="sqlite://")
    with pytest.raises(ConfigurationError, match="bound to no engine"):
        Runner(sync_service(), transaction=sessionmaker())
