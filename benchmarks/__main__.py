"""``make bench``: choreo beside the wire limit, over a real Kafka, a process for each service; then embedded.

A JSON line a result.

    python -m benchmarks                      a local Kafka is started for the run
    python -m benchmarks --broker kafka://…   another broker
    python -m benchmarks --seconds 20         longer measurements
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import platform
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks.load import Measured, closed_loop
from benchmarks.order_saga import ORDER, Order
from benchmarks.processes import Processes
from benchmarks.report import WARMUP_S, ratio_of, result_of, say
from benchmarks.wire_limit import HOPS, Chain
from choreo import Client, SagaFailed, open_broker
from choreo.broker.registry import ensure_saga_topics

PARTITIONS = 4
IN_FLIGHT = (1, 200)
FAILING_SHARE = 10  # one in so many


def main() -> int:
    """Run the benchmark and print a line for each result."""
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--broker", help="kafka://host:port; a local Kafka is started if left out")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement")
    options = parser.parse_args()
    with ExitStack() as stack:
        url = options.broker
        if url is None:
            from deploy.kafka.local_kafka import LocalKafka

            kafka = stack.enter_context(LocalKafka())
            url = kafka.url
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="choreo-bench-")))
        say({"benchmark": "machine", "python": platform.python_version(), "system": platform.platform(terse=True)})
        wire = asyncio.run(measure_wire_limit(url, options.seconds, logs))
        asyncio.run(measure_choreo(url, options.seconds, logs, wire))
        embedded = ["-m", "benchmarks.embedded", str(logs), str(options.seconds)]
        subprocess.run([sys.executable, *embedded], check=True)
    return 0


async def measure_wire_limit(url: str, seconds: float, logs: Path) -> dict[int, Measured]:
    """The relay chain, at each number in flight."""
    bootstrap = url.removeprefix("kafka://").partition("?")[0]
    run = secrets.token_hex(4)
    topics = [f"bench.wire.{run}.{hop}" for hop in range(HOPS + 1)]
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, PARTITIONS, 1) for topic in topics])
    await admin.close()
    results: dict[int, Measured] = {}
    with Processes(logs) as processes:
        for hop, (source, target) in enumerate(itertools.pairwise(topics)):
            group = f"bench.wire.{run}.{hop}"
            processes.start(f"relay-{hop}", "-m", "benchmarks.wire_limit", bootstrap, source, target, group)
        chain = Chain(bootstrap, topics[0], topics[-1])
        await chain.open()
        try:
            await chain.send_through()
            for in_flight in IN_FLIGHT:
                results[in_flight] = await measure("wire limit", chain.send_through, in_flight, seconds, processes)
        finally:
            await chain.close()
    return results


async def measure_choreo(url: str, seconds: float, logs: Path, wire: dict[int, Measured]) -> None:
    """The order saga, at each number in flight, all completing and one in ten failing at its last step."""
    async with AsyncExitStack() as stack:
        broker = await open_broker(url)
        stack.push_async_callback(broker.close)
        await ensure_saga_topics(broker, [ORDER], partitions=PARTITIONS)
        processes = stack.enter_context(Processes(logs))
        for service in ("inventory", "payment", "shipping"):
            processes.start(
                service, "-m", "choreo.cli", "run", f"benchmarks.order_saga:{service}", "--broker", url,
                "--log-level", "warning",
            )  # fmt: skip
        processes.start(
            "saga-log", "-m", "choreo.cli", "saga-log", "benchmarks.order_saga:ORDER", "--broker", url,
            "--store", f"sqlite:///{logs / 'saga-log.db'}", "--log-level", "warning",
        )  # fmt: skip
        client = await stack.enter_async_context(Client(broker))
        completing = Order(item="kite", quantity=1, amount=30)
        failing = Order(item="kite", quantity=1, amount=30, fails=True)
        turn = itertools.count(1)

        async def complete() -> None:
            await client.run(ORDER, completing)

        async def mixed() -> None:
            if next(turn) % FAILING_SHARE:
                await client.run(ORDER, completing)
                return
            try:
                await client.run(ORDER, failing)
            except SagaFailed:
                return

        await client.run(ORDER, completing, timeout_s=60)
        for in_flight in IN_FLIGHT:
            measured = await measure("order saga", complete, in_flight, seconds, processes)
            say(ratio_of(measured, wire[in_flight]))
        await measure("order saga, 10 % failing at step 3", mixed, IN_FLIGHT[-1], seconds, processes)


async def measure(
    name: str, operation: Callable[[], Awaitable[object]], in_flight: int, seconds: float, processes: Processes
) -> Measured:
    """One closed loop, said as a JSON line, CPU seconds per operation of each process included."""
    before = processes.usage()
    measured = await closed_loop(operation, in_flight=in_flight, seconds=seconds, warmup_s=WARMUP_S)
    processes.check()
    after = processes.usage()
    usage = {process: ((before[process].cpu_s, 0.0), (used.cpu_s, used.rss_mib)) for process, used in after.items()}
    say(result_of(name, measured, usage))
    return measured


if __name__ == "__main__":
    sys.exit(main())
