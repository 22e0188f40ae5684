"""kill -9 of every process of a saga and of its sub-saga: both end as they should, and undo together what they did."""

from __future__ import annotations

import asyncio
import importlib
import random
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from choreo.broker import open_broker
from choreo.broker.port import TopicPartition
from choreo.broker.topics import saga_topic
from choreo.client import Client
from choreo.contract import Saga
from choreo.errors import SagaFailed
from choreo.ids import child_id
from choreo.messages.family import SagaUndone, UndoRequested
from choreo.messages.records import AnyRecord, SagaCompensated, SagaCompleted, SagaStarted
from deploy.run_procfile import Processes, free_ports
from services.demo.log import read_line

pytestmark = pytest.mark.e2e

SAGAS = 40
OVER_S = 8.0
KILLED_EVERY_S = (1.0, 2.5)
ENDED_WITHIN_S = 120.0
SETTLED_WITHIN_S = 60.0

MODULE = '''\
"""Orders, and the trips that are a step of theirs. Effects are conditional on the step's key, with tombstones."""

import asyncio
import os
import sqlite3
from contextlib import closing

from choreo import CompensationContext, Context, NothingToUndo, Reject, Saga, Service, Step, when

TRIP = Saga(
    "{name}_trip", Step("hotel", "cancel_hotel"), Step("flight", "cancel_flight"), settle="1s", grace="500ms"
)
ORDER = Saga(
    "{name}_order",
    Step("reserve", "release"),
    Step("trip", saga=TRIP, input={{"order": when.input("order"), "ends": when.input("ends")}}),
    Step("bill", "void"),
    Step("send", "recall"),
    settle="1s",
    grace="500ms",
)
shop, travel = Service("{name}_shop"), Service("{name}_travel")


def database():
    return closing(sqlite3.connect(os.environ["EFFECTS"], timeout=30, isolation_level=None))


async def gate(order):
    with database() as db:
        db.execute("INSERT OR IGNORE INTO gates VALUES (?, 0)", (order,))
        while db.execute("SELECT open FROM gates WHERE name = ?", (order,)).fetchone() == (0,):
            await asyncio.sleep(0.05)


def change(key, ctx, state):
    """The state of the effect before, and note the change if it is one."""
    with database() as db:
        db.execute("BEGIN IMMEDIATE")
        before = db.execute("SELECT state FROM changes WHERE key = ? ORDER BY id DESC", (key,)).fetchone()
        if before is None or (before[0], state) == ("standing", "undone"):
            state = "barred" if before is None and state == "undone" else state
            db.execute("INSERT INTO changes VALUES (NULL, ?, ?, ?, ?)", (key, ctx.saga_id, ctx.step, state))
        db.execute("COMMIT")
        return before and before[0]


async def make(ctx: Context) -> str:
    order, ends = ctx.input["order"], ctx.input["ends"]
    if ends == f"rejected at {{ctx.step}}":
        raise Reject("as planned", code="planned")
    if ends == f"cancelled at {{ctx.step}}":
        await gate(order)
    await asyncio.sleep(0.05)
    if change(ctx.idempotency_key, ctx, "standing") in ("undone", "barred"):
        raise Reject("it was undone before", code="barred")
    await asyncio.sleep(0.05)
    return f"{{ctx.step}} of {{order}}"


async def undo(ctx: CompensationContext) -> NothingToUndo | None:
    await asyncio.sleep(0.05)
    before = change(ctx.step_key, ctx, "undone")
    await asyncio.sleep(0.05)
    return NothingToUndo() if before in (None, "barred") else None


for service, saga, steps in ((shop, ORDER, ("reserve", "bill", "send")), (travel, TRIP, ("hotel", "flight"))):
    for step in steps:
        service.step(saga, step)(make)
        service.compensation(saga, step)(undo)
'''

ENDS = {
    "completed": "completed",
    "rejected at flight": "trip",  # the child fails
    "rejected at bill": "bill",  # a child that has completed is undone
    "rejected at send": "send",
    "cancelled at flight": "",  # a child that runs completes and is undone, or is cancelled
    "cancelled at send": "",
}
"""How sagas are planned to end, and what their client is then told: ``completed``, or the step that failed, if any."""


