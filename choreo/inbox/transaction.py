"""One transaction of a service's database: its connection, and the inbox's statements in it.

Written once for sync and async drivers: with a sync one no coroutine here ever waits, so ``drive`` can run it in a
thread without an event loop.

Two replicas may run one trigger at once. The first statement of each inserts the row of the step instance, so that the
second waits at the unique key until the first has committed, and finds the row, or rolled back, and goes on. On
PostgreSQL that waiting is the server's, row by row. SQLite has one writer: ``BEGIN IMMEDIATE`` takes its turn before
anything is read, where a deferred transaction could only fail when it wants to write.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from choreo.errors import InboxUnavailable
from choreo.inbox.resource import Resource
from choreo.inbox.source import Source
from choreo.inbox.table import Row
from choreo.inbox.transient import is_of_database, is_transient

logger = logging.getLogger(__name__)

T = TypeVar("T")

GRACE_S = 5.0
"""What a transaction gets beyond its bound before the server ends it."""


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as ended:
        value: T = ended.value
        return value
    work.close()
    raise RuntimeError("a sync driver does not wait on the event loop")


class Statements:
    """The statements of an inbox, built once: building one costs more than sending it."""

    def __init__(self, source: Source, table: Any) -> None:
        from sqlalchemy import Text, bindparam, func, literal_column, select, update
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        columns = table.c
        new = {column.name: bindparam(f"new_{column.name}", type_=column.type) for column in columns}
        claim: Any
        if source.dialect == "sqlite":
            claim = sqlite_insert(table).values(new).on_conflict_do_nothing(index_elements=[columns.key])
        else:
            # One round trip: the settings hold for this transaction, and the waiting for the key is under them already.
            names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
            bound = bindparam("bound", type_=Text())
            bounds = select(*(func.set_config(name, bound, literal_column("true")).label(name) for name in names))
            values = select(*new.values()).select_from(bounds.cte("bounds"))
            claim = postgresql_insert(table).from_select(list(new), values)
            claim = claim.on_conflict_do_nothing(index_elements=[columns.key])
        self.claim: Any = claim.execution_options(preserve_rowcount=True)  # of an INSERT it is not kept otherwise
        this = columns.key == bindparam("old_key", type_=columns.key.type)
        self.find: Any = select(*(columns[name] for name in Row._fields)).where(this)
        self.lock: Any = self.find.with_for_update()
        self.write: Any = update(table).where(this).values({k: v for k, v in new.items() if k != "key"})


class Transaction:
    """From ``begin`` to ``commit`` or ``close``, which rolls back.

    Errors of the database in ``begin``, ``claim`` and ``row`` are ``InboxUnavailable``: nothing but ours was at work.
    Later the handler may have caused them; those that pass by themselves are ``InboxUnavailable`` too, the others are
    raised as they are.
    """

    def __init__(self, source: Source, statements: Statements) -> None:
        self._source = source
        self._statements = statements
        self._connection: Any = None
        self._transaction: Any = None
        self._sessions: list[Any] = []

    async def begin(self) -> None:
        """Take a connection."""
        try:
            self._connection = await self._do(self._source.engine.connect())
            self._transaction = await self._do(self._connection.begin())
            if self._source.dialect == "sqlite":
                await self._begin_immediate()
        except Exception as error:  # noqa: BLE001  # told apart there
            raise_unavailable(error)

    async def claim(self, row: Row, now_ms: int, bound_s: float) -> bool:
        """Insert a row unless there is one with its key. Waits for whoever is about to.

        Args:
            now_ms: the row's age counts from here.
            bound_s: how long the transaction may take; where the server can, it ends it a little later. A replica
                that is stopped in the middle of one, or has lost its network, would hold the row for hours.
        """
        try:
            parameters = {f"new_{name}": value for name, value in row._asdict().items()}
            parameters["new_written_ms"] = now_ms
            if self._source.dialect == "postgresql":
                parameters["bound"] = str(max(1, math.ceil((bound_s + GRACE_S) * 1_000)))
            result = await self._do(self._connection.execute(self._statements.claim, parameters))
        except Exception as error:  # noqa: BLE001  # told apart there
            raise_unavailable(error)
        return bool(result.rowcount)

    async def row(self, key: str) -> Row:
        """The row that stood in the way of ``claim``, locked. Raises ``InboxUnavailable`` if it is gone again."""
        found = await self.find(key, lock=True)
        if found is None:
            raise InboxUnavailable(f"the inbox's row {key!r} was deleted at this moment")
        return found

    async def find(self, key: str, *, lock: bool = False) -> Row | None:
        """The row of that key."""
        statement = self._statements.lock if lock else self._statements.find
        try:
            result = await self._do(self._connection.execute(statement, {"old_key": key}))
        except Exception as error:  # noqa: BLE001  # told apart there
            raise_unavailable(error)
        found = result.first()
        return None if found is None else Row(*found)

    async def write(self, row: Row, now_ms: int) -> None:
        """Change a row that was claimed or locked here."""
        parameters = {f"new_{name}": value for name, value in row._asdict().items() if name != "key"}
        parameters |= {"new_written_ms": now_ms, "old_key": row.key}
        await self._guarded(lambda: self._connection.execute(self._statements.write, parameters))

    async def fill(self, resource: Resource) -> Any:
        """The connection, or the session of this transaction."""
        if resource.kind == "connection":
            return self._connection
        if not self._sessions:
            # What the handler commits or rolls back is a savepoint; the transaction is not its to end.
            made = self._source.make_session(bind=self._connection, join_transaction_mode="create_savepoint")
            self._sessions.append(made)
        return self._sessions[0]

    async def finish_handler(self) -> None:
        """Flush what its session still holds.

        Raises:
            RuntimeError: the handler has ended the transaction itself.
        """
        for session in self._sessions:
            await self._guarded(session.commit)
        if not self._transaction.is_active:
            raise RuntimeError(
                "the handler has committed or rolled back the connection, so its effect and its record are no longer "
                "one transaction; leave both to choreo, or use connection.begin_nested()"
            )

    async def commit(self) -> None:
        await self._guarded(self._transaction.commit)

    async def close(self) -> None:
        """Give the connection back; what is not committed is rolled back."""
        connection, self._connection = self._connection, None
        try:
            while self._sessions:
                await self._do(self._sessions.pop().close())
            if connection is not None:
                await self._do(connection.close())
        except Exception as error:
            # What could not be rolled back here is when the server notices; the pool makes another connection.
            if not is_of_database(error):
                raise
            logger.info("a connection of the inbox could not be closed in order: %s", error)

    async def _begin_immediate(self) -> None:
        connection = self._connection
        raw = await self._do(connection.get_raw_connection()) if self._source.is_async else connection.connection
        if not getattr(raw.driver_connection, "in_transaction", False):
            await self._do(connection.exec_driver_sql("BEGIN IMMEDIATE"))

    async def _guarded(self, ask: Callable[[], Any]) -> Any:
        try:
            return await self._do(ask())
        except Exception as error:
            if is_transient(error):
                raise_unavailable(error)
            raise

    async def _do(self, result: Any) -> Any:
        return await result if self._source.is_async else result


def raise_unavailable(error: Exception) -> NoReturn:
    """Raise an error of the database as ``InboxUnavailable``, and what is none of the database's as it is."""
    if isinstance(error, InboxUnavailable) or not is_of_database(error):
        raise error
    said = (str(error) or type(error).__name__).partition("\n")[0]
    raise InboxUnavailable(f"the inbox's database: {said}") from error
