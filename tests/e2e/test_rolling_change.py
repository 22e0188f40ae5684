"""A service and a contract are changed while sagas run: old and new processes side by side, sagas begun under both."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from choreo.client import Client
from choreo.messages.records import SagaCompleted
from deploy.run_procfile import Processes, free_ports

pytestmark = pytest.mark.e2e

SAGAS = 20

OLD = '''\
"""Trips, as they were."""

import asyncio
import os

from choreo import Context, Saga, Service, Step

TRIP = Saga("{saga}", Step("pack", compensation="unpack"), Step("go"))
trips = Service("{saga}-trips")


async def note(ctx: Context, name: str) -> str:
    await asyncio.sleep(0.2)
    with open(os.environ["JOURNAL"], "a") as journal:
        journal.write(f"{{ctx.saga_id}} {{name}}\\n")
    return name


@trips.step(TRIP, "pack")
async def pack(ctx: Context) -> str:
    return await note(ctx, "packed")


@trips.compensation(TRIP, "pack")
async def unpack() -> None:
    return None


@trips.step(TRIP, "go")
async def go(ctx: Context) -> str:
    return await note(ctx, "gone")
'''

NEW = '''\
"""Trips as they are now, and the old ones until the last of them has ended."""

from choreo import Context, Saga, Step

from {old} import TRIP as TRIP_1, note, trips

TRIP = Saga("{saga}", Step("pack", compensation="unpack"), Step("book"), Step("go"), version=2)


@trips.step(TRIP, "pack")
async def pack_lightly(ctx: Context) -> str:
    return await note(ctx, "packed lightly")


@trips.compensation(TRIP, "pack")
async def unpack_lightly() -> None:
    return None


@trips.step(TRIP, "book")
async def book(ctx: Context) -> str:
    return await note(ctx, "booked")


@trips.step(TRIP, "go")
async def go_by_train(ctx: Context) -> str:
    return await note(ctx, "gone by train")
'''


async def a_rolling_change(broker: str, directory: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = f"{name}_old", f"{name}_new"
    (directory / f"{old}.py").write_text(OLD.format(saga=name))
    (directory / f"{new}.py").write_text(NEW.format(saga=name, old=old))
    monkeypatch.syspath_prepend(directory)
    journal = directory / "journal"
    commands = {
        "old-service": ["choreo", "run", f"{old}:trips"],
        "old-saga-log": ["choreo", "saga-log", f"{old}:TRIP"],
        "new-service": ["choreo", "run", f"{new}:trips"],
        "new-saga-log": ["choreo", "saga-log", f"{new}:TRIP_1", f"{new}:TRIP"],
    }
    environment = {"CHOREO_BROKER": broker, "PYTHONPATH": str(directory), "JOURNAL": str(journal)}
    ports = dict(zip(commands, free_ports(len(commands)), strict=True))
    with Processes(commands, environment, ports=ports, logs=directory / "logs") as processes:
        processes.start("old-service", "old-saga-log")
        processes.await_ready("old-service", "old-saga-log")
        before = importlib.import_module(old).TRIP
        async with Client(broker) as client:
            waits = [asyncio.create_task(client.run(before, i, id=f"old-{i}")) for i in range(SAGAS)]
            await asyncio.sleep(0.3)
            processes.start("new-service", "new-saga-log")
            after = importlib.import_module(new).TRIP
            waits += [asyncio.create_task(client.run(after, i, id=f"new-{i}")) for i in range(SAGAS // 2)]
            processes.await_ready("new-service", "new-saga-log", timeout_s=60)
            waits += [asyncio.create_task(client.run(before, i, id=f"late-{i}")) for i in range(SAGAS)]
            waits += [asyncio.create_task(client.run(after, i, id=f"next-{i}")) for i in range(SAGAS // 2)]
            await asyncio.sleep(0.3)
            await asyncio.to_thread(processes.stop, "old-service", "old-saga-log")
            outcomes: list[SagaCompleted] = await asyncio.wait_for(asyncio.gather(*waits), 120)
        processes.check("new-service", "new-saga-log")
    for outcome in outcomes:
        effects = {step: msgspec.json.decode(effect) for step, effect in outcome.effects.items()}
        if outcome.version == 1:
            assert effects == {"pack": "packed", "go": "gone"}
        else:
            assert effects == {"pack": "packed lightly", "book": "booked", "go": "gone by train"}
    assert Counter(outcome.version for outcome in outcomes) == {1: 2 * SAGAS, 2: SAGAS}
    done = Counter(journal.read_text().splitlines())
    assert len(done) == 2 * SAGAS * 2 + SAGAS * 3
    assert set(done.values()) == {1}, "stopped in order, nothing is done twice"
    for module in (old, new):
        sys.modules.pop(module, None)


async def test_on_the_embedded_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await a_rolling_change(f"sqlite:///{tmp_path / 'log.db'}", tmp_path, "embedded", monkeypatch)


@pytest.mark.kafka
async def test_over_kafka(kafka_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await a_rolling_change(kafka_url, tmp_path, "rolled", monkeypatch)
