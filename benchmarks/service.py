"""What a record costs a step service by itself, over a broker that costs nothing: those for it, and those that are not.

``python -m benchmarks.service RESULTS SAGAS`` appends a JSON line. The service has the second of three steps, so that
of the five records of a saga one is for it.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.free_broker import FreeBroker
from benchmarks.growth import PARTITIONS, RECORDS, TOPIC, Fixed, History
from benchmarks.order_saga import ORDER, payment
from benchmarks.report import Report
from choreo import open_broker
from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Message
from choreo.broker.registry import ensure_saga_topics
from choreo.cli.process import collect_rarely, run_async
from choreo.step import StepRuntime

ROUNDS = 5
"""The cheapest of so many counts: what else the machine does only adds."""

FOR_IT = 1  # of each saga's records: the second one


async def measure(sagas: int) -> tuple[float, float]:
    """CPU microseconds for a record that is for the service, and for one that is not."""
    history = History(PARTITIONS)
    offsets = itertools.count()
    rounds = []
    for _ in range(ROUNDS):
        waves = list(history.waves(sagas))
        of_others = [wave for number, wave in enumerate(waves) if number % RECORDS != FOR_IT]
        rounds.append((in_order(of_others, offsets), in_order(waves[FOR_IT::RECORDS], offsets)))
    dropped: list[float] = []
    handled: list[float] = []

    def batches() -> Iterator[Sequence[Message]]:
        for of_others, for_it in rounds:
            for costs, chosen in ((dropped, of_others), (handled, for_it)):
                began = time.process_time()
                yield from chosen
                costs.append((time.process_time() - began) / sum(map(len, chosen)) * 1e6)

    inner = await open_broker("memory://service")
    assert isinstance(inner, MemoryBroker)
    await ensure_saga_topics(inner, [ORDER], partitions=PARTITIONS)
    broker = FreeBroker(inner, TOPIC, PARTITIONS, batches())
    runtime = StepRuntime(payment, broker, clock=Fixed())
    collect_rarely()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runtime.run())
        await broker.exhausted.wait()
        await runtime.stop()
    assert broker.appended == ROUNDS * sagas, "every trigger was answered"
    await broker.close()
    return min(handled), min(dropped)


def in_order(waves: Iterable[Sequence[Message]], offsets: Iterator[int]) -> list[list[Message]]:
    """The waves partition by partition, as they are polled, with offsets in that order."""
    return [
        [
            msgspec.structs.replace(message, offset=next(offsets))
            for message in sorted(wave, key=lambda message: message.partition)
        ]
        for wave in waves
    ]


async def _main(results: Path, sagas: int) -> None:
    handled, dropped = await measure(sagas)
    Report(results, quick=False, fresh=False).say(
        {
            "benchmark": "service by itself",
            "sagas": sagas,
            "cpu_us_handled": round(handled, 1),
            "cpu_us_dropped": round(dropped, 1),
        }
    )


if __name__ == "__main__":
    run_async(lambda: _main(Path(sys.argv[1]), int(sys.argv[2])))
