"""The embedded broker: services, saga-log and load in one process, over one durable SQLite file.

``python -m benchmarks.embedded DIRECTORY SECONDS`` prints a JSON line for each number in flight.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from benchmarks.load import closed_loop
from benchmarks.order_saga import ORDER, Order, inventory, payment, shipping
from benchmarks.processes import usage_of
from benchmarks.report import WARMUP_S, result_of, say
from choreo import Client, open_broker
from choreo.broker.registry import ensure_saga_topics
from choreo.cli.process import run_async
from choreo.saga_log import SagaLog
from choreo.step import StepRuntime
from choreo.store import open_store

PARTITIONS = 4
IN_FLIGHT = (1, 200)


async def measure_embedded(directory: Path, seconds: float) -> None:
    """The order saga over ``sqlite:///``, every acknowledged record fsynced."""
    began = time.perf_counter()
    broker = await open_broker(f"sqlite:///{directory}/embedded.db")
    store = await open_store(f"sqlite:///{directory}/embedded-states.db")
    await ensure_saga_topics(broker, [ORDER], partitions=PARTITIONS)
    steps = StepRuntime([inventory, payment, shipping], broker)
    saga_log = SagaLog(broker, store, [ORDER])
    order = Order(item="kite", quantity=1, amount=30)
    async with asyncio.TaskGroup() as tasks, Client(broker) as client:
        tasks.create_task(steps.run(), name="steps")
        tasks.create_task(saga_log.run(), name="saga-log")
        await client.run(ORDER, order, timeout_s=60)
        say({"benchmark": "embedded: first saga after start", "ms": round((time.perf_counter() - began) * 1_000, 1)})

        async def complete() -> None:
            await client.run(ORDER, order)

        for in_flight in IN_FLIGHT:
            before = usage_of_self()
            measured = await closed_loop(complete, in_flight=in_flight, seconds=seconds, warmup_s=WARMUP_S)
            usage = {"process": (before, usage_of_self())}
            say(result_of("order saga, embedded, one process", measured, usage))
        await steps.stop()
        await saga_log.stop()
    await store.close()
    await broker.close()


def usage_of_self() -> tuple[float, float]:
    """CPU seconds and resident MiB of this process."""
    usage = usage_of(os.getpid())
    return usage.cpu_s, usage.rss_mib


if __name__ == "__main__":
    run_async(lambda: measure_embedded(Path(sys.argv[1]), float(sys.argv[2])))
