"""One saga, in a world where nothing goes wrong but the deaths that were planned.

Each service and the saga-log run in processes that die at their n-th await on the outside world, before or after the
world has done what they asked for, and come back a moment later with nothing but what is in the log, in the store and
in the services' databases. Between two such awaits a process changes nothing but its own memory, so a death anywhere in
between is the same as one at the await before.

The judge is that of the simulation. Without zombies, time-outs and repeated triggers no promise is weaker, so none of
its allowances may have been needed; but the first step of a sub-saga may run twice (S7) after two deaths.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, NamedTuple

from choreo.broker.memory import MemoryBroker
from choreo.broker.port import TopicPartition
from choreo.broker.registry import ensure_saga_topics
from choreo.broker.topics import saga_topic
from choreo.client import Client
from choreo.saga_log import SagaLog
from choreo.step import CompensationContext, Context, Options, Reject, Retry, Service, StepRuntime
from choreo.testing import VirtualClock
from tests.crash_points.scenarios import Scenario
from tests.simulation import clockwork
from tests.simulation.effects import Refused, row_of
from tests.simulation.faults import Faults
from tests.simulation.judge import Judge
from tests.simulation.process import Disk, FaultyBroker, FaultyStore, Log, Process, ProcessClock
from tests.simulation.unmeasured import UNMEASURED

SESSION_TIMEOUT_MS = 600
AWAY_S = 0.7
"""A little longer than a session: who comes back gets its partitions at once."""
QUIET_WITHIN_S = 120.0
SAGA_ID = "the-saga"

EFFECTS = frozenset({"send", "commit", "save", "make", "undo", "consumer"})
"""What a process does to the world; everything else only asks."""


class Death(Exception):  # noqa: N818
    """A handler's process has died."""


class Run(NamedTuple):
    """What a run has come to.

    Attributes:
        points: how many crash points it came by.
        deaths: at which of them somebody died, in words.
    """

    points: int
    deaths: tuple[str, ...]
    outcome: str
    violations: tuple[str, ...]


class Reaper:
    """Counts the crash points of all processes, and kills whoever comes to one that is planned."""

    def __init__(self, planned: frozenset[int], *, only_effects: bool) -> None:
        self.passed = 0
        self.deaths: list[str] = []
        self._planned = planned
        self._only_effects = only_effects

    def pass_by(self, process: Process, what: str, *, before: bool) -> None:
        """``process`` is about to do something, or has done it. Raises ``CancelledError`` if it dies of that."""
        if process.is_dead:
            raise asyncio.CancelledError
        if self._only_effects and (not before or what not in EFFECTS):
            return  # dying after it is dying before the next
        self.passed += 1
        if self.passed in self._planned:
            self.deaths.append(f"{process.name} {'before' if before else 'after'} {what}")
            process.die()
            raise asyncio.CancelledError


class Mortal:
    """A port that a process uses, with a crash point before and after each await."""

    def __init__(self, inner: Any, process: Process, reaper: Reaper) -> None:
        self._inner, self._process, self._reaper = inner, process, reaper

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(found) or name == "close":
            return found

        async def mortal(*args: Any, **kwargs: Any) -> Any:
            self._reaper.pass_by(self._process, name, before=True)
            result = await found(*args, **kwargs)
            self._reaper.pass_by(self._process, name, before=False)
            if name in ("producer", "consumer", "reader"):
                return Mortal(result, self._process, self._reaper)
            return result

        return mortal


