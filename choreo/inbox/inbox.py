"""The inbox as a user makes it: which database, which table, and how long its rows are kept."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

from choreo.contract.policy import Duration, duration_ms, duration_text
from choreo.contract.saga import Saga
from choreo.errors import ConfigurationError
from choreo.inbox.source import Source
from choreo.inbox.table import make_table
from choreo.inbox.transaction import Statements, Transaction, drive, raise_unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

DIALECTS = ("sqlite", "postgresql")
ROLLBACK_JOURNALS = ("delete", "truncate", "persist")
CONCURRENCY_DEFAULT = 64
DELETED_AT_ONCE = 1_000


class Inbox:
    """The inbox of a service, in the service's own database.

        engine = create_async_engine("postgresql+asyncpg://…")
        payment = Service("payment", inbox=Inbox(engine))

        @payment.step(ORDER, "charge_card")
        async def charge(order: Order, session: AsyncSession) -> Charge: ...

    What the handler does with its ``session`` (or ``connection``: the annotation says which), the inbox's row and the
    recorded outcome commit in one transaction. A sync engine goes with sync handlers, an async one with async ones. A
    handler that asks for neither works outside of the transaction, and its outcome is recorded behind it.

    Several services can share a table: a row names its saga and step, and a step belongs to one service.

    Attributes:
        metadata: holds the table, for ``create_all`` and for Alembic's autogenerate.
        table: as SQLAlchemy knows it.
        concurrency: transactions that the runtime has open at once.
        keep_ms: age at which rows are deleted.
    """

    def __init__(
        self,
        database: Any,
        *,
        metadata: Any = None,
        table: str = "choreo_inbox",
        schema: str | None = None,
        create_tables: bool = False,
        keep: Duration = "30d",
        concurrency: int | None = None,
    ) -> None:
        """Describe an inbox; nothing is connected yet.

        Args:
            database: a SQLAlchemy ``Engine``, ``sessionmaker``, ``AsyncEngine`` or ``async_sessionmaker``, for SQLite
                or PostgreSQL.
            metadata: the service's own ``MetaData``, to hold the inbox's table beside its others.
            table, schema: where the rows are.
            create_tables: create what is missing of ``metadata`` when the service starts. Otherwise a missing table
                is an error then.
            keep: how long rows are kept from their last change: longer than the log is, so that nothing is delivered
                again whose row is gone (rule 21).
            concurrency: at most as many as the engine's pool gives; by default as many as it keeps, since what is
                above its ``pool_size`` is connected anew each time, and one for SQLite, which has one writer.

        Raises:
            ConfigurationError: SQLAlchemy is missing, or an argument is none of these.
        """
        self.source = Source(database, "Inbox(…)")
        if self.source.dialect not in DIALECTS:
            raise ConfigurationError(f"Inbox(…): {self.source.dialect} is not supported; use {' or '.join(DIALECTS)}")
        from sqlalchemy import MetaData

        self.metadata: Any = MetaData() if metadata is None else metadata
        self.table: Any = make_table(self.metadata, table, schema)
        self._statements = Statements(self.source, self.table)
        self.creates_tables = create_tables
        try:
            self.keep_ms = duration_ms(keep)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"Inbox(keep=…): {error}") from error
        kept, most = _connections_of(self.source)
        if concurrency is not None and not 1 <= concurrency <= most:
            raise ConfigurationError(
                f"Inbox(concurrency={concurrency}): it must be from 1 to {most}, which is what the engine's pool gives"
            )
        self.concurrency = kept if concurrency is None else concurrency

    @property
    def is_async(self) -> bool:
        """Whether its engine, and so the handlers that ask for a session, are async."""
        return self.source.is_async

    def create_tables(self) -> Awaitable[None] | None:
        """Create what is missing of ``metadata``. With an async engine, await it."""
        work = self._create_tables()
        return work if self.is_async else drive(work)

    def clean_up(self, now_ms: int | None = None) -> Awaitable[int] | int:
        """Delete the rows that are older than ``keep``, in batches, and return their number. As ``create_tables``.

        A running service does so by itself every hour; this is for those that would rather do it at night.

        Args:
            now_ms: the time by which they are old; this machine's by default.
        """
        work = self._clean_up(time.time_ns() // 1_000_000 if now_ms is None else now_ms)
        return work if self.is_async else drive(work)

    def problems_with(self, contracts: Iterable[Saga]) -> list[str]:
        """Contracts whose records can be delivered when their rows are gone."""
        return [
            f"the inbox keeps rows for {duration_text(self.keep_ms)}, saga {saga.name!r} may take "
            f"{duration_text(saga.deadline_ms)} and is repaired even later; say Inbox(…, keep=…) with more than twice "
            "that, and more than the retention of its topic"
            for saga in contracts
            if self.keep_ms < 2 * saga.deadline_ms
        ]

    def transaction(self) -> Transaction:
        """A new one, not begun."""
        return Transaction(self.source, self._statements)

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]], executor: Executor) -> T:
        """Run work with the database from an event loop: here if the driver is async, else in a thread."""
        if self.is_async:
            return await work()
        return await asyncio.get_running_loop().run_in_executor(executor, lambda: drive(work()))

    async def open(self, executor: Executor) -> None:
        """Look for the table, or create it. A SQLite file that will be slow is told of in the log.

        Raises:
            ConfigurationError: it is missing.
            InboxUnavailable: the database does not answer.
        """
        await self.run(self._create_tables if self.creates_tables else self._look_for_table, executor)
        if self.source.dialect == "sqlite":
            await self.run(self._look_at_journal, executor)

    async def delete_old(self, now_ms: int, executor: Executor) -> int:
        """Delete a batch of what is too old. Returns how many there were. Raises ``InboxUnavailable``."""
        return await self.run(lambda: self._delete_batch(now_ms), executor)

    async def _create_tables(self) -> None:
        from sqlalchemy import exc

        for is_last in (False, True):
            try:
                await self._on_connection(self.metadata.create_all)
            except exc.DBAPIError as error:
                # Two processes that start together both find nothing. The second time one of them finds everything.
                if is_last:
                    raise_unavailable(error)
            except Exception as error:  # noqa: BLE001  # told apart there
                raise_unavailable(error)
            else:
                return

    async def _look_for_table(self) -> None:
        from sqlalchemy import inspect

        table = self.table
        try:
            is_there = await self._on_connection(
                lambda connection: inspect(connection).has_table(table.name, schema=table.schema)
            )
        except Exception as error:  # noqa: BLE001  # told apart there
            raise_unavailable(error)
        if not is_there:
            raise ConfigurationError(
                f"the inbox's table {table.fullname!r} is missing in {self.source.engine.url.render_as_string()}; "
                "create it with Inbox.create_tables(), or by a migration from Inbox.metadata"
            )

    async def _look_at_journal(self) -> None:
        try:
            mode = await self._on_connection(
                lambda connection: connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
            )
        except Exception as error:  # noqa: BLE001  # told apart there
            raise_unavailable(error)
        if mode in ROLLBACK_JOURNALS:
            logger.warning(
                "the inbox's SQLite file %s has a rollback journal (%s): each transaction waits for the disk several "
                "times; with PRAGMA journal_mode = WAL, which a file keeps, it waits once",
                self.source.engine.url.database or "",
                mode,
            )

    async def _clean_up(self, now_ms: int) -> int:
        deleted, batch = 0, DELETED_AT_ONCE
        while batch == DELETED_AT_ONCE:
            batch = await self._delete_batch(now_ms)
            deleted += batch
        return deleted

    async def _delete_batch(self, now_ms: int) -> int:
        from sqlalchemy import delete, select

        columns = self.table.c
        old = select(columns.key).where(columns.written_ms < now_ms - self.keep_ms).limit(DELETED_AT_ONCE)
        try:
            result = await self._on_connection(
                lambda connection: connection.execute(delete(self.table).where(columns.key.in_(old)))
            )
        except Exception as error:  # noqa: BLE001  # told apart there
            raise_unavailable(error)
        return int(result.rowcount)

    async def _on_connection(self, work: Callable[[Any], T]) -> T:
        """In a transaction of its own."""
        if self.is_async:
            async with self.source.engine.begin() as connection:
                found: T = await connection.run_sync(work)
                return found
        with self.source.engine.begin() as connection:
            return work(connection)


class _Connections(NamedTuple):
    """How many connections a pool keeps open, and how many it gives at once."""

    kept: int
    most: int


def _connections_of(source: Source) -> _Connections:
    from sqlalchemy.pool import QueuePool

    pool = source.engine.pool
    if source.dialect == "sqlite":
        return _Connections(1, 1)
    overflow = getattr(pool, "_max_overflow", 0)
    if isinstance(pool, QueuePool) and overflow >= 0 and pool.size() > 0:  # 0 and -1 are its words for no limit
        return _Connections(pool.size(), pool.size() + overflow)
    return _Connections(CONCURRENCY_DEFAULT, CONCURRENCY_DEFAULT)
