"""The sagas over a real Kafka, a process for each service and one for the saga-log, beside the wire limit.

The relays of the wire limit run all the time, and before each measurement the same load goes through them: machines are
noisy, and two figures taken minutes apart make no ratio.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks.inbox_saga import ON_POSTGRESQL, ON_SQLITE
from benchmarks.load import Load, Measured
from benchmarks.measure import measure, orders
from benchmarks.order_saga import GOOD, LONG, ORDER
from benchmarks.processes import Processes, Usage, usage_of, usage_of_tree
from benchmarks.report import Report, ratio_of
from benchmarks.wire_limit import HOPS, Chain
from choreo import Client, Saga, open_broker
from choreo.broker.registry import ensure_saga_topics
from choreo.cli.process import collect_rarely
from choreo.messages.headers import JSON, MSGPACK

PARTITIONS = 4
PER_SERVICE = "Kafka, process per service"

ONE, STEADY, MANY, VERY_MANY = Load(1), Load(20, "a second"), Load(200), Load(1_000)


class Scenario(NamedTuple):
    """What runs, under which loads.

    Attributes:
        services: ``MODULE:NAME`` of the services of one process each.
        contract: the saga-log's argument.
        failing_share: one saga in so many fails at its last step; 0 for none.
        needs_postgresql: for the services' inboxes.
    """

    name: str
    saga: Saga
    services: tuple[str, ...]
    contract: str
    loads: tuple[Load, ...]
    content_type: str = JSON
    failing_share: int = 0
    needs_postgresql: bool = False


def _of(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"benchmarks.{module}:{name}" for name in names)


_SHORT = (_of("order_saga", "inventory", "payment", "shipping"), "benchmarks.order_saga:ORDER")
_LONG = (_of("order_saga", "long_inventory", "long_payment", "long_shipping"), "benchmarks.order_saga:LONG")
_INBOX = _of("inbox_saga", "inventory", "payment", "shipping")

QUICK = (
    Scenario("3 steps", ORDER, *_SHORT, (ONE, MANY)),
    Scenario("3 steps, all fail at the last", ORDER, *_SHORT, (MANY,), failing_share=1),
)
FULL = (
    Scenario("3 steps", ORDER, *_SHORT, (ONE, STEADY, MANY, VERY_MANY)),
    Scenario("3 steps, 10 % fail at the last", ORDER, *_SHORT, (MANY,), failing_share=10),
    Scenario("3 steps, all fail at the last", ORDER, *_SHORT, (ONE, MANY), failing_share=1),
    Scenario("3 steps, MessagePack", ORDER, *_SHORT, (ONE, MANY), MSGPACK),
    Scenario("3 steps, inbox in SQLite", ON_SQLITE, _INBOX, "benchmarks.inbox_saga:ON_SQLITE", (ONE, MANY)),
    Scenario(
        "3 steps, inbox in PostgreSQL",
        ON_POSTGRESQL,
        _INBOX,
        "benchmarks.inbox_saga:ON_POSTGRESQL",
        (ONE, MANY),
        needs_postgresql=True,
    ),
    Scenario("12 steps", LONG, *_LONG, (ONE, MANY)),
)


class WireLimit:
    """The relay chain, its processes and its ends."""

    def __init__(self, bootstrap: str, processes: Processes) -> None:
        run = secrets.token_hex(4)
        self._bootstrap = bootstrap
        self._topics = [f"bench.wire.{run}.{hop}" for hop in range(HOPS + 1)]
        self._processes = processes
        self._chain = Chain(bootstrap, self._topics[0], self._topics[-1])

    async def open(self) -> None:
        """Make topics, start relays, and see a first record through."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(topic, PARTITIONS, 1) for topic in self._topics])
        finally:
            await admin.close()
        for hop, (source, target) in enumerate(itertools.pairwise(self._topics)):
            module = ("-m", "benchmarks.wire_limit")
            self._processes.start(f"relay-{hop}", *module, self._bootstrap, source, target, f"{self._topics[0]}.{hop}")
        await self._chain.open()
        async with asyncio.timeout(60):
            await self._chain.send_through()

    async def measure(self, report: Report, load: Load, seconds: float, broker: Usage | int) -> Measured:
        """What the wire gives under a load."""
        return await measure(
            report,
            "wire limit",
            PER_SERVICE,
            self._chain.send_through,
            load,
            seconds=seconds,
            usage=lambda: with_broker(self._processes, broker),
        )

    async def close(self) -> None:
        await self._chain.close()