class Planned(NamedTuple):
    saga_id: str
    ends: str


class Change(NamedTuple):
    """What a handler has made of an effect: ``standing``, ``undone`` or, before it was made, ``barred``."""

    key: str
    saga_id: str
    step: str
    state: str


def draw_plan(rng: random.Random) -> list[Planned]:
    """Two fifths complete, the others end in each other way as often as in any."""
    token = f"{rng.randrange(16**6):06x}"
    others = [ends for ends in ENDS if ends != "completed"]
    count = SAGAS * 2 // 5
    ends = ["completed"] * count + [others[i % len(others)] for i in range(SAGAS - count)]
    rng.shuffle(ends)
    return [Planned(f"{token}-{number:02}", each) for number, each in enumerate(ends)]


class Family:
    """The processes of parent and child, and what a test asks of them."""

    def __init__(self, processes: Processes, client: Client, parent: Saga, effects: Path) -> None:
        self.processes, self.client, self.parent = processes, client, parent
        [self.child] = parent.children
        self.effects = effects
        self.started = 0
        self.ended: dict[str, str] = {}

    def child_id(self, planned: Planned) -> str:
        return child_id(self.parent.name, planned.saga_id, "trip", 1)

    async def run(self, planned: Planned, rng: random.Random) -> None:
        """Start a saga, cancel it where that is planned, and wait for its outcome."""
        self.started += 1
        user_input = {"order": planned.saga_id, "ends": planned.ends}
        running = asyncio.create_task(self.client.run(self.parent, user_input, id=planned.saga_id))
        if planned.ends.startswith("cancelled"):
            opened_after_s = rng.uniform(0, 3)
            while not self.sql("SELECT 1 FROM gates WHERE name = ?", planned.saga_id) and not running.done():
                await asyncio.sleep(0.05)
            await self.client.cancel(self.parent, planned.saga_id)
            await asyncio.sleep(opened_after_s)
            self.sql("UPDATE gates SET open = 1 WHERE name = ?", planned.saga_id)
        try:
            await running
            self.ended[planned.saga_id] = "completed"
        except SagaFailed as error:
            self.ended[planned.saga_id] = error.step or ""

    async def kill_each(self, rng: random.Random) -> list[tuple[str, int]]:
        """Kill every process once, in an order of the seed's, and two more; start each again at once.

        Returns who was killed, and how many sagas were on their way at that moment.
        """
        names = list(self.processes.commands)
        killed = []
        for name in [*rng.sample(names, len(names)), *rng.choices(names, k=2)]:
            await asyncio.sleep(rng.uniform(*KILLED_EVERY_S))
            killed.append((name, self.started - len(self.ended)))
            self.processes.kill(name)
            self.processes.start(name)
        return killed

    async def records(self, plan: list[Planned]) -> Mapping[str, list[AnyRecord]]:
        """The records of all, once the children have said all they must: a parent knows a little before its child."""
        deadline = time.monotonic() + SETTLED_WITHIN_S
        while True:
            found = await read_records(self.processes.environment["CHOREO_BROKER"], self.parent, self.child)
            children = [found[self.child_id(planned)] for planned in plan]
            if all(outcomes_in(child) and asked_in(child) == answered_in(child).keys() for child in children):
                return found
            if time.monotonic() > deadline:
                return found  # who judges it will say what is missing
            await asyncio.sleep(0.5)

    def sql(self, statement: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(self.effects, timeout=30, isolation_level=None)) as db:
            return db.execute(statement, values).fetchall()

    def changes(self) -> list[Change]:
        return [Change(*row) for row in self.sql("SELECT key, saga_id, step, state FROM changes ORDER BY id")]


