"""Records written by hand: a broker in memory, two contracts, and a pen that says what clients and services would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from msgspec import Raw

from choreo import ids
from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Appended, Message, Producer, TopicPartition
from choreo.broker.registry import ensure_saga_topics, register
from choreo.broker.topics import saga_topic
from choreo.contract import Saga, Step
from choreo.messages.codec import decode, encode, encode_user_value
from choreo.messages.headers import JSON, make_headers
from choreo.messages.records import (
    AnyRecord,
    CancelRequested,
    CompensationFailed,
    Failure,
    Record,
    SagaStarted,
    StepCompensated,
    StepCompleted,
    StepFailed,
)

LINE = Saga(
    "order",
    Step("a", compensation="undo_a"),
    Step("b", compensation="undo_b"),
    Step("c", compensation="undo_c", deadline="1m"),
)
DIAMOND = Saga(
    "diamond",
    Step("a", compensation="undo_a"),
    Step("b", compensation="undo_b", after="a"),
    Step("c", compensation="undo_c", after="a"),
    Step("d", compensation="undo_d", after=("b", "c")),
)

T0 = 1_700_000_000_000
_names: Iterator[int] = count()


class FakeClock:
    """Time that stands still until it is told to go on. ``sleep`` gives way to others and takes no time."""

    def __init__(self, now_ms: int = T0) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1_000

    async def sleep(self, seconds: float) -> None:
        import asyncio

        await asyncio.sleep(min(seconds, 0.001))


class Pen:
    """Writes records of one contract as clients and step services would."""

    def __init__(self, broker: MemoryBroker, producer: Producer, contract: Saga, content_type: str = JSON) -> None:
        self.broker, self.producer, self.contract, self.content_type = broker, producer, contract, content_type

    def value(self, value: Any) -> Raw:
        return Raw(encode_user_value(value, content_type=self.content_type))

    def about(self, saga_id: str, user_input: Any = 1) -> dict[str, Any]:
        return {
            "saga": self.contract.name,
            "version": self.contract.version,
            "saga_id": saga_id,
            "start": ids.input_hash(bytes(self.value(user_input))),
        }

    async def write(self, record: Record) -> Appended:
        return await self.raw(
            record.saga_id,
            encode(record, content_type=self.content_type),
            make_headers(record, source="/test", content_type=self.content_type, traceparent=b"00-ab-cd-01"),
        )

    async def raw(self, key: str, value: bytes, headers: Any = ()) -> Appended:
        return await self.producer.send(saga_topic(self.contract.name), key=key, value=value, headers=headers)

    async def start(self, saga_id: str, user_input: Any = 1, *, request: str = "r1", **changes: Any) -> Appended:
        fields: dict[str, Any] = {
            **self.about(saga_id, user_input),
            "contract_hash": self.contract.content_hash,
            "request": request,
            "saga_deadline_ms": self.contract.deadline_ms,
            "input": self.value(user_input),
        }
        return await self.write(SagaStarted(**(fields | changes)))

    async def completed(
        self, saga_id: str, step: str, effect: Any = None, *, run: str = "run", saga_round: int = 1, **changes: Any
    ) -> Appended:
        fields: dict[str, Any] = {
            **self.about(saga_id),
            "step": step,
            "round": saga_round,
            "run": run,
            "due_ms": 2**50,
            "saga_due_ms": 2**50,
            "input": self.value(1),
            "effects": {},
            "effect": self.value(effect if effect is not None else f"{step}-done"),
        }
        return await self.write(StepCompleted(**(fields | changes)))

    async def failed(self, saga_id: str, step: str, *, run: str = "run", effect: Any = "none") -> Appended:
        failure = Failure(kind="rejected", code="no", message="no")
        about = self.about(saga_id)
        return await self.write(StepFailed(**about, step=step, failure=failure, run=run, effect=effect))

    async def compensated(self, saga_id: str, step: str, *, generation: int = 1, **fields: Any) -> Appended:
        about = self.about(saga_id)
        return await self.write(
            StepCompensated(**about, step=step, generation=generation, run="undo", undone=True, **fields)
        )

    async def compensation_failed(self, saga_id: str, step: str, *, generation: int = 1) -> Appended:
        failure = Failure(kind="crashed", message="the bank is closed")
        about = self.about(saga_id)
        return await self.write(
            CompensationFailed(**about, step=step, generation=generation, failure=failure, run="undo")
        )

    async def cancel(self, saga_id: str, *, request: str = "c1") -> Appended:
        return await self.write(CancelRequested(**self.about(saga_id), request=request, reason="enough"))

    async def whole_line(self, saga_id: str) -> None:
        """Everything that clients and services say in a saga that completes."""
        await self.start(saga_id)
        for step in self.contract.steps:
            await self.completed(saga_id, step.name)

    async def log(self, topic: str | None = None) -> list[Message]:
        return await messages_of(self.broker, topic or saga_topic(self.contract.name))

    async def records(self, saga_id: str | None = None) -> list[AnyRecord]:
        """All records of the log, or of one saga, in order within each partition."""
        return [
            decode(message.key, message.value, message.headers)
            for message in await self.log()
            if saga_id is None or message.key == saga_id.encode()
        ]


async def messages_of(broker: MemoryBroker, topic: str) -> list[Message]:
    """All messages of a topic, partition after partition."""
    found: list[Message] = []
    for number in range(await broker.partitions(topic)):
        tp = TopicPartition(topic, number)
        first, end = (await broker.offsets([tp]))[tp]
        reader = await broker.reader()
        reader.seek(tp, first)
        while reader.position(tp) < end:
            found += await reader.poll(timeout_s=0.1)
        await reader.close()
    return found


async def a_broker(
    *contracts: Saga, partitions: int = 1, now_ms: Callable[[], int] | None = None, options: str = ""
) -> MemoryBroker:
    """A new log in memory with the topics of these contracts; they are registered."""
    broker = await MemoryBroker.open(f"memory://by-hand-{next(_names)}{options}", now_ms=now_ms)
    await ensure_saga_topics(broker, contracts, partitions=partitions)
    await register(broker, contracts)
    return broker


async def a_pen(broker: MemoryBroker, contract: Saga, content_type: str = JSON) -> Pen:
    return Pen(broker, await broker.producer(), contract, content_type)
