"""A sibling at work in another process is cancelled when a branch fails, through kill -9 of whoever has to do it."""

from __future__ import annotations

import asyncio
import importlib
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from choreo.client import Client
from choreo.errors import SagaFailed
from choreo.messages.records import AnyRecord, CancelStep, StepFailed
from deploy.run_procfile import Processes, free_ports
from tests.e2e.test_sub_saga_kills import read_records

pytestmark = pytest.mark.e2e

HOTEL_TAKES_S = 300.0
ENDED_WITHIN_S = 60.0  # generous, and far below what the hotel takes

MODULE = '''\
"""Trips: the hotel takes for ever, the flight fails when its gate opens."""

import asyncio
import os
import sqlite3
from contextlib import closing

from choreo import CompensationContext, Context, Reject, Saga, Service, Step

TRIP = Saga(
    "{name}_trip",
    Step("check", "uncheck"),
    Step("flight", "cancel_flight", after="check"),
    Step("hotel", "cancel_hotel", after="check", timeout="10m", on_sibling_failure="cancel"),
    Step("tell", after=("flight", "hotel")),
    settle="10m",
)
air, land = Service("{name}_air"), Service("{name}_land")


def database():
    return closing(sqlite3.connect(os.environ["EFFECTS"], timeout=30, isolation_level=None))


def note(what, ctx):
    with database() as db:
        db.execute("INSERT INTO notes VALUES (?, ?, ?)", (what, ctx.step, ctx.saga_id))


@air.step(TRIP, "check")
async def check(ctx: Context) -> None:
    note("begun", ctx)


@air.step(TRIP, "flight")
async def fly(ctx: Context) -> None:
    note("begun", ctx)
    with database() as db:
        while not db.execute("SELECT 1 FROM gates WHERE name = ?", (ctx.saga_id,)).fetchone():
            await asyncio.sleep(0.02)
    raise Reject("no seats", code="full")


@land.step(TRIP, "hotel")
async def stay(ctx: Context) -> None:
    note("begun", ctx)
    try:
        await asyncio.sleep({takes_s})
    except asyncio.CancelledError:
        note("cancelled", ctx)
        raise
    note("made", ctx)


@air.step(TRIP, "tell")
async def tell(ctx: Context) -> None:
    note("begun", ctx)


for service, step in ((air, "check"), (air, "flight"), (land, "hotel")):

    @service.compensation(TRIP, step)
    async def undo(ctx: CompensationContext) -> None:
        note("undone", ctx)
'''


class Trips:
    """The processes, and what a test asks of them."""

    def __init__(self, processes: Processes, client: Client, effects: Path, module: Any) -> None:
        self.processes, self.client, self.trip = processes, client, module.TRIP
        self._effects = effects

    def sql(self, statement: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(self._effects, timeout=30, isolation_level=None)) as db:
            return db.execute(statement, values).fetchall()

    def noted(self, saga_id: str, what: str, step: str = "hotel") -> int:
        return int(
            self.sql(
                "SELECT count(*) FROM notes WHERE saga_id = ? AND what = ? AND step = ?", saga_id, what, step
            )[0][0]
        )  # fmt: skip

    async def until(self, question: Any) -> None:
        async with asyncio.timeout(ENDED_WITHIN_S):
            while not question():
                await asyncio.sleep(0.02)

    async def on_the_way(self, saga_id: str) -> None:
        """Start a trip, and wait until both branches are at work."""
        await self.client.start(self.trip, {}, id=saga_id)
        await self.until(lambda: self.noted(saga_id, "begun") and self.noted(saga_id, "begun", "flight"))

    def fail(self, saga_id: str) -> None:
        """The flight fails from here on."""
        self.sql("INSERT INTO gates VALUES (?)", saga_id)

    async def ends(self, saga_id: str) -> None:
        with pytest.raises(SagaFailed, match="no seats"):
            await self.client.wait(self.trip, saga_id, timeout_s=ENDED_WITHIN_S)

    async def records(self, saga_id: str) -> list[AnyRecord]:
        found = await read_records(self.processes.environment["CHOREO_BROKER"], self.trip)
        return found[saga_id]


