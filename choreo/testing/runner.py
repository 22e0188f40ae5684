"""Sagas in this process: the contracts, services and protocol as they are deployed, over a log in memory.

The runner runs the runtimes that are deployed: one ``StepRuntime`` for each service, one ``SagaLog``, one ``Client``.
What it brings is the surroundings: a log that is a list, time that jumps (``clock``), no threads (``inline``), random
numbers from a seed. So what holds here holds there; ``docs/adr/0006-…`` says why it is not a loop of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, ExitStack
from random import Random
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from choreo.broker.port import Message
from choreo.broker.registry import RETENTION_MS_DEFAULT, ensure_saga_topics
from choreo.client import Client
from choreo.client.client import Act
from choreo.client.schedule import StartTime
from choreo.clock import Clock, SystemClock
from choreo.contract.saga import Saga, with_children
from choreo.core.status import SagaStatus
from choreo.errors import ConfigurationError, DefinitionError, Undecodable, WaitTimeout
from choreo.messages.codec import decode
from choreo.messages.headers import JSON, read_route
from choreo.messages.records import (
    AnyRecord,
    OperatorActed,
    SagaCompensated,
    SagaCompleted,
    SagaStuck,
)
from choreo.observe.metrics import Metrics
from choreo.saga_log import SagaLog
from choreo.step import Options, Service, StepRuntime
from choreo.store.memory import MemoryStore
from choreo.testing.clock import VirtualClock, virtual_time
from choreo.testing.inline import InlineExecutor
from choreo.testing.log import FAR_S, Journal, JournalBroker
from choreo.testing.transaction import Transactions

Time = Literal["virtual", "real"]
"""Whether waits pass at once (``virtual``), or take as long as they say."""

SAGA_LOG = "saga-log"
STUCK_WAIT_S = 60.0
SETTLE_S = 1e-6  # time only passes where everything waits
REAL_POLL_S = 0.05


class Runner:
    """Runs services and their sagas in this process, for tests and small programs.

        async with Runner(inventory, payment, shipping) as runner:
            outcome = await runner.run(ORDER, {"item": "kite"})

    With virtual time, hours of backoff pass at once, on the whole event loop, while the runner is open; sync handlers
    are called in the loop's thread, one at a time. Equal seeds give equal histories.

    Args:
        services: all that run the steps of their contracts.
        time: ``virtual``, or ``real`` for handlers that have to do with the outside world.
        seed: of all that is drawn: ids, run ids, jitter.
        transaction: a SQLAlchemy engine or session factory, sync or async: all handlers of one saga that have a
            parameter annotated ``Connection``, ``Session``, ``AsyncConnection`` or ``AsyncSession`` work in one
            transaction. It is committed when the saga completes and rolled back when it is compensated.
        contracts: further ones: a saga whose steps are all sagas is no service's.
        allow_missing_steps: let sagas run whose steps are not all in the services, as if some service were down.
        content_type: what the sagas are written in.
        saga_tracers: are told of whole sagas, as those of a saga-log (``choreo.saga_log.tracers``).

    Attributes:
        clock: the time that all parts go by.
        metrics: what they count in.

    Raises:
        DefinitionError: a step has no handler in the services, or two; with all problems found.
    """

    def __init__(
        self,
        *services: Service,
        time: Time = "virtual",
        seed: int = 0,
        transaction: Any = None,
        contracts: Iterable[Saga] = (),
        allow_missing_steps: bool = False,
        content_type: str = JSON,
        saga_tracers: Iterable[object] = (),
    ) -> None:
        self.clock: Clock = SystemClock()
        self.metrics = Metrics()
        self._time = time
        self._seed = seed
        self._content_type = content_type
        self._saga_tracers = tuple(saga_tracers)
        self._transactions = None if transaction is None else Transactions(transaction)
        self._services = {
            service.name: service if self._transactions is None else self._transactions.bind(service)
            for service in services
        }
        self._contracts = _contracts_of(services, contracts)
        problems = [] if allow_missing_steps else _missing_steps(tuple(self._services.values()), self._contracts)
        if problems:
            raise DefinitionError("the set of services", tuple(problems))
        self._random = Random(f"{seed}/runner")  # noqa: S311  # to be repeated, not to be secret
        self._close = AsyncExitStack()
        self._journal: Journal | None = None
        self._parts: dict[str, _Part] = {}
        self._fault: asyncio.Future[None]
        self._patience: dict[str, list[asyncio.Timeout]] = {}
        self._broker: JournalBroker
        self._opened: Client | None = None

    async def __aenter__(self) -> Self:
        if self._journal is not None:
            raise ConfigurationError("the runner has been open already; make a new one")
        with ExitStack() as undo:
            if self._time == "virtual":
                self.clock = undo.enter_context(virtual_time())
            self._journal = Journal(self.clock.now_ms, self._appended)
            self._broker = JournalBroker(self._journal)
            self._fault = asyncio.get_running_loop().create_future()
            retention_ms = max([RETENTION_MS_DEFAULT, *(4 * saga.deadline_ms for saga in self._contracts.values())])
            await ensure_saga_topics(self._broker, self._contracts.values(), partitions=1, retention_ms=retention_ms)
            client = self._opened = Client(
                self._broker, content_type=self._content_type, clock=self.clock, random=self._random_of("client")
            )
            self._close.push(undo.pop_all())
        self._close.push_async_callback(self._broker.close)
        await self._close.enter_async_context(client)
        if self._transactions is not None:
            self._transactions.open(self.clock if isinstance(self.clock, VirtualClock) else None)
            self._close.push_async_callback(self._transactions.close)
        self._close.push_async_exit(self._end)
        await self.revive()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close.__aexit__(kind, error, trace)

    # What a client does

    async def run(
        self,
        saga: Saga,
        input: object,  # noqa: A002 - the user's word
        *,
        id: str | None = None,  # noqa: A002 - the user's word
        timeout_s: float | None = None,
    ) -> SagaCompleted:
        """Start a saga and wait for its outcome.

        Args:
            timeout_s: by the runner's clock; by default until there is an outcome, or the saga has been stuck for
                a minute.

        Raises:
            SagaFailed: the saga was compensated; the error says at which step, and why.
            StartRefused: the id is taken by a saga with another input.
            WaitTimeout: there is no outcome in time; the saga goes on, the error has its id.
            DefinitionError: the contract is none of the services'.
        """
        saga_id = id or self._draw_id()
        self._known(saga)
        return await self._outcome(saga_id, self._client.run(saga, input, id=saga_id, timeout_s=timeout_s))

    async def start(
        self,
        saga: Saga,
        input: object,  # noqa: A002 - the user's word
        *,
        id: str | None = None,  # noqa: A002 - the user's word
        at: StartTime | None = None,
    ) -> str:
        """Start a saga and return its id. See ``Client.start``; a time is one of the runner's clock."""
        self._known(saga)
        return await self._client.start(saga, input, id=id or self._draw_id(), at=at)

    async def wait(self, saga: Saga, saga_id: str, *, timeout_s: float | None = None) -> SagaCompleted:
        """Wait for the outcome of a saga that was started; as ``run``, and raises ``SagaNotFound``."""
        self._known(saga)
        return await self._outcome(saga_id, self._client.wait(saga, saga_id, timeout_s=timeout_s))

    async def status(self, saga: Saga, saga_id: str) -> SagaStatus:
        """Where the saga is. Raises ``SagaNotFound``."""
        return await self._client.status(saga, saga_id)

    async def cancel(self, saga: Saga, saga_id: str, *, reason: str = "", requested_by: str = "") -> None:
        """Ask for the saga to be undone. See ``Client.cancel``."""
        await self._client.cancel(saga, saga_id, reason=reason, requested_by=requested_by)

    async def signal(
        self,
        saga: Saga,
        saga_id: str,
        name: str,
        payload: object = None,
        *,
        id: str | None = None,  # noqa: A002 - the user's word
        reason: str = "",
        sent_by: str = "",
    ) -> None:
        """Tell the saga that something outside of it has happened. See ``Client.signal``."""
        await self._client.signal(saga, saga_id, name, payload, id=id, reason=reason, sent_by=sent_by)

    async def pause(self, saga: Saga, saga_id: str | None = None, *, operator: str = "test", reason: str = "") -> None:
        """Hold the saga, or all of its name. See ``Client.pause``."""
        await self._client.pause(saga, saga_id, operator=operator, reason=reason)

    async def resume(self, saga: Saga, saga_id: str | None = None, *, operator: str = "test", reason: str = "") -> None:
        """Let the saga, or all of its name, go on. See ``Client.resume``."""
        await self._client.resume(saga, saga_id, operator=operator, reason=reason)

    async def act(
        self, saga: Saga, saga_id: str, act: Act, step: str, *, operator: str = "test", reason: str = ""
    ) -> None:
        """Answer the stuck saga as an operator. See ``Client.act``."""
        await self._client.act(saga, saga_id, act, step, operator=operator, reason=reason)

    # What the log says

    def history(self, saga_id: str) -> list[AnyRecord]:
        """All records of a saga, in order."""
        found: list[AnyRecord] = []
        for message in self._open_journal().of_key(saga_id):
            try:
                found.append(decode(message.key, message.value, message.headers))
            except Undecodable:
                continue  # it is in the dead letters, for whoever looks there
        return found

    def messages(self) -> Sequence[Message]:
        """All that was appended, contracts and dead letters too, in order."""
        return tuple(self._open_journal().messages)

    # What breaks

    async def kill(self, *parts: str) -> None:
        """End services, by name, or ``saga-log``, as the death of their processes would; by default all of them.

        Handlers in flight are cancelled, and nothing of theirs is committed: whoever is revived does them again.
        """
        for name in parts or tuple(self._parts):
            part = self._parts.pop(name, None)
            if part is None:
                raise ConfigurationError(f"{name!r} is not running; running are {', '.join(self._parts) or 'none'}")
            part.task.cancel()
            await asyncio.wait((part.task,))

    async def revive(self, *parts: str) -> None:
        """Start services again, by name, or ``saga-log``; by default all that are not running."""
        everything = (SAGA_LOG, *self._services)
        for name in parts or tuple(name for name in everything if name not in self._parts):
            if name not in everything:
                raise ConfigurationError(f"{name!r} is no part of the runner; there are {', '.join(everything)}")
            if name in self._parts:
                raise ConfigurationError(f"{name!r} is running already")
            runtime = self._saga_log() if name == SAGA_LOG else self._step_runtime(self._services[name])
            task = asyncio.create_task(runtime.run(), name=f"runner/{name}")
            task.add_done_callback(self._part_ended)
            self._parts[name] = _Part(runtime, task)
            while runtime.not_ready_because() is not None and not task.done():  # noqa: ASYNC110  # nobody tells of it
                await asyncio.sleep(0)

    async def settle(self) -> None:
        """Wait until nothing more happens without the passing of time: all that can be done now is done.

        ``run`` and ``wait`` do so before they return, so outcome hooks have run by then. In real time nobody can
        tell, and it does nothing.
        """
        if isinstance(self.clock, VirtualClock):
            await self.clock.sleep(SETTLE_S)

    # Inside

    def _saga_log(self) -> SagaLog:
        return SagaLog(
            self._broker,
            MemoryStore(),
            tuple(self._contracts.values()),
            clock=self.clock,
            metrics=self.metrics,
            poll_timeout_s=self._poll_timeout_s,
            tracers=self._saga_tracers,
        )

    def _step_runtime(self, service: Service) -> StepRuntime:
        executor: Executor | None = InlineExecutor() if self._time == "virtual" else None  # a pool of its own
        return StepRuntime(
            service,
            self._broker,
            clock=self.clock,
            random=self._random_of(service.name),
            metrics=self.metrics,
            options=Options(poll_timeout_s=self._poll_timeout_s, commit_interval_s=0),
            executor=executor,
        )

    @property
    def _poll_timeout_s(self) -> float:
        return FAR_S if self._time == "virtual" else REAL_POLL_S

    async def _end(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is None and self._time == "virtual":
            await self.settle()
        elif error is None:
            for runtime, task in self._parts.values():
                if not task.done():
                    await runtime.stop()  # lets hooks and handlers end
        await self.kill()

    def _random_of(self, part: str) -> Random:
        """Numbers of its own for each part, so that what one draws changes nothing in another."""
        return Random(f"{self._seed}/{part}/{self._random.random()}")  # noqa: S311

    def _draw_id(self) -> str:
        return f"saga-{self._random.getrandbits(48):012x}"

    def _known(self, saga: Saga) -> None:
        held = self._contracts.get((saga.name, saga.version))
        if held is None:
            known = ", ".join(f"{name} version {version}" for name, version in self._contracts) or "none"
            raise DefinitionError(
                f"saga {saga.name!r} version {saga.version}", (f"no service of this runner runs it; there are {known}",)
            )

    async def _outcome(self, saga_id: str, waiting: Coroutine[Any, Any, SagaCompleted]) -> SagaCompleted:
        """Await it, and what ends with the saga; or say why it cannot come."""
        task = asyncio.create_task(waiting, name=f"runner/wait/{saga_id}")
        try:
            async with asyncio.timeout(None) as patience:
                self._patience.setdefault(saga_id, []).append(patience)
                if self._stuck(saga_id) is not None:
                    _be_patient(patience, STUCK_WAIT_S)
                await asyncio.wait((task, self._fault), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._fault.result()
            await self.settle()
            return await task
        except TimeoutError:
            stuck = self._stuck(saga_id)
            if not patience.expired() or stuck is None:
                raise
            raise WaitTimeout(
                saga_id,
                f"saga {saga_id!r} is stuck at step {stuck.step!r}, which could not be undone or done "
                f"({stuck.failure.message or stuck.failure.code or stuck.failure.kind}). It waits for an operator's "
                "act: Runner.act(saga, saga_id, 'retry' or 'skip' or 'resolve', step)",
            ) from None
        finally:
            self._patience[saga_id].remove(patience)
            task.cancel()
            await asyncio.wait((task,))
            if self._transactions is not None:
                await self._transactions.ended(saga_id)

    def _appended(self, message: Message) -> None:
        kind = read_route(message.headers).kind
        saga_id = (message.key or b"").decode("utf-8", "replace")
        if kind in (SagaStuck, OperatorActed):
            for patience in self._patience.get(saga_id, ()):
                _be_patient(patience, STUCK_WAIT_S if kind is SagaStuck else None)
        elif kind in (SagaCompleted, SagaCompensated) and self._transactions is not None:
            self._transactions.end(saga_id, completed=kind is SagaCompleted)

    def _stuck(self, saga_id: str) -> SagaStuck | None:
        """The last notice, if no operator has acted since."""
        said = [record for record in self.history(saga_id) if isinstance(record, SagaStuck | OperatorActed)]
        return said[-1] if said and isinstance(said[-1], SagaStuck) else None

    @property
    def _client(self) -> Client:
        if self._opened is None:
            raise ConfigurationError("the runner is not open; use it in an 'async with' block")
        return self._opened

    def _open_journal(self) -> Journal:
        if self._journal is None:
            raise ConfigurationError("the runner is not open; use it in an 'async with' block")
        return self._journal

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._fault.done():
            self._fault.set_exception(error)
            self._fault.exception()  # whoever waits next is told; where nobody does, it is no one's loss


class _Part(NamedTuple):
    """A runtime at work."""

    runtime: SagaLog | StepRuntime
    task: asyncio.Task[None]


def run_saga(
    saga: Saga,
    input: object,  # noqa: A002 - the user's word
    *,
    services: Iterable[Service],
    id: str | None = None,  # noqa: A002 - the user's word
    **options: Any,
) -> SagaCompleted:
    """``Runner.run`` for programs without an event loop: one saga, from its start to its outcome.

    Args:
        options: those of ``Runner``.

    Raises:
        SagaFailed, WaitTimeout, DefinitionError: as ``Runner.run``.
    """

    async def run() -> SagaCompleted:
        async with Runner(*services, **options) as runner:
            return await runner.run(saga, input, id=id)

    return asyncio.run(run())


def _contracts_of(services: Iterable[Service], more: Iterable[Saga]) -> dict[tuple[str, int], Saga]:
    held = [*(saga for service in services for saga in service.contracts.values()), *more]
    found = {(saga.name, saga.version): saga for saga in with_children(held)}
    return {key: found[key] for key in sorted(found)}


def _missing_steps(services: Sequence[Service], contracts: dict[tuple[str, int], Saga]) -> list[str]:
    StepRuntime(services, JournalBroker(Journal(lambda: 0, lambda _: None)))  # raises for steps in two of them
    hosted = {key for service in services for key in service.hosted()}
    return [
        f"step {step.name!r} of saga {saga.name!r} version {saga.version} has no handler in these services; "
        "give the service that runs it, or say allow_missing_steps=True"
        for saga in contracts.values()
        for step in saga.steps
        if step.child is None and (saga.name, saga.version, step.name) not in hosted
    ]


def _be_patient(patience: asyncio.Timeout, seconds: float | None) -> None:
    patience.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)
