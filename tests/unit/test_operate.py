"""An operator frees a saga that is stuck past its pivot: by the client, and from a shell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from choreo.broker import open_broker
from choreo.broker.registry import ensure_saga_topics
from choreo.cli.app import run_command
from choreo.cli.exits import Exit
from choreo.client import Client
from choreo.client.client import Act
from choreo.contract import Retries, Saga, Step
from choreo.errors import NotStuck
from choreo.messages.records import OperatorActed
from choreo.saga_log import SagaLog
from choreo.saga_log.replay import replay
from choreo.step import Options, Service, StepRuntime
from choreo.store.memory import MemoryStore

PARCEL = Saga(
    "parcel",
    Step("pack", "unpack"),
    Step("hand_over", pivot=True),
    Step("notify", forward_retries=Retries(limit=1, backoff_ms_base=1, backoff_ms_max=1)),
    Step("bill"),
)
ENDS: dict[Act, tuple[str, list[str]]] = {
    "retry": ("completed", ["pack", "hand_over", "notify", "bill"]),
    "skip": ("completed", ["pack", "hand_over", "bill"]),
    "resolve": ("completed", ["pack", "hand_over"]),
}


class Office:
    """Services that are done with all steps but one, as long as it is closed."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.is_closed = True
        self.done: list[str] = []
        self.service = Service("office")
        for step in PARCEL.steps:
            self._bind(step.name)
        self.service.compensation(PARCEL, "pack")(lambda: None)

    def _bind(self, step: str) -> None:
        @self.service.step(PARCEL, step)
        def handle() -> str:
            if step == "notify" and self.is_closed:
                raise ConnectionError("the post office is closed")
            self.done.append(step)
            return step

    async def is_stuck(self) -> None:
        await self._until("stuck")

    async def ends(self) -> None:
        await self._until("completed")

    async def _until(self, phase: str) -> None:
        async with asyncio.timeout(60):
            while (await self.client.status(PARCEL, "p-1")).phase != phase:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def office(url: str) -> AsyncIterator[Office]:
    broker = await open_broker(url)
    await ensure_saga_topics(broker, [PARCEL], partitions=1)
    async with Client(broker) as client:
        made = Office(client)
        log = SagaLog(broker, MemoryStore(), [PARCEL], poll_timeout_s=0.05)
        steps = StepRuntime(made.service, broker, options=Options(poll_timeout_s=0.05))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(log.run())
            tasks.create_task(steps.run())
            try:
                await client.start(PARCEL, {}, id="p-1")
                await made.is_stuck()
                yield made
            finally:
                await log.stop()
                await steps.stop()
    await broker.close()


async def frees(url: str, act: Act, operate: Callable[[Office], Awaitable[Any]]) -> None:
    async with office(url) as made:
        status = await made.client.status(PARCEL, "p-1")
        assert next(step.phase for step in status.steps if step.step == "notify") == "stuck"
        with pytest.raises(NotStuck, match="not stuck at step 'bill'"):
            await made.client.act(PARCEL, "p-1", act, "bill", operator="ada", reason="by mistake")
        made.is_closed = False
        await operate(made)
        await made.ends()
        assert (str((await made.client.status(PARCEL, "p-1")).phase), made.done) == ENDS[act]
        broker = await open_broker(url)
        found = [
            line.entry.record
            async for replayed in replay(broker, "parcel", registry=made.client._registry, saga_id="p-1")  # type: ignore[arg-type]
            for line in replayed.history
            if isinstance(line.entry.record, OperatorActed)
        ]
        await broker.close()
        assert [(one.act, one.step, one.operator, one.reason) for one in found] == [
            (act, "notify", "ada", "open again")
        ]


@pytest.mark.parametrize("act", ENDS)
async def test_the_client_frees_a_saga_that_is_stuck_past_its_pivot(act: Act, tmp_path: Path) -> None:
    async def operate(made: Office) -> None:
        await made.client.act(PARCEL, "p-1", act, "notify", operator="ada", reason="open again")

    await frees(f"sqlite:///{tmp_path}/log.db", act, operate)


@pytest.mark.parametrize("act", ENDS)
async def test_a_shell_frees_a_saga_that_is_stuck_past_its_pivot(act: Act, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"

    async def operate(_: Office) -> None:
        command = [act, "parcel", "p-1", "notify", "--reason", "open again", "--operator", "ada", "--broker", url]
        assert await asyncio.to_thread(run_command, command) == Exit.DONE

    await frees(url, act, operate)
