"""kill -9 of every process of three sagas, each a step of the one before: all end as planned, and undo in reverse."""

from __future__ import annotations

import asyncio
import importlib
import random
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from choreo.client import Client
from choreo.contract import Saga
from choreo.errors import SagaFailed
from choreo.ids import child_id
from choreo.messages.records import AnyRecord, SagaCompensated, SagaCompleted
from deploy.run_procfile import Processes, free_ports
from tests.e2e.test_sub_saga_kills import outcomes_in, read_records

pytestmark = pytest.mark.e2e

SAGAS = 15
OVER_S = 6.0
KILLED_EVERY_S = (0.8, 1.6)
ENDED_WITHIN_S = 120.0
SETTLED_WITHIN_S = 60.0

STEPS = ["order", "hotel", "seat", "meal", "insure", "bill"]
"""In the order in which they run: those of the order, of its trip, and of the trip's flight."""

ENDS = {"completed": "completed", "hotel": "trip", "meal": "trip", "insure": "trip", "bill": "bill"}
"""Which step is rejected, and which step of the outermost saga its client is told of."""

MODULE = '''\
"""An order, its trip, and the trip's flight. Effects are conditional on the step's key, with tombstones."""

import asyncio
import os
import sqlite3
from contextlib import closing

from choreo import CompensationContext, Context, NothingToUndo, Reject, Saga, Service, Step

QUICK = {{"settle": "1s", "grace": "500ms"}}
FLIGHT = Saga("{name}_flight", Step("seat", "free_seat"), Step("meal", "cancel_meal"), **QUICK)
TRIP = Saga(
    "{name}_trip", Step("hotel", "free_hotel"), Step("flight", saga=FLIGHT), Step("insure", "cancel_insurance"), **QUICK
)
ORDER = Saga("{name}_order", Step("order", "forget"), Step("trip", saga=TRIP), Step("bill", "void"), **QUICK)
shop, travel, air = Service("{name}_shop"), Service("{name}_travel"), Service("{name}_air")


def change(key, order, step, state):
    """The state of the effect before, and note the change if it is one."""
    with closing(sqlite3.connect(os.environ["EFFECTS"], timeout=30, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        before = db.execute("SELECT state FROM changes WHERE key = ? ORDER BY id DESC", (key,)).fetchone()
        if before is None or (before[0], state) == ("standing", "undone"):
            state = "barred" if before is None and state == "undone" else state
            db.execute("INSERT INTO changes VALUES (NULL, ?, ?, ?, ?)", (key, order, step, state))
        db.execute("COMMIT")
        return before and before[0]


async def make(ctx: Context) -> str:
    if ctx.input["ends"] == ctx.step:
        raise Reject("as planned", code="planned")
    await asyncio.sleep(0.05)
    if change(ctx.idempotency_key, ctx.input["order"], ctx.step, "standing") in ("undone", "barred"):
        raise Reject("it was undone before", code="barred")
    await asyncio.sleep(0.05)
    return ctx.step


async def undo(ctx: CompensationContext) -> NothingToUndo | None:
    await asyncio.sleep(0.05)
    before = change(ctx.step_key, ctx.input["order"], ctx.step, "undone")
    await asyncio.sleep(0.05)
    return NothingToUndo() if before in (None, "barred") else None


for service, saga, steps in (
    (shop, ORDER, ("order", "bill")),
    (travel, TRIP, ("hotel", "insure")),
    (air, FLIGHT, ("seat", "meal")),
):
    for step in steps:
        service.step(saga, step)(make)
        service.compensation(saga, step)(undo)
'''


def ids_of(saga_id: str, order: Saga) -> tuple[str, str, str]:
    """The ids of the order, its trip, and the trip's flight."""
    trip = child_id(order.name, saga_id, "trip", 1)
    return saga_id, trip, child_id(order["trip"].child.saga if order["trip"].child else "", trip, "flight", 1)


def problems_of(ends: str, records: list[list[AnyRecord]], changes: list[tuple[str, str, str]]) -> list[str]:
    """What is wrong with how the three ended, and with their effects, (key, step, state) in order."""
    problems = []
    order, trip, flight = (outcomes_in(each) for each in records)
    if [type(one) for one in order] != [SagaCompleted if ends == "completed" else SagaCompensated]:
        problems.append(f"the order has the outcomes {order}")
    if ends != "hotel" and len(flight) != 1:
        problems.append(f"the flight has the outcomes {flight}")
    if [type(one) for one in trip] != [SagaCompleted if ends in ("completed", "bill") else SagaCompensated]:
        problems.append(f"the trip has the outcomes {trip}")
    made = [step for _, step, state in changes if state == "standing"]
    undone = [step for _, step, state in changes if state == "undone"]
    wanted = STEPS if ends == "completed" else STEPS[: STEPS.index(ends)]
    if made != wanted:
        problems.append(f"made {made}, not {wanted}")
    if undone != ([] if ends == "completed" else made[::-1]):
        problems.append(f"made {made}, and undid {undone}")
    if len({key for key, _, _ in changes}) > len(STEPS):
        problems.append(f"effects were made under several keys: {changes}")
    return problems


