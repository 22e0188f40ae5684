"""All handlers of one saga in one database transaction (SQLAlchemy): committed when it completes, else rolled back.

A saga's first handler that asks for the database begins the transaction; its outcome ends it. Each attempt runs in a
savepoint, so that a failed one leaves nothing behind and the next one can go on. Handlers of parallel branches take
turns: a connection does one thing at a time. What a ``Session`` commits is its savepoint; the saga decides the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Any

from choreo.errors import DefinitionError
from choreo.inbox.source import Source
from choreo.step import Service
from choreo.step.context import BaseContext
from choreo.step.handler import Handler
from choreo.step.service import Hosted
from choreo.testing.clock import VirtualClock


class Transactions:
    """The transactions of a runner's sagas, by saga id.

    Args:
        source: an ``Engine``, ``sessionmaker``, ``AsyncEngine`` or ``async_sessionmaker``.

    Raises:
        ConfigurationError: it is something else, or SQLAlchemy is not installed.
    """

    def __init__(self, source: Any) -> None:
        self._source = Source(source, "transaction=")
        self.is_async = self._source.is_async
        self._clock: VirtualClock | None = None
        self._open: dict[str, _Transaction] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}

    def open(self, clock: VirtualClock | None) -> None:
        """Begin; the clock, if its time is virtual, is told of work in the database's driver."""
        self._clock = clock

    def bind(self, service: Service) -> Service:
        """The same service with the database filled in where its handlers ask for it.

        Raises:
            DefinitionError: a handler asks for the wrong kind, sync or async; with all problems found.
        """
        problems: list[str] = []
        hosted = {
            key: replace(
                each,
                handler=self._bound(each.handler, problems),
                compensation=None if each.compensation is None else self._bound(each.compensation, problems),
            )
            for key, each in service.hosted(has_database=True).items()
        }
        if problems:
            raise DefinitionError(f"service {service.name!r}", tuple(problems))
        return _TransactionalService(service, hosted)

    def end(self, saga_id: str, *, completed: bool) -> None:
        """The saga has an outcome: begin to commit or to roll back. ``ended`` waits for it."""
        transaction = self._open.pop(saga_id, None)
        if transaction is not None:
            work = transaction.commit() if completed else transaction.rollback()
            self._ending[saga_id] = asyncio.create_task(work, name=f"runner/transaction/{saga_id}")

    async def ended(self, saga_id: str) -> None:
        """Wait until what ``end`` began is done. Raises what the database raised."""
        ending = self._ending.pop(saga_id, None)
        if ending is not None:
            await ending

    async def close(self) -> None:
        """Roll back what no outcome has ended."""
        for saga_id in tuple(self._open):
            self.end(saga_id, completed=False)
        for saga_id in tuple(self._ending):
            await self.ended(saga_id)

    def _bound(self, handler: Handler, problems: list[str]) -> Handler:
        problems += [
            f"handler {handler.name!r}: parameter {name!r} is annotated {resource.name}, "
            f"but the transaction's engine is {'async' if self.is_async else 'sync'}"
            for name, resource in handler.resources
            if resource.is_async != self.is_async
        ]
        return _TransactionalHandler(handler, self) if handler.resources else handler

    @asynccontextmanager
    async def attempt(self, saga_id: str) -> AsyncIterator[_Attempt]:
        """The saga's transaction for one attempt of a handler, in its turn."""
        transaction = self._open.get(saga_id)
        if transaction is None:
            transaction = self._open[saga_id] = _Transaction(self._source.engine, is_async=self.is_async)
        async with transaction.turn:
            outside: AbstractContextManager[None] = nullcontext()
            if self.is_async and self._clock is not None:
                outside = self._clock.outside_work()
            with outside:
                async with transaction.attempt(self._source.make_session) as attempt:
                    yield attempt


