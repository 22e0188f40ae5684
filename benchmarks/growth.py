"""What grows with the number of sagas: the saga-log by itself, over a broker that costs nothing, its store in a file.

``python -m benchmarks.growth WHAT RESULTS DIRECTORY [NUMBER …]`` appends JSON lines. WHAT is one of

- ``finished``: CPU time for each saga while the store fills with finished ones, looked at when it has NUMBER;
- ``unfinished``: the same, and resident memory, with NUMBER sagas that never finish; one NUMBER for a process;
- ``partitions``: CPU time for each saga over NUMBER partitions; one NUMBER for a process;
- ``replay``: records decoded and folded a second, on one core.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.free_broker import FreeBroker
from benchmarks.order_saga import GOOD, ORDER
from benchmarks.processes import usage_of
from benchmarks.report import Report
from choreo import open_broker
from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Message
from choreo.broker.registry import ensure_saga_topics
from choreo.broker.topics import saga_topic
from choreo.cli.process import collect_rarely, run_async
from choreo.core import SagaState, fold
from choreo.ids import input_hash
from choreo.messages.codec import encode
from choreo.messages.headers import JSON, make_headers
from choreo.messages.records import Record, SagaCompleted, SagaStarted, StepCompleted
from choreo.saga_log import SagaLog
from choreo.saga_log.intake import Refused, read_entry
from choreo.store import open_store

TOPIC = saga_topic(ORDER.name)
PARTITIONS = 4
WAVE = 40  # sagas that run side by side
LOOK_AT = 2_000  # sagas whose cost is taken at each look
START_MS = 1_700_000_000_000
RECORDS = 2 + len(ORDER.steps)


class History:
    """Makes the records of sagas, in waves: first the starts of all, then their first steps, …"""

    def __init__(self, partitions: int) -> None:
        self._offsets = [0] * partitions
        self._input = msgspec.json.encode(GOOD)
        self._start = input_hash(self._input)
        self._count = 0

    def waves(self, sagas: int, records: int = RECORDS) -> Iterator[Sequence[Message]]:
        """So many sagas, each up to so many records (of ``RECORDS``)."""
        for first in range(0, sagas, WAVE):
            ids = [f"{self._count + index:032x}" for index in range(min(WAVE, sagas - first))]
            self._count += len(ids)
            for number in range(records):
                yield [self._message(saga_id, number) for saga_id in ids]

    def _message(self, saga_id: str, number: int) -> Message:
        record = self._record(saga_id, number)
        partition = int(saga_id[-4:], 16) % len(self._offsets)
        offset = self._offsets[partition]
        self._offsets[partition] += 1
        source = "/choreo/benchmark"
        return Message(
            TOPIC,
            partition,
            offset,
            START_MS + offset,
            saga_id.encode(),
            encode(record),
            make_headers(record, source=source, content_type=JSON),
        )

    def _record(self, saga_id: str, number: int) -> Record:
        common = {"saga": ORDER.name, "version": ORDER.version, "saga_id": saga_id, "start": self._start}
        user_input = msgspec.Raw(self._input)
        effect = msgspec.Raw(b'{"reference":"%s/%s","amount":1}' % (saga_id.encode(), self._start.encode()))
        steps = [step.name for step in ORDER.steps]
        if number == 0:
            return SagaStarted(
                **common,  # type: ignore[arg-type]
                contract_hash=ORDER.content_hash,
                request=saga_id[:16],
                saga_deadline_ms=ORDER.deadline_ms,
                input=user_input,
            )
        if number <= len(steps):
            due_ms = START_MS + 10 * ORDER.deadline_ms
            return StepCompleted(
                **common,  # type: ignore[arg-type]
                step=steps[number - 1],
                run=saga_id[:16],
                due_ms=due_ms,
                saga_due_ms=due_ms,
                input=user_input,
                effects=dict.fromkeys(steps[: number - 1], effect),
                effect=effect,
            )
        return SagaCompleted(**common, result=effect, effects=dict.fromkeys(steps, effect))  # type: ignore[arg-type]


class Fixed:
    """A clock at the time of the records, so that no timer fires."""

    def now_ms(self) -> int:
        return START_MS

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Run:
    """A saga-log at work on made-up records."""

    def __init__(self, directory: Path, partitions: int) -> None:
        self._directory = directory
        self._partitions = partitions
        self.history = History(partitions)

    async def feed(self, *plan: tuple[int, int, bool]) -> list[float]:
        """Fold sagas. Each part of the plan is how many, up to which record, and whether their cost is asked for.

        Returns:
            CPU microseconds for each saga of those parts.
        """
        costs: list[float] = []
        broker: FreeBroker

        def batches() -> Iterator[Sequence[Message]]:
            for sagas, records, is_asked in plan:
                began = time.process_time() - broker.making_s
                yield from self.history.waves(sagas, records)
                if is_asked:
                    costs.append((time.process_time() - broker.making_s - began) / sagas * 1e6)

        inner = await open_broker("memory://growth")
        assert isinstance(inner, MemoryBroker)
        await ensure_saga_topics(inner, [ORDER], partitions=self._partitions)
        broker = FreeBroker(inner, TOPIC, self._partitions, batches())
        store = await open_store(f"sqlite:///{self._directory}/growth-{os.getpid()}.db")
        saga_log = SagaLog(broker, store, [ORDER], clock=Fixed())
        collect_rarely()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(saga_log.run())
            await broker.exhausted.wait()
            self.rss_mib = usage_of(os.getpid()).rss_mib
            await saga_log.stop()
        await store.close()
        await broker.close()
        return costs


async def finished(report: Report, directory: Path, numbers: Sequence[int]) -> None:
    """Cost of a saga when the store has so many finished ones."""
    plan: list[tuple[int, int, bool]] = []
    had = 0
    for number in numbers:
        plan += [(max(0, number - had - LOOK_AT), RECORDS, False), (LOOK_AT, RECORDS, True)]
        had = max(number, had + LOOK_AT)
    costs = await Run(directory, PARTITIONS).feed(*plan)
    for number, cost in zip(numbers, costs, strict=True):
        report.say({"benchmark": "growth: finished sagas", "number": number, "cpu_us_each": round(cost, 1)})


async def unfinished(report: Report, directory: Path, numbers: Sequence[int]) -> None:
    """Memory for each saga in its second step, and what another one costs beside them."""
    (number,) = numbers
    run = Run(directory, PARTITIONS)
    # What a process needs in any case, its cache of resting sagas included.
    await run.feed((8_000, RECORDS, False))
    gc.collect()
    before_mib = usage_of(os.getpid()).rss_mib
    run = Run(directory / "unfinished", PARTITIONS)
    (directory / "unfinished").mkdir(exist_ok=True)
    (cost,) = await run.feed((8_000, RECORDS, False), (number, 2, False), (LOOK_AT, RECORDS, True))
    report.say(
        {
            "benchmark": "growth: unfinished sagas",
            "number": number,
            "cpu_us_each": round(cost, 1),
            "rss_mib": round(run.rss_mib, 1),
            "bytes_each": round((run.rss_mib - before_mib) * 2**20 / number),
        }
    )


async def partitions(report: Report, directory: Path, numbers: Sequence[int]) -> None:
    """Cost of a saga over so many partitions."""
    (number,) = numbers
    _, cost = await Run(directory, number).feed((LOOK_AT, RECORDS, True), (2 * LOOK_AT, RECORDS, True))
    report.say({"benchmark": "growth: partitions", "number": number, "cpu_us_each": round(cost, 1)})


async def replay(report: Report, directory: Path, numbers: Sequence[int]) -> None:
    """Records a second through decode and fold, with nothing else; ended sagas are let go, as a replay does."""
    del directory
    (sagas,) = numbers
    collect_rarely()
    seconds, records = 0.0, 0
    states: dict[str, SagaState] = {}
    for messages in History(1).waves(sagas):  # made one wave after the other, so that they are fresh, as read ones are
        began = time.process_time()
        for message in messages:
            entry = read_entry(message, ORDER.name)
            assert not isinstance(entry, Refused)
            saga_id = entry.record.saga_id
            state = fold(ORDER, states.get(saga_id) or SagaState(saga_id), entry).state
            if state.finished_ms:
                del states[saga_id]
            else:
                states[saga_id] = state
        seconds += time.process_time() - began
        records += len(messages)
    assert not states
    report.say({"benchmark": "replay", "records": records, "per_second": round(records / seconds)})


if __name__ == "__main__":
    _, what, results, directory, *numbers = sys.argv
    measured = {"finished": finished, "unfinished": unfinished, "partitions": partitions, "replay": replay}[what]
    run_async(lambda: measured(Report(Path(results), quick=False, fresh=False), Path(directory), [*map(int, numbers)]))
