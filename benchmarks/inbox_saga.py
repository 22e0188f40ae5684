"""The order saga with an inbox, as the services of this project have one: each handler works in its transaction.

``CHOREO_BENCH_INBOX`` names the database: the URL of a PostgreSQL, which all services share (async handlers), or a
directory, in which each has a SQLite file of its own (sync handlers, write-ahead log, every commit flushed).
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import QueuePool

from benchmarks.order_saga import SERVICES, Done, Order, saga_of
from choreo import Context, Saga, Service
from choreo.inbox import Inbox

DATABASE = os.environ.get("CHOREO_BENCH_INBOX", ".")
CONNECTIONS = 10

ON_SQLITE = saga_of("bench_inbox_sqlite", 3)
ON_POSTGRESQL = saga_of("bench_inbox_postgresql", 3)


def _on_sqlite(saga: Saga, index: int, name: str) -> Service:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(Path(DATABASE, f"inbox-{name}.db"), check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool)
    service = Service(f"{saga.name}-{name}", inbox=Inbox(engine, create_tables=True))

    @service.step(saga, saga.steps[index].name)
    def run(order: Order, ctx: Context, connection: Connection) -> Done:  # noqa: ARG001 -- asks to work in the transaction
        return Done(ctx.idempotency_key, order.quantity)

    @service.compensation(saga, saga.steps[index].name)
    def undo(connection: Connection) -> None:
        """Nothing to undo: the benchmark measures the way, not the work."""

    return service


def _on_postgresql(saga: Saga, index: int, name: str) -> Service:
    engine = create_async_engine(DATABASE.replace("postgresql:", "postgresql+asyncpg:"), pool_size=CONNECTIONS)
    inbox = Inbox(engine, table=f"inbox_{name}", create_tables=True)
    service = Service(f"{saga.name}-{name}", inbox=inbox)

    @service.step(saga, saga.steps[index].name)
    async def run(order: Order, ctx: Context, connection: AsyncConnection) -> Done:  # noqa: ARG001 -- as above
        return Done(ctx.idempotency_key, order.quantity)

    @service.compensation(saga, saga.steps[index].name)
    async def undo(connection: AsyncConnection) -> None:
        """Nothing to undo: the benchmark measures the way, not the work."""

    return service


_IS_POSTGRESQL = DATABASE.startswith("postgresql")

inventory, payment, shipping = (
    _on_postgresql(ON_POSTGRESQL, *each) if _IS_POSTGRESQL else _on_sqlite(ON_SQLITE, *each)
    for each in enumerate(SERVICES)
)
