"""The two worlds in which every row holds: the in-process runner, and runtimes over a broker as they are deployed.

A test takes ``world``, lets it ``play`` a saga, and looks at what was done and said. The broker is ``memory://`` in
virtual time by default, and a real Kafka with ``--semantics-broker kafka``; there every part has a connection of its
own, two replicas of each service and two saga-logs share the partitions.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from random import Random
from typing import Any, Protocol

from choreo.broker import open_broker
from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Broker
from choreo.broker.registry import Registry, ensure_saga_topics
from choreo.client import Client
from choreo.client.client import Act
from choreo.clock import Clock, SystemClock
from choreo.contract import Saga, Step
from choreo.core.status import SagaStatus
from choreo.messages.headers import MSGPACK
from choreo.messages.records import AnyRecord, SagaCompleted
from choreo.observe.metrics import Metrics
from choreo.saga_log import SagaLog
from choreo.saga_log.replay import replay
from choreo.step import Options, Service, StepRuntime
from choreo.store.memory import MemoryStore
from choreo.testing import Runner, virtual_time
from choreo.testing.inline import InlineExecutor
from tests.semantics.play import Behaviour, Play

DEADLINE_S = 60.0  # generous: only a test that hangs reaches it
REPLICAS = 2
SAGA_LOG = "saga-log"
QUICK = Options(poll_timeout_s=0.05, commit_interval_s=0.05, drain_timeout_s=5, shutdown_timeout_s=5)

_numbers = itertools.count()


class World(Protocol):
    """Where sagas run.

    Attributes:
        clock: the time that all parts go by.
        metrics: what all parts count in.
        plays: the sagas that were played.
    """

    clock: Clock
    metrics: Metrics
    plays: list[Play]

    async def serve(self, *services: Service) -> None:
        """Start these services, and what else there has to be for their sagas to run. Once for a world."""
        ...

    async def run(self, saga: Saga, value: Any, **options: Any) -> SagaCompleted: ...
    async def start(self, saga: Saga, value: Any, **options: Any) -> str: ...
    async def wait(self, saga: Saga, saga_id: str, **options: Any) -> SagaCompleted: ...
    async def status(self, saga: Saga, saga_id: str) -> SagaStatus: ...
    async def cancel(self, saga: Saga, saga_id: str, **options: Any) -> None: ...
    async def signal(self, saga: Saga, saga_id: str, name: str, payload: Any = None, **options: Any) -> None: ...
    async def pause(self, saga: Saga, saga_id: str | None = None) -> None: ...
    async def resume(self, saga: Saga, saga_id: str | None = None) -> None: ...

    async def act(self, saga: Saga, saga_id: str, act: Act, step: str) -> None:
        """An operator answers for the step at which the saga is stuck."""
        ...

    async def history(self, saga: Saga, saga_id: str) -> list[AnyRecord]: ...

    async def kill(self, *parts: str) -> None:
        """End services, by name, or the saga-log, as the death of their processes would; by default everything."""
        ...

    async def revive(self, *parts: str) -> None:
        """Start them again; by default all that were killed."""
        ...

    async def close(self) -> None: ...


class Stage:
    """What both worlds have in common for the tests."""

    metrics: Metrics
    clock: Clock

    def __init__(self) -> None:
        self.plays: list[Play] = []

    def named(self, name: str) -> str:
        """A name of this world's own for a saga or a service."""
        return name

    async def play(
        self: Any,
        *steps: Step,
        do: dict[str, Behaviour] | None = None,
        undo: dict[str, Behaviour] | None = None,
        bind: dict[str, dict[str, Any]] | None = None,
        prepare: Callable[[Play], None] = lambda play: None,
        name: str = "play",
        **options: Any,
    ) -> Play:
        """A saga of these steps, each in a service of its own, which behave as told.

        Args:
            do, undo, bind: as for ``Play``.
            prepare: is shown the play before its services are started, to add to them.
            options: of the saga.
        """
        saga = Saga(self.named(name), *steps, **options)
        play = Play(self, saga, do or {}, undo or {}, bind or {})
        self.plays.append(play)
        prepare(play)
        await self.serve(*play.services)
        return play

    async def until(self, question: Callable[[], Awaitable[Any] | Any]) -> Any:
        """Ask until the answer is true, and return it."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                answer = question()
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if answer:
                    return answer
                await asyncio.sleep(0.01)


class RunnerWorld(Stage):
    """The in-process runner."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = Metrics()
        self.runner: Runner
        self.options: dict[str, Any] = {}

    async def serve(self, *services: Service) -> None:
        self.runner = Runner(*services, **self.options)
        await self.runner.__aenter__()
        self.clock, self.metrics = self.runner.clock, self.runner.metrics

    async def run(self, saga: Saga, value: Any, **options: Any) -> SagaCompleted:
        return await self.runner.run(saga, value, **options)

    async def start(self, saga: Saga, value: Any, **options: Any) -> str:
        return await self.runner.start(saga, value, **options)

    async def wait(self, saga: Saga, saga_id: str, **options: Any) -> SagaCompleted:
        return await self.runner.wait(saga, saga_id, **options)

    async def status(self, saga: Saga, saga_id: str) -> SagaStatus:
        return await self.runner.status(saga, saga_id)

    async def cancel(self, saga: Saga, saga_id: str, **options: Any) -> None:
        await self.runner.cancel(saga, saga_id, **options)

    async def signal(self, saga: Saga, saga_id: str, name: str, payload: Any = None, **options: Any) -> None:
        await self.runner.signal(saga, saga_id, name, payload, **options)

    async def pause(self, saga: Saga, saga_id: str | None = None) -> None:
        await self.runner.pause(saga, saga_id)

    async def resume(self, saga: Saga, saga_id: str | None = None) -> None:
        await self.runner.resume(saga, saga_id)

    async def act(self, saga: Saga, saga_id: str, act: Act, step: str) -> None:
        await self.runner.act(saga, saga_id, act, step)

    async def history(self, saga: Saga, saga_id: str) -> list[AnyRecord]:
        return self.runner.history(saga_id)

    async def kill(self, *parts: str) -> None:
        await self.runner.kill(*parts)

    async def revive(self, *parts: str) -> None:
        await self.runner.revive(*parts)

    async def close(self) -> None:
        if hasattr(self, "runner"):
            await self.runner.__aexit__(None, None, None)


