"""A payment service whose effects are rows of a database, with an inbox beside them, through any driver."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, create_engine, delete, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from choreo.contract import Saga
from choreo.inbox import Inbox
from choreo.step import CompensationContext, Context, Service
from tests.unit.step_world import ORDER

FLAVOURS = ("connection", "session", "async connection", "async session")

_schemas = itertools.count()


class Bank:
    """The database, and what its handlers do and did.

    Attributes:
        calls: of handlers, by name, also those whose transaction was rolled back.
        during: called in the step's handler behind its effect, with the attempt's context.
        during_undo: likewise in the compensation.
    """

    def __init__(self, url: str, flavour: str, schema: str | None) -> None:
        self.flavour = flavour
        self.is_async = flavour.startswith("async")
        self.schema = schema
        self.metadata = MetaData(schema=schema)
        self.charges = Table("charges", self.metadata, Column("saga_id", String(200)))
        drivers = ("sqlite+aiosqlite", "postgresql+asyncpg") if self.is_async else ("sqlite", "postgresql+psycopg")
        driver = drivers[url.startswith("postgresql")]
        self.url = url.replace(url.partition(":")[0], driver, 1)
        self.engine: Engine | AsyncEngine = self.make_engine()
        self.calls: list[str] = []
        self.during: Callable[[Context], Any] = lambda _: None
        self.during_undo: Callable[[CompensationContext], Any] = lambda _: None
        self.inbox = self.make_inbox()

    def make_engine(self) -> Engine | AsyncEngine:
        return create_async_engine(self.url) if self.is_async else create_engine(self.url)

    def make_inbox(self, **options: Any) -> Inbox:
        """Of this process, or of another one with the same database."""
        database: Any = self.engine
        if "session" in self.flavour:
            database = (async_sessionmaker if self.is_async else sessionmaker)(self.engine)
        metadata = self.metadata if not hasattr(self, "inbox") else MetaData()
        return Inbox(database, metadata=metadata, schema=self.schema, **options)

    def service(self, inbox: Inbox | None = None, saga: Saga = ORDER) -> Service:
        """A replica of the service."""
        service = Service("payment", inbox=inbox or self.inbox)
        service.step(saga, "charge_card")(getattr(self, f"_charge_by_{self.flavour.replace(' ', '_')}"))
        service.compensation(saga, "charge_card")(getattr(self, f"_refund_by_{self.flavour.replace(' ', '_')}"))
        return service

    async def charged(self) -> list[str]:
        """Sagas whose cards are charged."""
        return [row.saga_id for row in await self.run(select(self.charges.c.saga_id))]

    async def rows(self) -> dict[str, str]:
        """State of each row in the inbox, by key."""
        columns = self.inbox.table.c
        return {row.key: row.state for row in await self.run(select(columns.key, columns.state))}

    async def run(self, statement: Any) -> list[Any]:
        if isinstance(self.engine, AsyncEngine):
            async with self.engine.begin() as connection:
                result = await connection.execute(statement)
                return list(result) if result.returns_rows else []
        with self.engine.begin() as connection:
            result = connection.execute(statement)
            return list(result) if result.returns_rows else []

    async def dispose(self) -> None:
        if self.schema is not None:
            await self.run(text(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE"))
        if isinstance(self.engine, AsyncEngine):
            await self.engine.dispose()
        else:
            self.engine.dispose()

    # Handlers: naive ones, which no key protects.

    def _charge_by_connection(self, order: dict[str, Any], ctx: Context, connection: Connection) -> Any:
        self.calls.append("charge")
        connection.execute(insert(self.charges).values(saga_id=ctx.saga_id))
        return self.during(ctx) or {"charge": ctx.saga_id}

    def _refund_by_connection(self, ctx: CompensationContext, connection: Connection) -> Any:
        self.calls.append("refund")
        gone = connection.execute(delete(self.charges).where(self.charges.c.saga_id == ctx.saga_id)).rowcount
        assert gone == 1 or ctx.effect is None
        return self.during_undo(ctx)

    def _charge_by_session(self, order: dict[str, Any], ctx: Context, session: Session) -> Any:
        self.calls.append("charge")
        session.execute(insert(self.charges).values(saga_id=ctx.saga_id))
        session.commit()  # of its savepoint
        return self.during(ctx) or {"charge": ctx.saga_id}

    def _refund_by_session(self, ctx: CompensationContext, session: Session | None = None) -> Any:
        assert session is not None
        return self._refund_by_connection(ctx, session.connection())

    async def _charge_by_async_connection(
        self, order: dict[str, Any], connection: AsyncConnection, ctx: Context
    ) -> Any:
        self.calls.append("charge")
        await connection.execute(insert(self.charges).values(saga_id=ctx.saga_id))
        value = self.during(ctx)
        return (await value if asyncio.iscoroutine(value) else value) or {"charge": ctx.saga_id}

    async def _refund_by_async_connection(self, ctx: CompensationContext, connection: AsyncConnection) -> Any:
        self.calls.append("refund")
        gone = await connection.execute(delete(self.charges).where(self.charges.c.saga_id == ctx.saga_id))
        assert gone.rowcount == 1 or ctx.effect is None
        return self.during_undo(ctx)

    async def _charge_by_async_session(self, order: dict[str, Any], *, session: AsyncSession, ctx: Context) -> Any:
        return await self._charge_by_async_connection(order, await session.connection(), ctx)

    async def _refund_by_async_session(self, ctx: CompensationContext, session: AsyncSession) -> Any:
        return await self._refund_by_async_connection(ctx, await session.connection())


@asynccontextmanager
async def open_bank(url: str, flavour: str) -> AsyncIterator[Bank]:
    """A bank with its tables; in a schema of its own on a server."""
    schema = f"bank_{next(_schemas)}" if url.startswith("postgresql") else None
    bank = Bank(url, flavour, schema)
    try:
        if schema is not None:
            await bank.run(text(f"DROP SCHEMA IF EXISTS {schema} CASCADE"))
            await bank.run(text(f"CREATE SCHEMA {schema}"))
        created = bank.inbox.create_tables()
        if created is not None:
            await created
        yield bank
    finally:
        await bank.dispose()


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}/bank.db"