class _TransactionalService(Service):
    """A service with other handlers for its steps; hooks, tracers and contracts are those of the original."""

    def __init__(self, service: Service, hosted: Mapping[tuple[str, int, str], Hosted]) -> None:
        vars(self).update(vars(service))
        self.inbox = None  # the saga is one transaction, so there are none of single steps
        self._hosted = hosted

    def hosted(self, *, has_database: bool = True) -> Mapping[tuple[str, int, str], Hosted]:  # noqa: ARG002  # it has
        return self._hosted


class _TransactionalHandler(Handler):
    """A handler that gets the database as well.

    Async also where its function is not: the turn at the connection is waited for on the loop, and a connection
    stays in the thread where it was made.
    """

    __slots__ = ("_inner", "_transactions")

    def __init__(self, inner: Handler, transactions: Transactions) -> None:
        self.function = self._call
        self.name = inner.name
        self.is_async = True
        self.retried = inner.retried
        self._inner = inner
        self.resources, self.unfilled = (), ()
        self._transactions = transactions

    def arguments(self, context: BaseContext[Any]) -> tuple[list[Any], dict[str, Any]]:
        positional, keywords = self._inner.arguments(context)
        return [context.saga_id, positional, keywords], {}

    async def _call(self, saga_id: str, positional: list[Any], keywords: dict[str, Any]) -> Any:
        async with self._transactions.attempt(saga_id) as attempt:
            for name, resource in self._inner.resources:
                keywords[name] = attempt.session() if resource.kind == "session" else attempt.connection
            result = self._inner.function(*positional, **keywords)
            return await result if self._inner.is_async else result


class _Attempt:
    """What one attempt of a handler has of the transaction."""

    def __init__(self, connection: Any, make_session: Callable[..., Any]) -> None:
        self.connection = connection
        self.sessions: list[Any] = []
        self._make_session = make_session

    def session(self) -> Any:
        if not self.sessions:
            made = self._make_session(bind=self.connection, join_transaction_mode="create_savepoint")
            self.sessions.append(made)
        return self.sessions[0]


class _Transaction:
    """One connection and its transaction, sync or async alike."""

    def __init__(self, engine: Any, *, is_async: bool) -> None:
        self.turn = asyncio.Lock()
        self._engine = engine
        self._is_async = is_async
        self._connection: Any = None

    @asynccontextmanager
    async def attempt(self, make_session: Callable[..., Any]) -> AsyncIterator[_Attempt]:
        connection = await self._begun()
        async with AsyncExitStack() as stack:
            savepoint = await self._do(connection.begin_nested())
            attempt = _Attempt(connection, make_session)
            stack.push_async_callback(self._close_all, attempt)
            try:
                yield attempt
                for session in attempt.sessions:
                    await self._do(session.commit())
            except BaseException:
                await self._close_all(attempt)
                await self._do(savepoint.rollback())
                raise
            await self._do(savepoint.commit())

    async def commit(self) -> None:
        async with self.turn:
            if self._connection is not None:
                try:
                    await self._do(self._connection.commit())
                finally:  # what was not committed is rolled back by that
                    await self._do(self._connection.close())

    async def rollback(self) -> None:
        async with self.turn:
            if self._connection is not None:
                await self._do(self._connection.close())

    async def _begun(self) -> Any:
        if self._connection is None:
            self._connection = await self._do(self._engine.connect())
            await self._do(self._connection.begin())
            if self._engine.dialect.name == "sqlite":
                await self._begin_sqlite()
        return self._connection

    async def _begin_sqlite(self) -> None:
        # Python's sqlite3 begins a transaction before the first change only, and the release of a savepoint outside
        # of one would commit (docs.sqlalchemy.org, "Serializable isolation / Savepoints / Transactional DDL").
        raw = await self._do(self._connection.get_raw_connection()) if self._is_async else self._connection.connection
        driver = raw.driver_connection
        if not driver.in_transaction:
            await self._do(self._connection.exec_driver_sql("BEGIN"))

    async def _close_all(self, attempt: _Attempt) -> None:
        while attempt.sessions:
            await self._do(attempt.sessions.pop().close())

    async def _do(self, result: Any) -> Any:
        return await result if self._is_async else result
