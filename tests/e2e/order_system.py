"""The order saga as it is deployed: a process for each service and for the saga-log, on a real broker.

A *plan* says which orders are placed and how each must end. It is drawn from a seed, so that a failure can be repeated.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from choreo.broker import open_broker
from choreo.client import Client
from choreo.messages.records import SagaCompensated, SagaCompleted
from deploy.run_procfile import Processes, free_ports, order_environment, read_procfile
from services.demo.audit import Findings, audit, read_databases
from services.demo.log import Follower, read_histories
from services.demo.stage import outcome_of
from services.order import ORDER, OrderInput, Trouble

STARTS_AT_ONCE = 50
STALLED_AFTER_S = 60.0


class Planned(NamedTuple):
    """An order, and how it must end: ``fails_at`` is the step that fails, ``None`` if the saga completes."""

    saga_id: str
    order: OrderInput
    fails_at: str | None
    code: str


FAILURES = (
    (OrderInput(item="unobtainium"), "reserve_stock", "out_of_stock"),
    (OrderInput(card="tok_declined"), "charge_card", "card_declined"),
    (OrderInput(trouble=Trouble(gateway_failures=1_000)), "charge_card", ""),
    (OrderInput(trouble=Trouble(carrier_seconds=600)), "book_carrier", "timeout"),
    (OrderInput(trouble=Trouble(depot_closed=True)), "hand_over", ""),
)

SUCCESSES = (
    *(OrderInput(item="kettle", quantity=quantity) for quantity in range(1, 4)),
    OrderInput(trouble=Trouble(gateway_failures=1)),
    OrderInput(trouble=Trouble(carrier_seconds=0.5)),
)


def draw_plan(rng: random.Random, count: int) -> list[Planned]:
    """So many orders, a fifth of which fail, at every step that can."""
    token = f"{rng.randrange(16**6):06x}"
    failing = set(rng.sample(range(count), count // 5))
    plan = []
    for number in range(count):
        saga_id = f"{token}-{number:04}"
        if number in failing:
            order, step, code = FAILURES[len(plan) % len(FAILURES)] if number % 2 else rng.choice(FAILURES)
            plan.append(Planned(saga_id, order, step, code))
        else:
            plan.append(Planned(saga_id, rng.choice(SUCCESSES), None, ""))
    return plan


class OrderSystem:
    """The running system, and what a test does with it."""

    def __init__(self, processes: Processes, client: Client, follower: Follower, directory: Path) -> None:
        self.processes = processes
        self.directory = directory
        self._client = client
        self._follower = follower

    async def place(self, plan: Sequence[Planned], *, over_s: float = 0.0) -> None:
        """Start all sagas of a plan, spread over a time."""
        limit = asyncio.Semaphore(STARTS_AT_ONCE)

        async def start(planned: Planned) -> None:
            async with limit:
                await self._client.start(ORDER, planned.order, id=planned.saga_id)

        async with asyncio.TaskGroup() as tasks:
            for planned in plan:
                tasks.create_task(start(planned))
                await asyncio.sleep(over_s / len(plan))

    async def finish(self, plan: Sequence[Planned]) -> None:
        """Wait until each saga of the plan has an outcome; fail when nothing is said for a minute."""
        left = {planned.saga_id for planned in plan}
        histories = self._follower.histories

        def fewer() -> bool:
            left.difference_update([saga_id for saga_id in left if outcome_of(histories[saga_id]) is not None])
            return not left

        heard, heard_at = 0, time.monotonic()
        while not fewer():
            self.processes.check()
            await asyncio.sleep(0.2)
            if (records := sum(map(len, histories.values()))) != heard:
                heard, heard_at = records, time.monotonic()
            elif time.monotonic() - heard_at > STALLED_AFTER_S:
                told = "\n".join(
                    f"  {saga_id}: {[type(line.record).__name__ for line in histories[saga_id]]}"
                    for saga_id in sorted(left)[:5]
                )
                logs = "".join(self.processes.tail(name, 8) for name in self.processes.commands)
                raise AssertionError(
                    f"{len(left)} of {len(plan)} sagas have no outcome, and nothing moves:\n{told}{logs}"
                )

    def on_their_way(self) -> int:
        """Sagas that have begun and not ended, as the log says."""
        return sum(outcome_of(history) is None for history in self._follower.histories.values())

    def surprises(self, plan: Sequence[Planned]) -> list[str]:
        """Sagas that did not end as planned."""
        found = []
        for planned in plan:
            outcome = outcome_of(self._follower.histories[planned.saga_id])
            match outcome:
                case SagaCompleted():
                    ended = (None, "")
                case SagaCompensated(step=step, failure=failure):
                    ended = (step, failure.code if failure else "")
                case None:
                    ended = ("no outcome", "")
            if ended[0] != planned.fails_at or (planned.code and ended[1] != planned.code):
                found.append(f"{planned.saga_id}: {ended}, planned {planned.fails_at, planned.code}")
        return found

    def told(self, saga_id: str) -> str:
        """A saga's history, a line for each record, for a person who looks for the cause of a failure."""
        return "\n".join(
            f"    {line.at_ms} {line.source:<13} {type(line.record).__name__:<16} "
            f"{getattr(line.record, 'step', None) or '':<16} run={getattr(line.record, 'run', '')} "
            f"{getattr(line.record, 'effect', '')} {getattr(getattr(line.record, 'failure', None), 'code', '')} "
            f"undone={getattr(line.record, 'undone', '')} generation={getattr(line.record, 'generation', '')}"
            for line in self._follower.histories[saga_id]
        )

    async def audit(self, plan: Sequence[Planned]) -> Findings:
        """Hold the databases against the log, both read anew."""
        broker = await open_broker(self.processes.environment["CHOREO_BROKER"])
        try:
            histories = await read_histories(broker)
        finally:
            await broker.close()
        return audit(histories, read_databases(self.directory), saga_ids={planned.saga_id for planned in plan})


@asynccontextmanager
async def running_system(directory: Path, broker_url: str | None = None) -> AsyncIterator[OrderSystem]:
    """All processes of the Procfile, ready, each with a fresh database in ``directory``."""
    commands = read_procfile()
    ports = dict(zip(commands, free_ports(len(commands)), strict=True))
    environment = order_environment(directory, broker_url)
    with Processes(commands, environment, ports=ports, logs=directory / "logs") as processes:
        processes.start()
        await asyncio.to_thread(processes.await_ready)
        broker = await open_broker(environment["CHOREO_BROKER"])
        try:
            follower = Follower(broker, lambda _line: None)
            await follower.open()
            following = asyncio.create_task(follower.run(), name="follow")
            try:
                async with Client(broker, source="test") as client:
                    yield OrderSystem(processes, client, follower, directory)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        finally:
            await broker.close()
