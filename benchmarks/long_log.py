"""A replay of as many records as you like: ``choreo.saga_log.replay``, by which status is folded, with its bar.

``python -m benchmarks.long_log RESULTS RECORDS`` appends a JSON line. The log is made up while it is read: bytes and
headers as a broker delivers them, of sagas of five records, ``WAVE`` of them side by side. What making them costs is
measured apart and not counted; decoding, fold, and what a replay remembers are.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.free_broker import FreeBroker
from benchmarks.growth import RECORDS, START_MS, TOPIC, WAVE, History
from benchmarks.order_saga import ORDER
from benchmarks.report import Report
from choreo import open_broker
from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Message, Reader, TopicPartition
from choreo.broker.registry import Registry, ensure_saga_topics, register
from choreo.cli.bar import progress_bar
from choreo.cli.process import collect_rarely, run_async
from choreo.core import Phase
from choreo.saga_log.replay import Progress, replay

PER_WAVE = WAVE * RECORDS
SAYS_EVERY = 1_000_000


class LongLog(FreeBroker):
    """A topic of one partition with so many records, made when they are asked for."""

    def __init__(self, inner: MemoryBroker, records: int) -> None:
        """Take a broker for all other topics. ``records`` is rounded up to whole waves."""
        self.records = -(-records // PER_WAVE) * PER_WAVE
        super().__init__(inner, TOPIC, 1, iter(()))

    async def partitions(self, topic: str) -> int:
        return 1 if topic == TOPIC else await super().partitions(topic)

    async def offsets(self, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, tuple[int, int]]:
        if any(tp.topic == TOPIC for tp in tps):
            return dict.fromkeys(tps, (0, self.records))
        return await super().offsets(tps)

    async def reader(self) -> Reader:
        return _Reader(self, await super().reader())


class _Reader:
    """Reads the made-up topic, or with the inner broker's reader another one."""

    def __init__(self, log: LongLog, inner: Reader) -> None:
        self._log = log
        self._inner = inner
        self._position: int | None = None
        self._batches: Iterator[Sequence[Message]] = iter(())

    async def poll(self, *, timeout_s: float, records_max: int = 500) -> Sequence[Message]:
        if self._position is None:
            return await self._inner.poll(timeout_s=timeout_s, records_max=records_max)
        began = time.process_time()
        messages = next(self._batches)
        self._log.making_s += time.process_time() - began
        self._position += len(messages)
        return messages

    def worked_on(self, places: Sequence[tuple[TopicPartition, int]]) -> None:
        self._inner.worked_on(places)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        if tp.topic == TOPIC:
            first = offset // PER_WAVE
            self._position = first * PER_WAVE  # whoever seeks passes over what comes before
            self._batches = _waves(first, self._log.records // PER_WAVE)
        else:
            self._inner.seek(tp, offset)

    def position(self, tp: TopicPartition) -> int:
        return self._inner.position(tp) if self._position is None else self._position

    async def close(self) -> None:
        await self._inner.close()


def _waves(first: int, end: int) -> Iterator[Sequence[Message]]:
    """Waves of sagas, each of all their records: like those of ``History``, with another id in their bytes."""
    messages = [message for wave in History(1).waves(1) for message in wave]
    pattern = messages[0].key
    assert pattern is not None, "all records of sagas have keys"
    offset = first * PER_WAVE
    for count in range(first, end):
        batch: list[Message] = []
        ids = [b"%032x" % (count * WAVE + index + 1) for index in range(WAVE)]
        for message in messages:
            for saga_id in ids:
                headers = tuple((name, text.replace(pattern, saga_id)) for name, text in message.headers)
                value = message.value.replace(pattern, saga_id)
                batch.append(Message(TOPIC, 0, offset, START_MS + offset, saga_id, value, headers))
                offset += 1
        yield batch


async def measure(report: Report, records: int) -> None:
    """Replay so many records and say how fast, and in how much memory."""
    inner = await open_broker("memory://long-log")
    assert isinstance(inner, MemoryBroker)
    await ensure_saga_topics(inner, [ORDER], partitions=1)
    await register(inner, [ORDER])
    log = LongLog(inner, records)
    collect_rarely()
    began, said, completed = time.process_time(), 0, 0
    with progress_bar("replaying") as move:

        def moved(done: Progress) -> None:
            nonlocal said
            move(done)
            if done.records_read >= said + SAYS_EVERY:
                said = done.records_read
                report.progress(f"{said:,} records; {max_rss_mib()} MiB at most")

        folded = replay(log, ORDER.name, registry=Registry(log), on_progress=moved)
        async for state, _ in folded:
            completed += state.phase is Phase.COMPLETED
    seconds = time.process_time() - began - log.making_s
    assert folded.problems_total == 0
    assert completed - len(folded.repeated) == log.records // RECORDS
    report.say(
        {
            "benchmark": "long replay",
            "records": log.records,
            "sagas": completed,
            "cpu_s": round(seconds, 1),
            "per_second": round(log.records / seconds),
            "rss_mib_max": max_rss_mib(),
        }
    )
    await log.close()


def max_rss_mib() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1_024


if __name__ == "__main__":
    _, results, number = sys.argv
    run_async(lambda: measure(Report(Path(results), quick=False, fresh=False), int(number)))