async def siblings_are_cancelled(broker: str, directory: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"{name}_siblings"
    (directory / f"{module}.py").write_text(MODULE.format(name=name, takes_s=HOTEL_TAKES_S))
    monkeypatch.syspath_prepend(directory)
    effects = directory / "effects.db"
    with closing(sqlite3.connect(effects)) as db:
        db.executescript(
            "PRAGMA journal_mode = WAL; CREATE TABLE gates (name PRIMARY KEY);CREATE TABLE notes (what, step, saga_id);"
        )
    commands = {
        "air": ["choreo", "run", f"{module}:air"],
        "land": ["choreo", "run", f"{module}:land"],
        "trip-log": ["choreo", "saga-log", f"{module}:TRIP"],
    }
    environment = {"CHOREO_BROKER": broker, "PYTHONPATH": str(directory), "EFFECTS": str(effects)}
    ports = dict(zip(commands, free_ports(len(commands)), strict=True))
    try:
        with Processes(commands, environment, ports=ports, logs=directory / "logs") as processes:
            processes.start()
            processes.await_ready()
            async with Client(broker) as client:
                trips = Trips(processes, client, effects, importlib.import_module(module))
                await without_a_kill(trips)
                await the_service_dies_before_it_has_read_of_it(trips)
                await the_service_dies_with_the_saga_log(trips)
            processes.check()
    finally:
        sys.modules.pop(module, None)


async def without_a_kill(trips: Trips) -> None:
    await trips.on_the_way("plain")
    trips.fail("plain")
    await trips.ends("plain")
    assert trips.noted("plain", "cancelled") == 1
    assert (trips.noted("plain", "undone"), trips.noted("plain", "undone", "check")) == (1, 1)
    [cancelled] = [one for one in await trips.records("plain") if isinstance(one, StepFailed) and one.step == "hotel"]
    assert (cancelled.failure.kind, cancelled.failure.message) == ("cancelled", "step 'flight' has failed")
    assert cancelled.duration_ms < ENDED_WITHIN_S * 1_000


async def the_service_dies_before_it_has_read_of_it(trips: Trips) -> None:
    """It comes back to a log in which its step is cancelled, and does not begin with it again."""
    await trips.on_the_way("dead")
    trips.processes.kill("land")
    trips.fail("dead")
    async with asyncio.timeout(ENDED_WITHIN_S):
        while not any(isinstance(one, CancelStep) for one in await trips.records("dead")):
            await asyncio.sleep(0.1)
    trips.processes.start("land")
    await trips.ends("dead")
    assert (trips.noted("dead", "begun"), trips.noted("dead", "cancelled")) == (1, 0)
    [cancelled] = [one for one in await trips.records("dead") if isinstance(one, StepFailed) and one.step == "hotel"]
    assert (cancelled.failure.kind, cancelled.effect, cancelled.attempts) == ("cancelled", "unknown", 0)
    assert trips.noted("dead", "undone") == 1, "the run that was killed may have had an effect"


async def the_service_dies_with_the_saga_log(trips: Trips) -> None:
    """Nobody has decided anything by then; both come back, and the run that begins again is cancelled."""
    await trips.on_the_way("both")
    trips.processes.kill("land")
    trips.processes.kill("trip-log")
    trips.fail("both")
    trips.processes.start("land")
    await trips.until(lambda: trips.noted("both", "begun") == 2)
    trips.processes.start("trip-log")
    await trips.ends("both")
    assert (trips.noted("both", "cancelled"), trips.noted("both", "undone")) == (1, 1)


async def test_on_the_embedded_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await siblings_are_cancelled(f"sqlite:///{tmp_path / 'log.db'}", tmp_path, "embedded", monkeypatch)


@pytest.mark.kafka
async def test_over_kafka(kafka_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await siblings_are_cancelled(kafka_url, tmp_path, "cancelled", monkeypatch)