def run(scenario: Scenario, planned: frozenset[int] = frozenset(), *, only_effects: bool = False) -> Run:
    """Run a scenario with deaths at these points, counted from 1."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        reaper = Reaper(planned, only_effects=only_effects)
        return clockwork.run(lambda clock: _World(scenario, clock, reaper).run())
    finally:
        logging.disable(level)


class _World:
    def __init__(self, scenario: Scenario, clock: VirtualClock, reaper: Reaper) -> None:
        self.scenario = scenario
        self.contract = scenario.shape.contract
        self.clock = clock
        self.reaper = reaper
        self.contracts = [each.contract for each in scenario.shape.family]
        self.tps = [TopicPartition(saga_topic(contract.name), 0) for contract in self.contracts]
        # The parent's id has no slash, its children's have.
        self.judge = Judge(scenario.shape, lambda saga_id: self.tps["/" in saga_id], clock.now_ms)
        self.log = Log(clock.now_ms, self.judge.appended, session_timeout_ms=SESSION_TIMEOUT_MS)
        self.disk = Disk()
        self.faults = Faults.none()
        self.runs: Counter[str] = Counter()
        self.saga_log: SagaLog | None = None
        self._numbers = itertools.count()

    async def run(self) -> Run:
        await ensure_saga_topics(MemoryBroker("memory://crash", self.log), self.contracts, partitions=1)
        roles = [(service, self._serve) for shape in self.scenario.shape.family for service in shape.services]
        tasks = [asyncio.create_task(self._keep_alive(name, make)) for name, make in [*roles, ("saga-log", self._keep)]]
        await self._be_client()
        await self._rest()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self.judge.judge_at_the_end()
        return self._result()

    def _result(self) -> Run:
        judge = self.judge
        state = judge.states[SAGA_ID]
        outcome = state.outcome.kind if state.outcome else state.phase.value
        wrong = list(judge.violations)
        if outcome != self.scenario.outcome:
            wrong.append(f"the outcome is {outcome}, not {self.scenario.outcome}")
        # The start of a sub-saga is said again by a saga-log that died between the logs: a trigger that is there twice.
        excused = {"S7"} if self.scenario.shape.children else set()
        if judge.contended or judge.weaker.keys() - excused or (judge.repeated and not excused):
            wrong.append(f"weaker promises were needed: {dict(judge.weaker)}")
        return Run(self.reaper.passed, tuple(self.reaper.deaths), outcome, tuple(wrong))

    async def _keep_alive(self, role: str, make: Callable[[Process, str], Coroutine[Any, Any, None]]) -> None:
        while True:
            process = Process(f"{role}.{next(self._numbers)}", self.faults, self.clock, self.log, lambda _: None)
            process.task = asyncio.create_task(make(process, role), name=process.name)
            try:
                await asyncio.wait((process.task,))
            except asyncio.CancelledError:
                process.die()
                await asyncio.wait((process.task,))
                raise
            if not process.task.cancelled() and (error := process.task.exception()) is not None:
                self.judge.violated("R0", process.name, f"ended with {error!r}")
            process.die()
            await asyncio.sleep(AWAY_S)

    def _mortal(self, inner: Any, process: Process) -> Any:
        return Mortal(inner, process, self.reaper)

    async def _serve(self, process: Process, name: str) -> None:
        runtime = StepRuntime(
            self._service(name, process),
            self._mortal(FaultyBroker(self.log, process, self.judge.committed), process),
            clock=ProcessClock(process),
            random=Random(process.name),
            metrics=UNMEASURED,
            options=Options(poll_timeout_s=1.0, commit_interval_s=0.0, commit_records=1, shutdown_timeout_s=0.0),
        )
        await runtime.run()

    async def _keep(self, process: Process, _name: str) -> None:
        self.saga_log = SagaLog(
            self._mortal(FaultyBroker(self.log, process, self.judge.committed), process),
            self._mortal(FaultyStore(self.disk, process), process),
            (self.contract,),
            clock=ProcessClock(process),
            metrics=UNMEASURED,
            poll_timeout_s=1.0,
            records_max=1,
            save_interval_s=0.0,
        )
        await self.saga_log.run()

    def _service(self, name: str, process: Process) -> Service:
        service = Service(name)
        for shape in self.scenario.shape.family:
            for step in shape.services.get(name, ()):
                service.step(shape.contract, step)(self._runner(process))
                service.compensation(shape.contract, step)(self._undoer(process))
        return service

    def _runner(self, process: Process) -> Callable[[Context], Coroutine[Any, Any, dict[str, str]]]:
        async def run_step(ctx: Context) -> dict[str, str]:
            scenario, key = self.scenario, ctx.idempotency_key
            step = row_of(key, "standing").step
            work = self.judge.started(process, ctx)
            try:
                self.runs[key] += 1
                if step == scenario.flaky and self.runs[key] == 1:
                    raise OSError("not the first time")
                if step == scenario.rejects and ctx.round == 1:
                    raise Reject("no", code="no")
                builds_on = frozenset(effect["key"] for effect in ctx.effects.values())
                self.reaper.pass_by(process, "make", before=True)
                try:
                    self.judge.make(process, key, builds_on)
                except Refused as refused:
                    raise Reject(str(refused), code="compensated") from refused
                self.reaper.pass_by(process, "make", before=False)
                if step == scenario.crashes and ctx.round == 1:
                    raise OSError("after the effect")
                return {"key": key}
            finally:
                self.judge.ended(process, work)

        return run_step

    def _undoer(self, process: Process) -> Callable[[CompensationContext], Coroutine[Any, Any, Any]]:
        async def undo_step(ctx: CompensationContext) -> Any:
            work = self.judge.started(process, ctx)
            try:
                self.reaper.pass_by(process, "undo", before=True)
                self.judge.undo(process, ctx.step_key)
                self.reaper.pass_by(process, "undo", before=False)
            finally:
                self.judge.ended(process, work)
            if row_of(ctx.step_key, "undone").step == self.scenario.asks_for_retry:
                return Retry(2, base_backoff=0)
            return None

        return undo_step

    async def _be_client(self) -> None:
        process = Process("client", self.faults, self.clock, self.log, lambda _: None, is_mortal=False)
        broker = FaultyBroker(self.log, process, self.judge.committed)
        async with Client(broker, clock=self.clock, random=Random("client")) as client:
            await client.start(self.contract, {"n": 1}, id=SAGA_ID)
            if self.scenario.cancelled_after_s is not None:
                await asyncio.sleep(self.scenario.cancelled_after_s)
                await client.cancel(self.contract, SAGA_ID)

    async def _rest(self) -> None:
        give_up_at = self.clock.monotonic() + QUIET_WITHIN_S
        quiet = 0
        while quiet < 2:
            await asyncio.sleep(0.5)
            busy = self.judge.is_quiet({tp: self.log.end_known(tp) or 0 for tp in self.tps})
            quiet = 0 if busy else quiet + 1
            if busy and self.clock.monotonic() > give_up_at:
                self.judge.violated(*busy.split(" ", 2))
                return
        assert self.saga_log is not None, "it has just finished its work"
        for tp, shard in self.saga_log._own.shards.items():
            self.judge.compare(f"the memory of {tp}", shard.states())
