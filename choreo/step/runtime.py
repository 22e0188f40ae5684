"""Runs services: each a member of its own consumer group, all over one broker connection and one pool of threads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

from choreo.broker.announcement import Announcement, announcement
from choreo.broker.port import Broker, Producer
from choreo.broker.registry import Registry, announce, register
from choreo.clock import Clock, SystemClock
from choreo.contract.saga import Saga
from choreo.errors import BrokerError, BrokerUnavailable, DefinitionError
from choreo.inbox import Inbox
from choreo.observe.metrics import Metrics
from choreo.step.attempts import Attempts
from choreo.step.compensation_error import ErrorHandlers
from choreo.step.dead_letter import DeadLetters
from choreo.step.lanes import Slots
from choreo.step.options import Options
from choreo.step.outcome import OutcomeHooks
from choreo.step.perform import HostedSteps, Performer
from choreo.step.publish import Publisher
from choreo.step.recorder import Recorder
from choreo.step.route import Routes
from choreo.step.service import Service
from choreo.step.tracers import Tracers
from choreo.step.unheld import Unheld
from choreo.step.worker import Worker

logger = logging.getLogger(__name__)


class StepRuntime:
    """One or several services in one process.

        runtime = StepRuntime(payment, await open_broker("kafka://localhost:9092"))
        loop.add_signal_handler(signal.SIGTERM, lambda: asyncio.ensure_future(runtime.stop()))
        await runtime.run()

    The topics must exist (``choreo.broker.registry.ensure_saga_topics``).
    """

    def __init__(
        self,
        services: Service | Iterable[Service],
        broker: Broker,
        *,
        clock: Clock | None = None,
        random: Random | None = None,
        metrics: Metrics | None = None,
        options: Options | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Check the services and prepare to run them.

        Args:
            services: each step may be in one of them only.
            broker: stays the caller's to close.
            clock: the machine's by default.
            random: for run ids and jitter; seeded by the operating system by default.
            metrics: what the services count in; one of its own by default.
            options: settings.
            executor: where sync handlers run; a pool of threads of its own by default.

        Raises:
            DefinitionError: handlers are missing, or two services have the same step; with all problems found.
        """
        self.services = (services,) if isinstance(services, Service) else tuple(services)
        self.metrics = metrics if metrics is not None else Metrics()
        self._broker = broker
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._random = random if random is not None else Random()  # noqa: S311  # ids need to differ, not to be secret
        self._options = options if options is not None else Options()
        self._executor = executor
        self._hosted = {service.name: service.hosted() for service in self.services}
        problems = _overlaps(self.services, self._hosted)
        for service in self.services:
            if service.inbox is not None:
                problems += service.inbox.problems_with(service.contracts.values())
        if problems:
            raise DefinitionError("the set of services", tuple(problems))
        self._workers: tuple[Worker, ...] = ()
        self._ended = asyncio.Event()
        self._is_stopping = False
        self._inbox_slots: dict[int, Slots] = {}

    def not_ready_because(self) -> str | None:
        """Why the process cannot do its work now, for ``/readyz``; ``None`` if it can."""
        if not self._workers:
            return "the services are not running"
        return "; ".join(reason for worker in self._workers if (reason := worker.not_ready_because())) or None

    async def run(self) -> None:
        """Publish the contracts and what the services run, join the groups, and work until ``stop``.

        Cancelled, it ends at once and commits nothing, as if the process had died; use ``stop`` to end in order.

        Raises:
            DefinitionError: a contract is registered with another content under the same version.
            TopicError: a topic does not exist.
            BrokerUnavailable: no broker answers at the start; later outages are ridden out.
            ConfigurationError: the table of an inbox does not exist.
        """
        self.metrics.show_build(loop=type(asyncio.get_running_loop()).__module__.partition(".")[0])
        try:
            registry = await register(self._broker, self._contracts())
            await self._announce(registry)
            async with AsyncExitStack() as stack:
                producer = await self._broker.producer()
                stack.push_async_callback(producer.close)
                executor = self._executor
                if executor is None:
                    executor = ThreadPoolExecutor(self._options.threads, thread_name_prefix="choreo-handler")
                    stack.callback(executor.shutdown, wait=False, cancel_futures=True)
                inboxes = {
                    service.name: self._recorder(service, service.inbox, executor)
                    for service in self.services
                    if service.inbox is not None
                }
                for inbox in inboxes.values():
                    await inbox.open(lambda: self._is_stopping)
                self._workers = tuple(
                    self._worker(service, registry, producer, executor, inboxes.get(service.name))
                    for service in self.services
                )
                async with asyncio.TaskGroup() as tasks, _background(inbox.clean_up() for inbox in inboxes.values()):
                    for service, worker in zip(self.services, self._workers, strict=True):
                        if self._is_stopping:
                            worker.stop()
                        tasks.create_task(worker.run(), name=f"step/{service.name}")
        finally:
            self._workers = ()
            self._ended.set()

    async def stop(self) -> None:
        """Take no more records, let handlers end (or cancel them after a while), commit, leave, and return then.

        Called before ``run``, it makes ``run`` end at once, and does not wait for it.
        """
        self._is_stopping = True
        if not self._workers:
            return
        for worker in self._workers:
            worker.stop()
        await self._ended.wait()

    def _contracts(self) -> list[Saga]:
        found = {key: saga for service in self.services for key, saga in service.contracts.items()}
        return [found[key] for key in sorted(found)]

    async def _announce(self, registry: Registry) -> None:
        """Nothing is decided by it, so that a service that may not do it works all the same."""
        try:
            await announce(self._broker, registry, self._announcements())
        except BrokerUnavailable:
            raise
        except BrokerError as error:
            logger.warning("what runs here is not announced, so that `choreo explain` cannot tell: %s", error)

    def _announcements(self) -> list[Announcement]:
        return [announcement(each.name, each.group, self._hosted[each.name]) for each in self.services]

    def _recorder(self, service: Service, inbox: Inbox, executor: Executor) -> Recorder:
        slots = self._inbox_slots.setdefault(id(inbox), Slots(inbox.concurrency))
        return Recorder(
            inbox,
            slots,
            service.group,
            executor=executor,
            clock=self._clock,
            random=self._random,
            metrics=self.metrics,
        )

    def _worker(
        self,
        service: Service,
        registry: Registry,
        producer: Producer,
        executor: Executor,
        inbox: Recorder | None,
    ) -> Worker:
        clock, random, metrics, options = self._clock, self._random, self.metrics, self._options
        hosted = self._hosted[service.name]
        publisher = Publisher(producer, service.source, clock=clock, random=random, metrics=metrics)
        tracers = Tracers(
            service.tracers,
            service.name,
            service.group,
            executor=executor,
            clock=clock,
            metrics=metrics,
            timeout_s=options.observer_timeout_s,
        )
        sagas = {saga for saga, _ in service.contracts}
        outcome_hooks = OutcomeHooks(service.outcome_hooks, tracers, sagas, executor, metrics, inbox)
        performer = Performer(
            hosted,
            Attempts(clock, random, executor),
            publisher,
            DeadLetters(publisher, service.name, metrics),
            clock=clock,
            random=random,
            metrics=metrics,
            tracers=tracers,
            outcome_hooks=outcome_hooks,
            error_handlers=ErrorHandlers(service.error_handlers, executor, metrics),
            unheld=Unheld(
                registry,
                service.name,
                tuple(service.contracts.values()),
                {(saga, step) for saga, _, step in hosted},
                clock,
            ),
            park_limit_s=options.park_limit_s,
            inbox=inbox,
        )
        routes = Routes(hosted.values(), outcome_hooks.lanes_by_saga)
        return Worker(service, routes, performer, self._broker, clock=clock, metrics=metrics, options=options)


@asynccontextmanager
async def _background(works: Iterable[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Let them go on while the block runs."""
    tasks = [asyncio.create_task(work, name="inbox/clean-up") for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def _overlaps(services: Iterable[Service], hosted: Mapping[str, HostedSteps]) -> list[str]:
    problems = []
    owners: dict[tuple[str, str], str] = {}
    contracts: dict[tuple[str, int], str] = {}
    for service in services:
        for saga, _, step in hosted[service.name]:
            owner = owners.setdefault((saga, step), service.name)
            if owner != service.name:
                problems.append(
                    f"step {step!r} of saga {saga!r} is in services {owner!r} and {service.name!r}; keep one"
                )
        for (saga, version), contract in service.contracts.items():
            if contracts.setdefault((saga, version), contract.content_hash) != contract.content_hash:
                problems.append(f"service {service.name!r} holds saga {saga!r} version {version} with another content")
    return problems
