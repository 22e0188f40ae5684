"""Services with inboxes: production code over SQLite files, on a driver that never waits, and naive handlers.

What a handler does is kept beside its connection and happens when that commits. No key makes it conditional: done
twice, or undone without having been done, it is a violation (S6). So is the weaker promise, which only services
without an inbox need, where all steps of a world work inside of their transactions.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only

from choreo.inbox import Inbox
from choreo.step import Abort, AbortRetries, CompensationContext, Context, Continue, Reject, Retry
from tests.simulation.faults import Faults
from tests.simulation.handlers import HANG_S, HandlerFailed
from tests.simulation.judge import Judge
from tests.simulation.process import Process

PER_CALL = {
    "inbox_refuses": (0.01, 0.2),
    "inbox_refuses_commit": (0.01, 0.2),
    "inbox_commit_unknown": (0.01, 0.2),
    "dies_before_inbox_commit": (0.002, 0.03),
    "dies_after_inbox_commit": (0.002, 0.03),
}
"""What else can go wrong; drawn like the other kinds, and beside them, so that worlds without inboxes stay the same."""


def add_faults(faults: Faults, seed: int) -> None:
    """Let the databases fail, too."""
    random = Random(f"{seed}/inbox-faults")
    share = random.uniform(0.1, 0.8)
    for kind, (low, high) in PER_CALL.items():
        rate = low * (high / low) ** random.random()
        if random.random() < share:
            faults.rates[kind] = rate


class _Cursor(sqlite3.Cursor):
    async def _async_soft_close(self) -> None:
        """What async drivers do when a result is read; here it was over before."""


class _Connection(sqlite3.Connection):
    """A connection, with what is done when it commits."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.effects: list[Callable[[], None]] = []

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)


class _Dialect(SQLiteDialect_pysqlite):
    """SQLite for an async engine, without the threads that others use for that: every call is over at once."""

    driver = "simulated"
    is_async = True
    supports_statement_cache = True
    process: Process | None = None

    def get_driver_connection(self, connection: Any) -> Any:
        return connection

    def do_commit(self, dbapi_connection: Any) -> None:
        process, connection = self.process, dbapi_connection.dbapi_connection
        effects, connection.effects = connection.effects, []
        if process is None or not connection.in_transaction:
            super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]
            return
        faults = process.faults
        process.may_die("dies_before_inbox_commit")
        if faults.happens("inbox_refuses_commit"):
            raise sqlite3.OperationalError("the disk is busy")
        super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]
        for effect in effects:
            effect()
        process.may_die("dies_after_inbox_commit")
        if faults.happens("inbox_commit_unknown"):
            raise sqlite3.OperationalError("the line broke")

    def do_rollback(self, dbapi_connection: Any) -> None:
        dbapi_connection.dbapi_connection.effects = []
        super().do_rollback(dbapi_connection)  # type: ignore[no-untyped-call]

    def do_execute(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        if self.process is not None and self.process.faults.happens("inbox_refuses"):
            raise sqlite3.OperationalError("no answer")
        await_only(_nothing())  # an async engine wants to have waited
        super().do_execute(cursor, statement, parameters, context)  # type: ignore[no-untyped-call]

    def do_execute_no_params(self, cursor: Any, statement: Any, context: Any = None) -> None:
        await_only(_nothing())
        super().do_execute_no_params(cursor, statement, context)  # type: ignore[no-untyped-call]


async def _nothing() -> None:
    pass


registry.register("sqlite.simulated", __name__, "_Dialect")


def open_inbox(directory: Path, service: str, process: Process) -> Inbox:
    """The inbox of a service as one life of a process has it."""
    path = directory / f"{service}.db"
    engine = create_async_engine(
        f"sqlite+simulated:///{path}",
        poolclass=NullPool,
        connect_args={"factory": _Connection, "timeout": 0, "check_same_thread": False},
    )
    inbox = Inbox(engine)
    if not path.exists():
        plain = create_engine(f"sqlite:///{path}", poolclass=NullPool)
        inbox.metadata.create_all(plain)
    engine.sync_engine.dialect.process = process  # type: ignore[attr-defined]
    return inbox


class InsideHandlers:
    """The handlers of a step that works in its service's transactions."""

    def __init__(self, process: Process, judge: Judge) -> None:
        self._process = process
        self._judge = judge

    async def run(self, ctx: Context, connection: AsyncConnection) -> dict[str, Any]:
        process, faults = self._process, self._process.faults
        await process.gate()
        work = self._judge.started(process, ctx)
        try:
            if faults.happens("step_is_slow"):
                await process.pause(faults.seconds(longest=3.0))
            if faults.happens("step_hangs_before_effect"):
                await process.pause(HANG_S)
            process.may_die("dies_before_effect")
            if faults.happens("step_fails_before_effect"):
                raise HandlerFailed
            key = ctx.idempotency_key
            builds_on = frozenset(effect["key"] for effect in ctx.effects.values() if effect["key"])
            raw: Any = (await connection.get_raw_connection()).driver_connection
            raw.effects.append(lambda: self._judge.make_once(process, key, builds_on))
            process.may_die("dies_after_effect")
            if faults.happens("step_hangs_after_effect"):
                await process.pause(HANG_S)
            if faults.happens("step_fails_after_effect"):
                raise HandlerFailed
            if faults.happens("step_rejects"):  # also behind the effect: it is rolled back
                raise Reject("not today", code="rejected")
            if faults.happens("step_aborts"):
                raise Abort("never", code="aborted")
            await asyncio.sleep(0)
            await process.gate()
            return {"key": key}
        finally:
            self._judge.ended(process, work)

    async def undo(self, ctx: CompensationContext, connection: AsyncConnection) -> Any:
        process, faults = self._process, self._process.faults
        await process.gate()
        work = self._judge.started(process, ctx)
        try:
            if faults.happens("undo_is_slow"):
                await process.pause(faults.seconds(longest=2.0))
            if faults.happens("undo_hangs"):
                await process.pause(HANG_S)
            if self._judge.fails_for_good(ctx.idempotency_key, faults) or faults.happens("undo_fails_once"):
                raise HandlerFailed
            process.may_die("dies_before_effect")
            if ctx.effect is not None:  # otherwise the contract only wants to hear what we say
                raw: Any = (await connection.get_raw_connection()).driver_connection
                raw.effects.append(lambda: self._judge.undo_once(process, ctx.step_key))
            process.may_die("dies_after_effect")
            if faults.happens("undo_fails_after_effect"):
                raise HandlerFailed
            await asyncio.sleep(0)
            await process.gate()
            if faults.happens("undo_asks_for_retry"):
                return Retry(3, base_backoff=faults.random.choice((0, 50, 20_000)), max_backoff=20_000)
            if ctx.own and faults.happens("undo_continues"):
                return Continue({"key": ""})
            return AbortRetries() if faults.happens("undo_aborts_retries") else None
        finally:
            self._judge.ended(process, work)