def with_broker(processes: Processes, broker: Usage | int, database_pid: int = 0) -> Mapping[str, Usage]:
    """The usage of the processes, and of the broker's and the database's if their pids are known (0: it is not)."""
    processes.check()
    used = dict(processes.usage())
    if isinstance(broker, int) and broker:
        used["broker"] = usage_of(broker)
    if database_pid:
        used["PostgreSQL"] = usage_of_tree(database_pid)
    return used


async def measure_over_kafka(
    report: Report, url: str, broker_pid: int, seconds: float, logs: Path, *, scenario: str = ""
) -> None:
    """The scenarios, each load after the same through the wire limit.

    Args:
        scenario: only those that have this in their name.
    """
    bootstrap = url.removeprefix("kafka://").partition("?")[0]
    collect_rarely()  # as any program that is meant to be quick
    async with AsyncExitStack() as stack:
        relays = stack.enter_context(Processes(logs))
        wire = WireLimit(bootstrap, relays)
        with report.section("the wire limit"):
            await wire.open()
            stack.push_async_callback(wire.close)
        for each in QUICK if report.quick else FULL:
            if scenario in each.name:
                with report.section(f"Kafka: {each.name}"):
                    await _measure_scenario(report, each, wire, url, broker_pid, seconds, logs)


async def _measure_scenario(
    report: Report, scenario: Scenario, wire: WireLimit, url: str, broker_pid: int, seconds: float, logs: Path
) -> None:
    async with AsyncExitStack() as stack:
        broker = await open_broker(url)
        stack.push_async_callback(broker.close)
        await ensure_saga_topics(broker, [scenario.saga], partitions=PARTITIONS)
        inbox, database_pid = str(logs), 0
        if scenario.needs_postgresql:
            from tests.local_postgres import LocalPostgres

            database = stack.enter_context(LocalPostgres(is_durable=True))
            inbox, database_pid = database.url, database.pid
        processes = stack.enter_context(Processes(logs))
        began = time.perf_counter()
        start(processes, scenario, url, logs, inbox)
        client = await stack.enter_async_context(Client(broker, content_type=scenario.content_type))
        await client.run(scenario.saga, GOOD, timeout_s=90)
        first_ms = round((time.perf_counter() - began) * 1_000)
        report.say({"benchmark": "first saga after start", "layout": PER_SERVICE, "of": scenario.name, "ms": first_ms})
        operation = orders(client, scenario.saga, scenario.failing_share)
        for load in scenario.loads:
            limit = await wire.measure(report, load, seconds, broker_pid)
            await measure(
                report,
                scenario.name,
                PER_SERVICE,
                operation,
                load,
                seconds=seconds,
                usage=lambda: with_broker(processes, broker_pid, database_pid),
                more=lambda measured, limit=limit: {"ratio_to_wire": ratio_of(measured, limit)},  # type: ignore[misc]
            )


def start(processes: Processes, scenario: Scenario, url: str, logs: Path, inbox: str) -> None:
    """A process for each service, and the saga-log's with its states in a file."""
    run = secrets.token_hex(3)
    env = {"CHOREO_BENCH_INBOX": inbox}
    quiet = ("--log-level", "error")
    for service in scenario.services:
        name = service.rpartition(":")[2]
        processes.start(name, "-m", "choreo.cli", "run", service, "--broker", url, *quiet, env=env)
    store = f"sqlite:///{logs}/saga-log-{run}.db"
    saga_log = ("-m", "choreo.cli", "saga-log", scenario.contract)
    processes.start("saga-log", *saga_log, "--broker", url, "--store", store, *quiet, env=env)
