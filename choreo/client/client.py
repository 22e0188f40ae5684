"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from random import Random, SystemRandom
from types import TracebackType
from typing import Literal, Self

import msgspec

from choreo.broker import open_broker
from choreo.broker.port import Broker, Producer
from choreo.broker.registry import Registry, ensure_saga_topics, register
from choreo.broker.topics import partition_keys, saga_topic
from choreo.client.outcome import completed_or_raise, within
from choreo.client.schedule import StartTime, schedule_of
from choreo.client.watch import OutcomeWatch
from choreo.clock import Clock, SystemClock
from choreo.contract.saga import Saga
from choreo.core.commands import record_of
from choreo.core.state import Decision, SagaState
from choreo.core.status import SagaStatus, status_of
from choreo.errors import ConfigurationError, DefinitionError, NotStuck, SagaNotFound
from choreo.ids import SAGA_ID_PATTERN, is_partition_key, is_saga_id, start_hash
from choreo.messages.codec import encode, encode_user_value
from choreo.messages.headers import CONTENT_TYPES, JSON, make_headers
from choreo.messages.records import (
    NO_START,
    CancelRequested,
    OperatorActed,
    Record,
    SagaCompensated,
    SagaCompleted,
    SagaPaused,
    SagaResumed,
    SagaStarted,
    SignalReceived,
    TypePaused,
    TypeResumed,
)
from choreo.saga_log.replay import fold_saga

WAIT_S_DEFAULT = 300.0

Act = Literal["retry", "skip", "resolve"]


