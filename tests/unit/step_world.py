"""A log in memory, and step services that run over it: what the tests of the step runtime are made in."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, NamedTuple, TypeVar

import msgspec

from choreo import ids
from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Appended, Message, TopicPartition
from choreo.broker.registry import ensure_saga_topics
from choreo.broker.topics import dead_letter_topic, saga_topic
from choreo.contract import Saga, Step
from choreo.errors import Undecodable
from choreo.messages.codec import decode, encode
from choreo.messages.headers import JSON, make_headers
from choreo.messages.records import (
    Compensate,
    Execute,
    Failure,
    Record,
    SagaStarted,
    StepCompleted,
)
from choreo.step import Options, Service, StepRuntime
from choreo.step.job import StepJob

T = TypeVar("T")

DEADLINE_S = 30.0  # generous: only a test that hangs reaches it

ORDER = Saga(
    "order",
    Step("reserve_stock", compensation="release_stock"),
    Step("charge_card", compensation="refund_card", compensation_retries=0),
    Step("send_receipt"),
)

QUICK = Options(poll_timeout_s=0.02, commit_interval_s=0.02, drain_timeout_s=5, shutdown_timeout_s=5)

_numbers = itertools.count()


class Entry(NamedTuple):
    """A record in the log."""

    message: Message
    record: Record


class World:
    """Topics with one partition each, so that the whole log is one order, and clients that write to them."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.content_type = JSON
        self.now_ms: int | None = None  # set, it is the broker's clock

    async def send(self, record: Record, *, source: str = "/test", **headers: bytes) -> Appended:
        """Append a record, with more headers or others than it would have."""
        traceparent = headers.pop("traceparent", None)
        made = make_headers(record, source=source, content_type=self.content_type, traceparent=traceparent)
        return await self.send_raw(
            record.saga_id,
            encode(record, content_type=self.content_type),
            tuple((name, headers.get(name, value)) for name, value in made),
            saga=record.saga,
        )

    async def send_raw(
        self, key: str, value: bytes, headers: tuple[tuple[str, bytes], ...], saga: str = "order"
    ) -> Appended:
        producer = await self.broker.producer()
        return await producer.send(saga_topic(saga), key=key, value=value, headers=headers)

    async def start(self, saga_id: str = "s-1", *, order: Any = None, **changes: Any) -> Appended:
        """A client starts a saga."""
        return await self.send(started(saga_id, order=order, content_type=self.content_type, **changes))

    async def log(self, saga: str = "order") -> list[Entry]:
        """All of a saga's topic; bytes that are no record are left out."""
        entries = []
        for message in await self._read(saga_topic(saga)):
            try:
                entries.append(Entry(message, decode(message.key, message.value, message.headers)))
            except Undecodable:
                continue
        return entries

    async def dead_letters(self, saga: str = "order") -> list[Message]:
        return await self._read(dead_letter_topic(saga))

    async def answers(self, kind: type[T] | tuple[type, ...], *, count: int = 1, saga: str = "order") -> list[T]:
        """Wait until services have written so many records of the kind."""

        async def found() -> list[T] | None:
            entries = await self.log(saga)
            wanted = [
                entry.record
                for entry in entries
                if isinstance(entry.record, kind) and entry.message.header("ce_source") != b"/test"
            ]
            return wanted if len(wanted) >= count else None  # type: ignore[return-value]

        return await eventually(found)

    async def answer(self, kind: type[T], *, saga: str = "order") -> T:
        """Wait for the first record of the kind that a service writes."""
        return (await self.answers(kind, saga=saga))[0]

    async def committed(self, group: str = "choreo.payment", saga: str = "order") -> int | None:
        tp = TopicPartition(saga_topic(saga), 0)
        places = await self.broker._log.committed(group, [tp])
        return places[tp].offset if tp in places else None

    async def end(self, saga: str = "order") -> int:
        tp = TopicPartition(saga_topic(saga), 0)
        return (await self.broker.offsets([tp]))[tp][1]

    async def _read(self, topic: str) -> list[Message]:
        tp = TopicPartition(topic, 0)
        _, end = (await self.broker.offsets([tp]))[tp]
        reader = await self.broker.reader()
        reader.seek(tp, 0)
        messages: list[Message] = []
        while reader.position(tp) < end:
            messages += await reader.poll(timeout_s=0)
        await reader.close()
        return messages


async def make_world(*sagas: Saga) -> World:
    """A new log with the topics of the sagas, ``ORDER`` by default."""
    broker = await MemoryBroker.open(f"memory://step-{next(_numbers)}")
    await ensure_saga_topics(broker, sagas or (ORDER,), partitions=1)
    return World(broker)


class Running:
    """A runtime at work."""

    def __init__(self, runtime: StepRuntime, task: asyncio.Task[None]) -> None:
        self.runtime = runtime
        self.task = task

    async def crash(self) -> None:
        """End it as the death of its process would: nothing is committed."""
        self.task.cancel()
        await asyncio.wait((self.task,))


@asynccontextmanager
async def running(
    world: World, *services: Service, options: Options = QUICK, **settings: Any
) -> AsyncIterator[Running]:
    """The services run in the block, and are stopped in order behind it."""
    runtime = StepRuntime(services, world.broker, random=Random(7), options=options, **settings)
    async with running_runtime(runtime) as handle:
        yield handle