async def read_records(broker_url: str, *sagas: Saga) -> Mapping[str, list[AnyRecord]]:
    """The records of each saga, in order."""
    found: dict[str, list[AnyRecord]] = defaultdict(list)
    broker = await open_broker(broker_url)
    reader = await broker.reader()
    try:
        for topic in (saga_topic(saga.name) for saga in sagas):
            partitions = [TopicPartition(topic, index) for index in range(await broker.partitions(topic))]
            ends = {tp: end for tp, (_, end) in (await broker.offsets(partitions)).items()}
            for tp in ends:
                reader.seek(tp, 0)
            while any(reader.position(tp) < end for tp, end in ends.items()):
                for message in await reader.poll(timeout_s=1.0):
                    if (line := read_line(message)) is not None:
                        found[line.record.saga_id].append(line.record)
    finally:
        await reader.close()
        await broker.close()
    return found


def outcomes_in(records: list[AnyRecord]) -> list[SagaCompleted | SagaCompensated]:
    """The different outcomes of a saga; one that was only said again is one."""
    found: list[SagaCompleted | SagaCompensated] = []
    for one in records:
        if isinstance(one, SagaCompleted | SagaCompensated) and one not in found:
            found.append(one)
    return found


def asked_in(child: list[AnyRecord]) -> set[int]:
    """The generations in which a child was asked to undo what it did."""
    return {one.generation for one in child if isinstance(one, UndoRequested)}


def answered_in(child: list[AnyRecord]) -> dict[int, SagaUndone]:
    """Its answers by generation."""
    return {one.generation: one for one in child if isinstance(one, SagaUndone)}


def problems_of_outcomes(planned: Planned, parent: list[AnyRecord], child: list[AnyRecord]) -> list[str]:
    """What is wrong with how the logs say that a parent and its child ended."""
    if len(outcomes_in(parent)) != 1 or len(outcomes_in(child)) != 1:
        return [f"the parent has the outcomes {outcomes_in(parent)}, its child {outcomes_in(child)}"]
    [of_parent], [of_child] = outcomes_in(parent), outcomes_in(child)
    problems = []
    if isinstance(of_parent, SagaCompleted) != (planned.ends == "completed"):
        problems.append(f"the parent ended as {of_parent}")
    match planned.ends, of_child:
        case "rejected at flight", SagaCompensated(cause="failed", step="flight"):
            pass
        case "cancelled at flight", SagaCompleted() | SagaCompensated(cause="cancelled"):
            pass
        case "completed" | "rejected at bill" | "rejected at send" | "cancelled at send", SagaCompleted():
            pass
        case _:
            problems.append(f"the child ended as {of_child}")
    if len({one.start for one in child if isinstance(one, SagaStarted)}) != 1:
        problems.append("the child was started with different starts")
    return problems + problems_of_undoing(of_parent, of_child, child)


def problems_of_undoing(
    of_parent: SagaCompleted | SagaCompensated, of_child: SagaCompleted | SagaCompensated, child: list[AnyRecord]
) -> list[str]:
    """What is wrong with whether a child was undone, given the outcomes of both."""
    problems = []
    asked, answers = asked_in(child), answered_in(child)
    if asked != answers.keys():
        problems.append(f"the child was asked to undo in the generations {asked}, and answered {answers}")
    if isinstance(of_parent, SagaCompleted):
        return [*problems, "the child of a completed parent was asked to undo"] if asked else problems
    if isinstance(of_child, SagaCompleted) and not any(one.undone for one in answers.values()):
        problems.append("the child of a compensated parent completed, and was not undone")
    back = [one.step for one in of_parent.compensations if one.how == "undone"]
    if isinstance(of_child, SagaCompleted) and back[-2:] != ["trip", "reserve"]:
        problems.append(f"the parent went back by {back}")
    return problems