class Client:
    """Starts sagas and follows them. One for a program; safe to share between tasks.

        async with Client("kafka://localhost:9092") as client:
            outcome = await client.run(ORDER, {"item": "kite", "amount": 30})

    Args:
        broker: a broker URL, or an open broker, which then stays open when the client closes.
        source: names this program in the records' ``ce_source``.
        content_type: what the sagas it starts are written in, ``application/json`` or ``application/msgpack``.
        exception_modules: modules that may be imported to rebuild a service's exception as the cause of ``SagaFailed``;
            from modules that are imported already it is rebuilt anyway.
    """

    def __init__(
        self,
        broker: str | Broker,
        *,
        source: str = "client",
        content_type: str = JSON,
        exception_modules: Collection[str] = (),
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        if content_type not in CONTENT_TYPES:
            raise ConfigurationError(f"content_type {content_type!r} must be one of {', '.join(CONTENT_TYPES)}")
        self._url = broker if isinstance(broker, str) else broker.url
        self._given = None if isinstance(broker, str) else broker
        self._source = f"/choreo/{source}"
        self._content_type = content_type
        self._exception_modules = frozenset(exception_modules)
        self._clock = clock or SystemClock()
        self._random = random or SystemRandom()
        self._open: tuple[Broker, Producer] | None = None
        self._registry: Registry | None = None
        self._prepared: set[tuple[str, int]] = set()
        self._watches: dict[str, OutcomeWatch] = {}
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        broker = self._given or await open_broker(self._url)
        self._open = (broker, await broker.producer())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the broker. Sagas go on without us."""
        if self._open is None:
            return
        broker, producer = self._open
        self._open = None
        for watch in self._watches.values():
            await watch.close()
        self._watches.clear()
        await producer.close()
        if self._given is None:
            await broker.close()

    async def start(
        self,
        saga: Saga,
        input: object,  # noqa: A002 - the user's word
        *,
        id: str | None = None,  # noqa: A002 - the user's word
        at: StartTime | None = None,
        traceparent: str | None = None,
    ) -> str:
        """Start a saga and return its id as soon as the log has it.

        Args:
            saga: its contract.
            input: anything msgspec can encode; the first step's handlers get it.
            id: an id of the caller's choice makes the call idempotent: the same id and input again is the same saga.
                The same id with another input is refused by the saga-log, which ``run`` and ``wait`` report.
            at: when the saga is to begin: a ``datetime`` with a time zone, or a delay ("90s", "1h30m", a
                ``timedelta``) from when the log has the start. Until then it is ``scheduled``, and can be cancelled;
                its deadline counts from there. The time is part of what makes a start the same: the same id and input
                at another time is refused. The log must keep the start until then: see the topic's retention.
            traceparent: W3C trace context to carry through the saga.

        Raises:
            Unencodable: the input has no encoding or is too large.
            ConfigurationError: the id has characters that ids must not have, or ``at`` is no such time.
            DefinitionError: the contract's version is registered with other content.
            BrokerUnavailable: the log cannot be reached; whether the saga has started is unknown. Repeating the call
                with an id of your own is safe.
        """
        record = self._start_record(saga, input, id, at)
        await self._prepare(saga)
        await self._send(record, traceparent)
        return record.saga_id

    async def run(
        self,
        saga: Saga,
        input: object,  # noqa: A002 - the user's word
        *,
        id: str | None = None,  # noqa: A002 - the user's word
        timeout_s: float | None = WAIT_S_DEFAULT,
        traceparent: str | None = None,
    ) -> SagaCompleted:
        """Start a saga and wait for its outcome. Subscribes before it starts, so no outcome is missed.

        Raises:
            SagaFailed: the saga was compensated; the error says at which step, and why. It is raised from the service's
                own exception where its class is known here.
            StartRefused: the id is taken by a saga with another input.
            WaitTimeout: the wait has ended; the saga goes on, the error has its id. ``None`` waits for ever.
        """
        record = self._start_record(saga, input, id)
        await self._prepare(saga)
        watch = await self._watch(saga)
        with watch.expect(record.saga_id, record.start) as outcome:
            await self._send(record, traceparent)
            return completed_or_raise(await within(outcome, record.saga_id, timeout_s), self._exception_modules)

    async def wait(self, saga: Saga, saga_id: str, *, timeout_s: float | None = WAIT_S_DEFAULT) -> SagaCompleted:
        """Wait for the outcome of a saga that was started earlier, by whomever.

        Raises:
            SagaNotFound: nothing is known of it.
            SagaFailed, WaitTimeout: as ``run``.
        """
        watch = await self._watch(saga)
        with watch.expect(saga_id, None) as outcome:
            contract, state = await self._fold(saga, saga_id)
            if state.outcome is not None:
                completed = state.outcome.kind == "completed"
                told = record_of(contract, state, Decision("complete" if completed else "compensated"))
                assert isinstance(told, (SagaCompleted, SagaCompensated)), "an outcome is one of the two"
                return completed_or_raise(told, self._exception_modules)
            return completed_or_raise(await within(outcome, saga_id, timeout_s), self._exception_modules)

    async def status(self, saga: Saga, saga_id: str) -> SagaStatus:
        """Where a saga is: a fold of the log as it is now, so it answers while steps run and after restarts.

        Reads the partition that the saga is in; a saga-log's HTTP port answers the same from its store.

        Raises:
            SagaNotFound: nothing is known of it (any more).
        """
        return status_of(*await self._fold(saga, saga_id))

    async def cancel(self, saga: Saga, saga_id: str, *, reason: str = "", requested_by: str = "") -> None:
        """Ask for a saga to be undone. Returns when the log has the request.

        Once the outcome is decided a cancel is refused, which the log then says. A cancel that is in the log before
        the start is kept for it.
        """
        self._check_id(saga_id)
        record = CancelRequested(
            saga=saga.name,
            version=saga.version,
            saga_id=saga_id,
            start=NO_START,
            request=self._request(),
            reason=reason,
            requested_by=requested_by,
        )
        await self._prepare(saga)
        await self._send(record, None)

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
        """Tell a saga that something outside of it has happened. Returns when the log has it.

        It counts for every step that waits for this name, now or later; a signal that is in the log before the start
        is kept for it. The first of its name counts, a second one is noted.

        Args:
            saga: its contract.
            name: which signal: an ``await_signal`` of the contract.
            payload: anything msgspec can encode; the handlers of the steps that waited get it.
            id: of the caller's choice ("delivery-4711", at most 64 characters): the same id again is the same signal.
            reason, sent_by: for the history.

        Raises:
            DefinitionError: no step of the contract waits for such a signal; the message lists those there are.
            Unencodable: the payload has no encoding or is too large, or the id is too long.
        """
        self._check_id(saga_id)
        if name not in saga.signals:
            known = ", ".join(saga.signals) or "none"
            problem = f"no step of saga {saga.name!r} version {saga.version} waits for it; they wait for {known}"
            raise DefinitionError(f"signal {name!r}", (problem,))
        record = SignalReceived(
            saga=saga.name,
            version=saga.version,
            saga_id=saga_id,
            start=NO_START,
            request=self._request() if id is None else id,
            name=name,
            payload=msgspec.Raw(encode_user_value(payload, content_type=self._content_type)),
            reason=reason,
            sent_by=sent_by,
        )
        await self._prepare(saga)
        await self._send(record, None)

    async def pause(self, saga: Saga, saga_id: str | None = None, *, operator: str, reason: str) -> None:
        """Hold a saga, or all sagas of this name, until ``resume``. Returns when the log has it.

        What is in flight finishes; meanwhile no further step begins, and no command, round, time-out or outcome is
        decided. Deadlines stand still. A cancel is kept, and takes effect when the saga goes on.

        Args:
            saga: its contract, in any version.
            saga_id: one saga; by default all of this name, those too that start later.
            operator, reason: who and why, for the audit.

        Raises:
            ConfigurationError: the id has characters that ids must not have.
        """
        await self._set_pause(saga, saga_id, SagaPaused, TypePaused, operator=operator, reason=reason)

    async def resume(self, saga: Saga, saga_id: str | None = None, *, operator: str, reason: str) -> None:
        """Let a saga, or all sagas of this name, go on. A saga goes on when neither it nor its type is paused.

        Arguments and errors as for ``pause``.
        """
        await self._set_pause(saga, saga_id, SagaResumed, TypeResumed, operator=operator, reason=reason)

    async def act(self, saga: Saga, saga_id: str, act: Act, step: str, *, operator: str, reason: str) -> None:
        """Answer a stuck saga as an operator. Returns when the log has the act.

        On the way back a saga is stuck at a compensation, past its pivot at a step that has failed in all its rounds.

        Args:
            saga: its contract.
            saga_id: the stuck saga.
            act: ``retry`` the compensation, or the step; ``skip`` it, as undone or done by hand; ``resolve`` the saga:
                all that is left is undone, or done, by hand, and the saga ends.
            step: the step at which it is stuck.
            operator, reason: who and why, for the audit.

        Raises:
            SagaNotFound: nothing is known of the saga.
            NotStuck: the saga is not stuck at that step (any more).
        """
        _, state = await self._fold(saga, saga_id)
        await self.act_on(saga, state, act, step, operator=operator, reason=reason)

    async def act_on(self, saga: Saga, state: SagaState, act: Act, step: str, *, operator: str, reason: str) -> None:
        """As ``act``, for who has the saga's state already: from a store, say.

        A state that is a little old does no harm: the act names the generation that was stuck, and on another one it
        changes nothing (rule 16).
        """
        saga_id = state.saga_id
        stuck = {key: instance for key, instance in state.instances.items() if instance.stuck}
        key = max((key for key in stuck if key[0] == step), key=lambda key: key[1], default=None)
        if key is None:
            steps = ", ".join(sorted({name for name, _ in stuck})) or "none"
            raise NotStuck(
                saga_id,
                f"saga {saga_id!r} is not stuck at step {step!r}: it is {state.phase.value}, stuck steps are: {steps}",
            )
        start, wire_round = state.wire_round(key[1])
        record = OperatorActed(
            saga=saga.name,
            version=state.version,
            saga_id=saga_id,
            start=start,
            step=step,
            round=wire_round,
            act=act,
            generation=stuck[key].generation,
            request=self._request(),
            operator=operator,
            reason=reason,
        )
        await self._prepare(saga)
        await self._send(record, None)

    async def _set_pause(
        self,
        saga: Saga,
        saga_id: str | None,
        of_saga: type[SagaPaused | SagaResumed],
        of_type: type[TypePaused | TypeResumed],
        *,
        operator: str,
        reason: str,
    ) -> None:
        about = {"saga": saga.name, "version": saga.version, "start": NO_START}
        request = self._request()
        await self._prepare(saga)
        if saga_id is not None:
            self._check_id(saga_id)
            await self._send(
                of_saga(**about, saga_id=saga_id, request=request, operator=operator, reason=reason),  # type: ignore[arg-type]
                None,
            )
            return
        broker, _ = self._connection()
        for key in await partition_keys(broker, saga_topic(saga.name)):
            await self._send(
                of_type(**about, saga_id=key, request=request, operator=operator, reason=reason),  # type: ignore[arg-type]
                None,
            )

    def _start_record(
        self, saga: Saga, user_input: object, saga_id: str | None, at: StartTime | None = None
    ) -> SagaStarted:
        if saga_id is None:
            saga_id = f"{self._clock.now_ms():012x}{self._random.getrandbits(80):020x}"
        self._check_id(saga_id)
        encoded = encode_user_value(user_input, content_type=self._content_type)
        schedule = schedule_of(at)
        return SagaStarted(
            saga=saga.name,
            version=saga.version,
            saga_id=saga_id,
            start=start_hash(encoded, **schedule),
            contract_hash=saga.content_hash,
            request=self._request(),
            saga_deadline_ms=saga.deadline_ms,
            input=msgspec.Raw(encoded),
            **schedule,
        )

    def _check_id(self, saga_id: str) -> None:
        if is_partition_key(saga_id):
            raise ConfigurationError(f"saga id {saga_id!r} is one of choreo's own; choose another prefix")
        if not is_saga_id(saga_id):
            raise ConfigurationError(f"saga id {saga_id!r} must match {SAGA_ID_PATTERN}")

    def _request(self) -> str:
        return f"{self._random.getrandbits(64):016x}"

    async def _send(self, record: Record, traceparent: str | None) -> None:
        _, producer = self._connection()
        headers = make_headers(
            record,
            source=self._source,
            content_type=self._content_type,
            traceparent=None if traceparent is None else traceparent.encode(),
        )
        value = encode(record, content_type=self._content_type)
        await producer.send(saga_topic(record.saga), key=record.saga_id, value=value, headers=headers)

    async def _prepare(self, saga: Saga) -> None:
        """Topics and contract are there: once for each contract."""
        key = (saga.name, saga.version)
        if key in self._prepared:
            return
        async with self._lock:
            if key in self._prepared:
                return
            broker, _ = self._connection()
            if saga_topic(saga.name) not in await broker.topics():
                await ensure_saga_topics(broker, [saga])
            self._registry = await register(broker, [saga])
            self._prepared.add(key)

    async def _watch(self, saga: Saga) -> OutcomeWatch:
        broker, _ = self._connection()
        watch = self._watches.get(saga.name)
        if watch is not None and watch.is_following:
            return watch
        async with self._lock:
            watch = self._watches.get(saga.name)
            if watch is None:
                watch = self._watches[saga.name] = OutcomeWatch(broker, saga.name)
            await watch.subscribe()
        return watch

    async def _fold(self, saga: Saga, saga_id: str) -> tuple[Saga, SagaState]:
        self._check_id(saga_id)
        broker, _ = self._connection()
        if self._registry is None:
            self._registry = Registry(broker)
        found = await fold_saga(broker, saga, saga_id, registry=self._registry)
        if found is None:
            raise SagaNotFound(
                saga_id,
                f"no saga {saga_id!r} in topic {saga_topic(saga.name)!r} at {broker.url}: "
                "it was never started there, or the topic's retention has deleted it",
            )
        return found

    def _connection(self) -> tuple[Broker, Producer]:
        if self._open is None:
            raise ConfigurationError("the client is not open; use it in an 'async with' block")
        return self._open