@asynccontextmanager
async def running_runtime(runtime: StepRuntime) -> AsyncIterator[Running]:
    task = asyncio.create_task(runtime.run(), name="runtime")
    handle = Running(runtime, task)
    try:

        async def is_ready() -> bool:
            if task.done():
                task.result()
            return runtime.not_ready_because() is None

        await eventually(is_ready)
        yield handle
    finally:
        if not task.done():
            await runtime.stop()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.result()


async def eventually(question: Callable[[], Awaitable[T | None]]) -> T:
    """Ask until the answer is true, and return it."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if answer := await question():
                return answer
            await asyncio.sleep(0.005)


async def until(question: Callable[[], object]) -> None:
    """Wait until a plain condition holds."""

    async def ask() -> object:
        return question()

    await eventually(ask)


async def until_committed(world: World, *, up_to: int | None = None, saga: str = "order") -> None:
    """Wait until the service has committed that offset, or all there is."""

    async def is_committed() -> bool:
        end = await world.end(saga) if up_to is None else up_to
        return (await world.committed(saga=saga) or 0) >= end

    await eventually(is_committed)


def value(handle: Running, name: str, **labels: str) -> float | None:
    """The sum of a metric's samples with these labels; ``None`` if there are none."""
    found = [
        sample.value
        for metric in handle.runtime.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found) if found else None


def raw(value: object, content_type: str = JSON) -> msgspec.Raw:
    module = msgspec.json if content_type == JSON else msgspec.msgpack
    return msgspec.Raw(module.encode(value))


def started(
    saga_id: str = "s-1", *, order: Any = None, contract: Saga = ORDER, content_type: str = JSON, **changes: Any
) -> SagaStarted:
    encoded = raw({"amount": 10} if order is None else order, content_type)
    return SagaStarted(
        saga=contract.name,
        version=changes.pop("version", contract.version),
        saga_id=saga_id,
        start=ids.input_hash(bytes(encoded)),
        contract_hash=contract.content_hash,
        request="r",
        saga_deadline_ms=changes.pop("saga_deadline_ms", contract.deadline_ms),
        input=encoded,
        **changes,
    )


def of(saga_id: str = "s-1", step: str = "charge_card", saga_round: int = 1, version: int = 1) -> dict[str, Any]:
    """The fields that all records about a step have."""
    start = ids.input_hash(bytes(raw({"amount": 10})))
    return {
        "saga": "order",
        "version": version,
        "saga_id": saga_id,
        "start": start,
        "step": step,
        "round": saga_round,
    }


FAR_MS = 2**50


def completed(saga_id: str = "s-1", step: str = "reserve_stock", **changes: Any) -> StepCompleted:
    saga_round, version = changes.pop("round", 1), changes.pop("version", 1)
    fields: dict[str, Any] = {
        "run": "run-1",
        "due_ms": FAR_MS,
        "saga_due_ms": FAR_MS,
        "input": raw({"amount": 10}),
        "effects": {},
        "effect": raw({"reservation": "r-1"}),
    }
    return StepCompleted(**of(saga_id, step, saga_round, version), **{**fields, **changes})


def execute(saga_id: str = "s-1", step: str = "charge_card", **changes: Any) -> Execute:
    saga_round, version = changes.pop("round", 1), changes.pop("version", 1)
    fields: dict[str, Any] = {"saga_due_ms": FAR_MS, "input": raw({"amount": 10}), "effects": {}}
    return Execute(**of(saga_id, step, saga_round, version), **{**fields, **changes})


def compensate(saga_id: str = "s-1", step: str = "charge_card", **changes: Any) -> Compensate:
    saga_round, version = changes.pop("round", 1), changes.pop("version", 1)
    fields: dict[str, Any] = {
        "generation": 1,
        "deadline_ms": 900_000,
        "input": raw({"amount": 10}),
        "effects": {"reserve_stock": raw({"reservation": "r-1"})},
        "effect": raw({"charge": "c-1"}),
        "failure": Failure(kind="rejected", code="no_courier"),
    }
    return Compensate(**of(saga_id, step, saga_round, version), **{**fields, **changes})


def a_job(*, order: Any = None, due_at: float = 1e9) -> StepJob:
    """A step to run, for tests that need no log."""
    return StepJob(
        saga=ORDER,
        step=ORDER["charge_card"],
        saga_id="s-1",
        start="0" * 16,
        round=1,
        run="run",
        due_ms=FAR_MS,
        due_at=due_at,
        input=raw({"amount": 10} if order is None else order),
        effects={"reserve_stock": raw({"reservation": "r-1"})},
        content_type=JSON,
        traceparent=None,
        saga_due_ms=FAR_MS,
        is_fresh=True,
    )


def payment(step: Callable[..., Any] | None = None, undo: Callable[..., Any] | None = None) -> Service:
    """The service of the step charge_card."""
    service = Service("payment")
    service.step(ORDER, "charge_card")(step or (lambda: {"charge": "c-1"}))
    service.compensation(ORDER, "charge_card")(undo or (lambda: None))
    return service