class BrokerWorld(Stage):
    """Runtimes over a broker, several of each, each with a connection of its own."""

    def __init__(self, url: str | None, *, stops_within_s: float = 1.0) -> None:
        """Make a world.

        Args:
            url: of a real broker, in real time; by default one in memory, in virtual time.
            stops_within_s: what its parts get to end in order; then they end as by death.
        """
        super().__init__()
        self.metrics = Metrics()
        self.clock = SystemClock()
        self._url = url
        self._stops_within_s = stops_within_s
        self._number = next(_numbers)
        self._close = AsyncExitStack()
        self._services: dict[str, Service] = {}
        self._contracts: tuple[Saga, ...] = ()
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._parts: set[SagaLog | StepRuntime] = set()
        self._client: Client
        self._broker: Broker

    def named(self, name: str) -> str:
        # All worlds share a real broker; sagas of memory:// live in a log of their own.
        return name if self._url is None else f"{name}-{self._number}-{id(self):x}"

    async def serve(self, *services: Service) -> None:
        if self._url is None:
            self.clock = self._close.enter_context(virtual_time())
        self._services = {service.name: service for service in services}
        contracts = {key: saga for service in services for key, saga in service.contracts.items()}
        self._contracts = tuple(contracts.values())
        self._broker = await self._open()
        self._close.push_async_callback(self._broker.close)
        await ensure_saga_topics(self._broker, self._contracts, partitions=3)
        self._client = await self._close.enter_async_context(
            Client(self._broker, content_type=MSGPACK, clock=self.clock)
        )
        self._close.push_async_callback(self._stop)
        await self.revive()

    async def run(self, saga: Saga, value: Any, **options: Any) -> SagaCompleted:
        return await self._client.run(saga, value, **{"timeout_s": DEADLINE_S, **options})

    async def start(self, saga: Saga, value: Any, **options: Any) -> str:
        return await self._client.start(saga, value, **options)

    async def wait(self, saga: Saga, saga_id: str, **options: Any) -> SagaCompleted:
        return await self._client.wait(saga, saga_id, **{"timeout_s": DEADLINE_S, **options})

    async def status(self, saga: Saga, saga_id: str) -> SagaStatus:
        return await self._client.status(saga, saga_id)

    async def cancel(self, saga: Saga, saga_id: str, **options: Any) -> None:
        await self._client.cancel(saga, saga_id, **options)

    async def signal(self, saga: Saga, saga_id: str, name: str, payload: Any = None, **options: Any) -> None:
        await self._client.signal(saga, saga_id, name, payload, **options)

    async def pause(self, saga: Saga, saga_id: str | None = None) -> None:
        await self._client.pause(saga, saga_id, operator="test", reason="because")

    async def resume(self, saga: Saga, saga_id: str | None = None) -> None:
        await self._client.resume(saga, saga_id, operator="test", reason="because")

    async def act(self, saga: Saga, saga_id: str, act: Act, step: str) -> None:
        await self._client.act(saga, saga_id, act, step, operator="test", reason="because")

    async def history(self, saga: Saga, saga_id: str) -> list[AnyRecord]:
        found: list[AnyRecord] = []
        async for _, lines in replay(self._broker, saga.name, registry=Registry(self._broker), saga_id=saga_id):
            found = [line.entry.record for line in lines]
        return found

    async def kill(self, *parts: str) -> None:
        dying = [
            task for name in (map(self._key, parts) if parts else tuple(self._tasks)) for task in self._tasks.pop(name)
        ]
        for task in dying:  # all at once: a replica that outlived the other would take over from it
            task.cancel()
        await asyncio.wait(dying)
        for task in dying:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def revive(self, *parts: str) -> None:
        everything = (SAGA_LOG, *self._services)
        for name in map(self._key, parts) if parts else tuple(name for name in everything if name not in self._tasks):
            self._tasks[name] = [
                asyncio.create_task(self._run(name, replica), name=f"{name}/{replica}") for replica in range(REPLICAS)
            ]
        await self.until(self._is_ready)

    async def close(self) -> None:
        await self._close.aclose()

    def _key(self, part: str) -> str:
        return part if part == SAGA_LOG else self.named(part)

    async def _stop(self) -> None:
        """End everything: in order where that is quick, and as by death where a handler hangs."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._stops_within_s):
                await asyncio.gather(*(part.stop() for part in tuple(self._parts)))
                await asyncio.gather(*(task for tasks in self._tasks.values() for task in tasks))
        await self.kill()

    def _is_ready(self) -> bool:
        for task in (task for tasks in self._tasks.values() for task in tasks):
            if task.done():
                task.result()
        running = sum(map(len, self._tasks.values()))
        return len(self._parts) == running and all(part.not_ready_because() is None for part in self._parts)

    async def _run(self, name: str, replica: int) -> None:
        broker = await self._open()
        part: SagaLog | StepRuntime
        try:
            if name == SAGA_LOG:
                part = SagaLog(
                    broker,
                    MemoryStore(),
                    self._contracts,
                    clock=self.clock,
                    metrics=self.metrics,
                    poll_timeout_s=0.05,
                    group=self.named("choreo.saga-log"),
                )
            else:
                part = StepRuntime(
                    self._services[name],
                    broker,
                    clock=self.clock,
                    random=Random(f"{name}/{replica}"),
                    metrics=self.metrics,
                    options=QUICK,
                    executor=InlineExecutor() if self._url is None else None,
                )
            self._parts.add(part)
            try:
                await part.run()
            finally:
                self._parts.discard(part)
        finally:
            await broker.close()

    async def _open(self) -> Broker:
        if self._url is not None:
            return await open_broker(self._url)
        return await MemoryBroker.open(f"memory://semantics-{self._number}", now_ms=self.clock.now_ms)
