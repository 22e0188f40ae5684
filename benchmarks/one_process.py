"""Services, saga-log and load in one process, over any broker.

``python -m benchmarks.one_process URL DIRECTORY RESULTS SECONDS QUICK`` appends a JSON line for each measurement.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from benchmarks.load import Load
from benchmarks.measure import measure, orders
from benchmarks.order_saga import (
    GOOD,
    LONG,
    ORDER,
    inventory,
    long_inventory,
    long_payment,
    long_shipping,
    payment,
    shipping,
)
from benchmarks.over_kafka import MANY, ONE, PARTITIONS, STEADY, VERY_MANY
from benchmarks.report import Report
from choreo import Client, Saga, Service, open_broker
from choreo.broker.registry import ensure_saga_topics
from choreo.cli.process import collect_rarely, run_async
from choreo.messages.headers import JSON, MSGPACK
from choreo.saga_log import SagaLog
from choreo.step import StepRuntime
from choreo.store import open_store

Plan = tuple[tuple[str, Saga, tuple[Service, ...], str, int, tuple[Load, ...]], ...]

_SHORT = (inventory, payment, shipping)
QUICK: Plan = (("3 steps", ORDER, _SHORT, JSON, 0, (ONE, MANY)),)
FULL: Plan = (
    ("3 steps", ORDER, _SHORT, JSON, 0, (ONE, STEADY, MANY, VERY_MANY)),
    ("3 steps, 10 % fail at the last", ORDER, _SHORT, JSON, 10, (MANY,)),
    ("3 steps, all fail at the last", ORDER, _SHORT, JSON, 1, (MANY,)),
    ("3 steps, MessagePack", ORDER, _SHORT, MSGPACK, 0, (MANY,)),
    ("12 steps", LONG, (long_inventory, long_payment, long_shipping), JSON, 0, (ONE, MANY)),
)
FULL_KAFKA: Plan = (("3 steps", ORDER, _SHORT, JSON, 0, (ONE, MANY)),)


async def measure_one_process(report: Report, url: str, directory: Path, seconds: float) -> None:
    """The plan, each saga with parts of its own."""
    embedded = url.startswith("sqlite")
    layout = "embedded, one process, durable" if embedded else "Kafka, one process"
    collect_rarely()
    plan = QUICK if report.quick else FULL if embedded else FULL_KAFKA
    for index, (name, saga, services, content_type, failing_share, loads) in enumerate(plan):
        with report.section(f"{layout}: {name}"):
            began = time.perf_counter()
            broker = await open_broker(f"{url}.{index}" if embedded else url)
            store = await open_store(f"sqlite:///{directory}/one-process-{os.getpid()}-{index}.db")
            await ensure_saga_topics(broker, [saga], partitions=PARTITIONS)
            steps, saga_log = StepRuntime(services, broker), SagaLog(broker, store, [saga])
            async with asyncio.TaskGroup() as tasks, Client(broker, content_type=content_type) as client:
                tasks.create_task(steps.run(), name="steps")
                tasks.create_task(saga_log.run(), name="saga-log")
                await client.run(saga, GOOD, timeout_s=60)
                if not index:
                    first_ms = round((time.perf_counter() - began) * 1_000)
                    report.say({"benchmark": "first saga after start", "layout": layout, "of": name, "ms": first_ms})
                operation = orders(client, saga, failing_share)
                for load in loads:
                    await measure(report, name, layout, operation, load, seconds=seconds, usage=dict, own_name="all")
                await steps.stop()
                await saga_log.stop()
            await store.close()
            await broker.close()


if __name__ == "__main__":
    _, url, directory, results, seconds, quick = sys.argv
    report = Report(Path(results), quick=quick == "quick", fresh=False)
    run_async(lambda: measure_one_process(report, url, Path(directory), float(seconds)))
    sys.exit(bool(report.failed))