def problems_of_effects(planned: Planned, changes: list[Change]) -> list[str]:
    """What is wrong with the effects of a parent and its child, in the order in which they were made and undone."""
    problems = [
        f"{step} was made under {len(keys)} keys"
        for step in sorted({one.step for one in changes})
        if len(keys := {one.key for one in changes if one.step == step}) > 1
    ]
    made = [one.step for one in changes if one.state == "standing"]
    undone = [one.step for one in changes if one.state == "undone"]
    if made != (due := ["reserve", "hotel", "flight", "bill", "send"])[: len(made)]:
        problems.append(f"made in the order {made}")
    if planned.ends == "completed":
        if (made, undone) != (due, []):
            problems.append(f"completed, but made {made}, undid {undone}")
    elif undone != made[::-1]:
        problems.append(f"made {made}, but undid {undone}")
    return problems


async def kills_while_sub_sagas_run(
    broker: str, directory: Path, name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    plan = draw_plan(rng)
    module = f"{name}_sub_sagas"
    (directory / f"{module}.py").write_text(MODULE.format(name=name))
    monkeypatch.syspath_prepend(directory)
    effects = directory / "effects.db"
    with closing(sqlite3.connect(effects)) as db:
        db.executescript(
            "PRAGMA journal_mode = WAL; CREATE TABLE gates (name PRIMARY KEY, open);"
            "CREATE TABLE changes (id INTEGER PRIMARY KEY, key, saga_id, step, state);"
        )
    commands = {
        "shop": ["choreo", "run", f"{module}:shop"],
        "travel": ["choreo", "run", f"{module}:travel"],
        "order-log": ["choreo", "saga-log", f"{module}:ORDER"],
        "trip-log": ["choreo", "saga-log", f"{module}:TRIP"],
    }
    environment = {"CHOREO_BROKER": broker, "PYTHONPATH": str(directory), "EFFECTS": str(effects)}
    ports = dict(zip(commands, free_ports(len(commands)), strict=True))
    parent = importlib.import_module(module).ORDER
    with Processes(commands, environment, ports=ports, logs=directory / "logs") as processes:
        processes.start()
        processes.await_ready()
        async with Client(broker) as client:
            family = Family(processes, client, parent, effects)
            began = time.monotonic()
            try:
                async with asyncio.timeout(ENDED_WITHIN_S), asyncio.TaskGroup() as tasks:
                    killing = tasks.create_task(family.kill_each(rng))
                    for planned in plan:
                        tasks.create_task(family.run(planned, random.Random(f"{seed} {planned.saga_id}")))
                        await asyncio.sleep(OVER_S / SAGAS)
            except TimeoutError as error:
                left = [planned for planned in plan if planned.saga_id not in family.ended]
                logs = "".join(processes.tail(name, 8) for name in commands)
                raise AssertionError(f"without an outcome: {left}{logs}") from error
            records = await family.records(plan)
            took = time.monotonic() - began
        processes.check()
    sys.modules.pop(module, None)

    killed = killing.result()
    changes = family.changes()
    problems = []
    paths: Counter[str] = Counter()
    for planned in plan:
        of_parent, of_child = records[planned.saga_id], records[family.child_id(planned)]
        related = [one for one in changes if one.saga_id in (planned.saga_id, family.child_id(planned))]
        if (told := family.ended[planned.saga_id]) != ENDS[planned.ends]:
            problems.append(f"{planned}: the client was told {told!r}")
        found = [*problems_of_outcomes(planned, of_parent, of_child), *problems_of_effects(planned, related)]
        problems += [f"{planned}: {problem}" for problem in found]
        paths[f"{planned.ends}, child {'/'.join(type(one).__name__ for one in outcomes_in(of_child))}"] += 1
    print(f"{took:.1f} s; killed, with so many sagas on their way: {killed}; {dict(paths)}")
    assert problems == []
    assert {name for name, _ in killed} == set(commands)
    assert sum(sagas > 0 for _, sagas in killed) >= len(commands), "the kills hit processes at work"


async def test_on_the_embedded_broker(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    await kills_while_sub_sagas_run(f"sqlite:///{tmp_path / 'log.db'}", tmp_path, "embedded", seed, monkeypatch)


@pytest.mark.kafka
async def test_over_kafka(kafka_url: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    await kills_while_sub_sagas_run(kafka_url, tmp_path, "killed", seed, monkeypatch)
