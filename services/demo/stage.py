"""The demo's stage: processes that run, a client, and the log as it grows."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

from choreo.broker import Broker, open_broker
from choreo.client import Client
from choreo.messages.records import SagaCompensated, SagaCompleted, SagaStarted
from deploy.run_procfile import READY_TIMEOUT_S, ProcessError, Processes
from services.demo.log import Follower, History, Line
from services.demo.screen import Screen
from services.order import ORDER, OrderInput

SAGA_TIMEOUT_S = 60.0


class SceneError(Exception):
    """Something did not end as the scene says."""


@dataclass
class Stage:
    """What a scene may use.

    Attributes:
        started: ids of all sagas that were started, in order.
        shown: the sagas whose records are written to the screen as they come.
    """

    processes: Processes
    broker: Broker
    client: Client
    directory: Path
    screen: Screen
    suffix: str
    follower: Follower = field(init=False)
    started: list[str] = field(default_factory=list)
    shown: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.follower = Follower(self.broker, self._on_line)

    async def start(self, name: str, order: OrderInput, *, show: bool = False) -> str:
        """Start a saga; ``show`` writes its records to the screen as they land in the log."""
        saga_id = f"{name}-{self.suffix}"
        self.started.append(saga_id)
        if show:
            self.shown.add(saga_id)
        return await self.client.start(ORDER, order, id=saga_id)

    async def outcome(self, saga_id: str) -> SagaCompleted | SagaCompensated:
        """Wait for a saga's outcome in the log."""
        await self.until(lambda: outcome_of(self.history(saga_id)) is not None, f"{saga_id} to end")
        outcome = outcome_of(self.history(saga_id))
        assert outcome is not None, "that was waited for"
        return outcome

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something in the log."""
        try:
            async with asyncio.timeout(SAGA_TIMEOUT_S):
                await self.follower.until(condition)
        except TimeoutError:
            raise SceneError(f"waited {SAGA_TIMEOUT_S:g} s for {what}") from None

    def history(self, saga_id: str) -> History:
        return self.follower.histories[saga_id]

    def rows(self, saga_id: str, table: str, database: str) -> int:
        """How many effects of a saga stand in a service's database, by the service's own account."""
        with closing(sqlite3.connect(self.directory / f"{database}.db", timeout=30)) as db:
            query = f"SELECT count(*) FROM {table} WHERE saga_id = ? AND state = 'standing'"  # noqa: S608 -- of ours
            (count,) = db.execute(query, (saga_id,)).fetchone()
            return int(count)

    async def ready(self, name: str) -> float:
        """Wait until a process is ready. Returns the seconds that it took."""
        began = time.monotonic()
        while reason := await asyncio.to_thread(self.processes.not_ready_because, name):
            self.processes.check(name)
            if time.monotonic() - began > READY_TIMEOUT_S:
                raise ProcessError(f"{name} is not ready: {reason}{self.processes.tail(name)}")
            await asyncio.sleep(0.02)
        return time.monotonic() - began

    def _on_line(self, line: Line) -> None:
        saga_id = line.record.saga_id
        if saga_id in self.shown:
            self.screen.line(line, self.history(saga_id)[0].at_ms)


def outcome_of(history: History) -> SagaCompleted | SagaCompensated | None:
    """The saga's outcome, if it has one."""
    for line in history:
        if isinstance(line.record, SagaCompleted | SagaCompensated):
            return line.record
    return None


def duration_ms(history: History) -> int:
    """From the append of the start to the append of the outcome."""
    started = next(line.at_ms for line in history if isinstance(line.record, SagaStarted))
    ended = next(line.at_ms for line in history if isinstance(line.record, SagaCompleted | SagaCompensated))
    return ended - started


@asynccontextmanager
async def open_stage(
    processes: Processes, url: str, directory: Path, screen: Screen, suffix: str
) -> AsyncIterator[Stage]:
    """Connect. While the block runs, a process that dies on its own ends it with ``ProcessError``."""
    broker = await open_broker(url)
    try:
        async with Client(broker, source="demo") as client:
            yield Stage(processes, broker, client, directory, screen, suffix)
    finally:
        await broker.close()


async def watch(processes: Processes) -> None:
    """Raise ``ProcessError`` when a process dies that nobody killed."""
    while True:
        processes.check()
        await asyncio.sleep(0.2)