class Orders:
    """The processes, and what a test asks of them."""

    def __init__(self, processes: Processes, client: Client, order: Saga, effects: Path) -> None:
        self.processes, self.client, self.order, self._effects = processes, client, order, effects
        self.started = 0
        self.ended: dict[str, str] = {}

    async def run(self, saga_id: str, ends: str) -> None:
        self.started += 1
        try:
            await self.client.run(self.order, {"order": saga_id, "ends": ends}, id=saga_id)
            self.ended[saga_id] = "completed"
        except SagaFailed as error:
            self.ended[saga_id] = error.step or ""

    async def kill_each(self, rng: random.Random) -> list[tuple[str, int]]:
        """Kill every process once, in an order of the seed's; start each again at once. Who, and how many sagas ran."""
        killed = []
        for name in rng.sample(names := list(self.processes.commands), len(names)):
            await asyncio.sleep(rng.uniform(*KILLED_EVERY_S))
            killed.append((name, self.started - len(self.ended)))
            self.processes.kill(name)
            self.processes.start(name)
        return killed

    async def records(self) -> Mapping[str, list[AnyRecord]]:
        """Of all three, once the children of those that have ended have said so themselves."""
        sagas = (self.order, *self.order.children)
        async with asyncio.timeout(SETTLED_WITHIN_S):
            while True:
                found = await read_records(self.processes.environment["CHOREO_BROKER"], *sagas)
                began = [saga_id for each in self.ended for saga_id in ids_of(each, self.order) if saga_id in found]
                if all(outcomes_in(found[saga_id]) for saga_id in began):
                    return found
                await asyncio.sleep(0.5)

    def changes(self, saga_id: str) -> list[tuple[str, str, str]]:
        with closing(sqlite3.connect(self._effects)) as db:
            return db.execute(
                "SELECT key, step, state FROM changes WHERE saga_id = ? ORDER BY id", (saga_id,)
            ).fetchall()


async def kills_while_nested_sagas_run(
    broker: str, directory: Path, name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    module = f"{name}_nested"
    (directory / f"{module}.py").write_text(MODULE.format(name=name))
    monkeypatch.syspath_prepend(directory)
    effects = directory / "effects.db"
    with closing(sqlite3.connect(effects)) as db:
        db.executescript(
            "PRAGMA journal_mode = WAL; CREATE TABLE changes (id INTEGER PRIMARY KEY, key, saga_id, step, state);"
        )
    commands = {
        "services": ["choreo", "run", f"{module}:shop", f"{module}:travel", f"{module}:air"],
        "order-log": ["choreo", "saga-log", f"{module}:ORDER"],
        "trip-log": ["choreo", "saga-log", f"{module}:TRIP"],
        "flight-log": ["choreo", "saga-log", f"{module}:FLIGHT"],
    }
    environment = {"CHOREO_BROKER": broker, "PYTHONPATH": str(directory), "EFFECTS": str(effects)}
    ports = dict(zip(commands, free_ports(len(commands)), strict=True))
    plan = [(f"n-{seed}-{number:02}", list(ENDS)[number % len(ENDS)]) for number in range(SAGAS)]
    order: Any = importlib.import_module(module).ORDER
    with Processes(commands, environment, ports=ports, logs=directory / "logs") as processes:
        processes.start()
        processes.await_ready()
        async with Client(broker) as client:
            orders = Orders(processes, client, order, effects)
            try:
                async with asyncio.timeout(ENDED_WITHIN_S), asyncio.TaskGroup() as tasks:
                    killing = tasks.create_task(orders.kill_each(rng))
                    for saga_id, ends in plan:
                        tasks.create_task(orders.run(saga_id, ends))
                        await asyncio.sleep(OVER_S / SAGAS)
            except TimeoutError as error:
                left = [each for each in plan if each[0] not in orders.ended]
                logs = "".join(processes.tail(each, 8) for each in commands)
                raise AssertionError(f"without an outcome: {left}{logs}") from error
            records = await orders.records()
        processes.check()
    sys.modules.pop(module, None)

    problems = []
    for saga_id, ends in plan:
        if orders.ended[saga_id] != ENDS[ends]:
            problems.append(f"{saga_id}, {ends}: the client was told {orders.ended[saga_id]!r}")
        of_all = [records.get(each, []) for each in ids_of(saga_id, order)]
        problems += [f"{saga_id}, {ends}: {problem}" for problem in problems_of(ends, of_all, orders.changes(saga_id))]
    print(f"killed, with so many sagas on their way: {killing.result()}")
    assert problems == []
    assert sum(sagas > 0 for _, sagas in killing.result()) == len(commands), "the kills hit processes at work"


async def test_on_the_embedded_broker(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    await kills_while_nested_sagas_run(f"sqlite:///{tmp_path / 'log.db'}", tmp_path, "embedded", seed, monkeypatch)


@pytest.mark.kafka
async def test_over_kafka(kafka_url: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    await kills_while_nested_sagas_run(kafka_url, tmp_path, "nested", seed, monkeypatch)
