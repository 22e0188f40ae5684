"""One run: sagas are placed over a time while faults happen; then it must become quiet, and everything is audited."""

from __future__ import annotations

import asyncio
import os
import platform
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from choreo.broker.kafka import KafkaBroker
from choreo.broker.registry import ensure_saga_topics, register
from choreo.client import Client
from choreo.errors import BrokerError
from services.demo.audit import audit, read_databases
from services.demo.log import read_histories
from services.order import ORDER
from tests.chaos.cluster import Cluster
from tests.chaos.faults import SESSION_S, Faults
from tests.chaos.system import System, Watch, lag, replay_topic_into_itself, services_with_inbox
from tests.e2e.order_system import Planned, draw_plan

STARTS_AT_ONCE = 50
BROKER_OPTIONS = (
    f"?session_timeout_ms={SESSION_S * 1_000:.0f}&heartbeat_interval_ms=1000&rebalance_timeout_ms=15000"
    "&request_timeout_ms=5000&stall_timeout_ms=15000"
)

# Without an inbox these may happen: two replicas ran one trigger at once (docs/guarantees.md, "Not").
WEAKER = re.compile(r"was compensated before \w+, which built on it$")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for.

    Attributes:
        sagas: how many, a fifth of which are to fail.
        over_s: in how many seconds they are placed; the faults happen within that time.
        kills: of services and saga-logs; other faults in proportion.
        nodes: of the Kafka cluster, 1 or 3.
        end_s: how long after the last fault every saga must have ended.
        quiet_s: when nothing was said for so long, nothing more will be: a lost member has been replaced by then.
    """

    sagas: int
    over_s: float
    kills: int
    seed: int
    nodes: int = 1
    partitions: int = 6
    end_s: float = 300.0
    quiet_s: float = 12.0


class Report(msgspec.Struct, kw_only=True):
    """What came out. ``violations`` is what must never happen; empty in a good run."""

    settings: Settings
    machine: str
    inbox: dict[str, bool]
    began: str
    placed_s: float = 0.0
    ended_s: float = 0.0
    took_s: float = 0.0
    outcomes: dict[str, int] = {}
    turned: int = 0
    effects: dict[str, int] = {}
    records: dict[str, int] = {}
    dead_letters: int = 0
    faults: dict[str, int] = {}
    faults_at_work: dict[str, int] = {}
    answers_lost_bytes: int = 0
    steps_said_again: int = 0
    outcomes_said_again: int = 0
    died: list[str] = []
    replayed: int = 0
    lag: dict[str, int] = {}
    weaker: list[str] = []
    violations: list[str] = []


async def run(settings: Settings, directory: Path, say: Callable[[str], None] = print) -> Report:
    """Run it, in a directory of its own."""
    began = time.monotonic()
    report = Report(
        settings=settings,
        machine=f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}",
        inbox=services_with_inbox(),
        began=time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
    )
    rng = random.Random(settings.seed)
    plan = draw_plan(rng, settings.sagas)
    async with Cluster(settings.nodes) as cluster:
        url = f"kafka://{cluster.address}{BROKER_OPTIONS}"
        broker = await KafkaBroker.open(url)
        try:
            await ensure_saga_topics(broker, [ORDER], partitions=settings.partitions)
            await register(broker, [ORDER])
            system = System(directory, url)
            with system.processes:
                try:
                    await _under_faults(settings, rng, plan, broker, system, cluster, report, say)
                finally:
                    system.thaw_all()
        finally:
            await broker.close()
        report.answers_lost_bytes = sum(proxy.answers_lost for proxy in cluster.proxies)
    report.took_s = time.monotonic() - began
    return report


async def _under_faults(
    settings: Settings,
    rng: random.Random,
    plan: list[Planned],
    broker: KafkaBroker,
    system: System,
    cluster: Cluster,
    report: Report,
    say: Callable[[str], None],
) -> None:
    system.start(*system.first)
    await asyncio.to_thread(system.processes.await_ready)
    watch = Watch(broker)
    watching = asyncio.create_task(watch.run(), name="watch")
    placed: set[str] = set()
    faults = Faults(rng, system, cluster, lambda: len(placed) - len(watch.outcomes))
    began = time.monotonic()
    telling = asyncio.create_task(_tell(say, settings, placed, watch, faults, began), name="tell")
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_place(broker, plan, placed, over_s=settings.over_s))
            tasks.create_task(faults.run(kills=settings.kills, over_s=settings.over_s))
        report.placed_s = time.monotonic() - began
        say(f"all is placed and mended after {report.placed_s:.0f} s; waiting for the rest")
        await _until_quiet(settings, plan, watch, system)
        report.ended_s = watch.outcome_at - began
        await _judge(settings, plan, broker, system, watch, report)
        before, said_again = (report.outcomes, report.effects), (report.steps_said_again, report.outcomes_said_again)
        report.replayed = await replay_topic_into_itself(broker)
        say(f"{report.replayed} records were appended once more; waiting until nothing comes of it")
        await _until_quiet(settings, plan, watch, system)
        replayed_from = len(report.violations)
        await _judge(settings, plan, broker, system, watch, report)
        if (report.outcomes, report.effects) != before:
            report.violations.append(f"the replayed topic made {report.outcomes, report.effects} of {before}")
        report.steps_said_again, report.outcomes_said_again = said_again
        known = set(report.violations[:replayed_from])
        fresh = [each for each in report.violations[replayed_from:] if each not in known]
        report.violations[replayed_from:] = [f"after the topic was replayed: {each}" for each in fresh]
        report.faults, report.faults_at_work = dict(faults.fired), dict(faults.mattered)
        report.died = system.died
    finally:
        for task in (watching, telling):
            task.cancel()
        await asyncio.gather(watching, telling, return_exceptions=True)


async def _place(broker: KafkaBroker, plan: list[Planned], placed: set[str], *, over_s: float) -> None:
    """Start all sagas, each as often as it takes: the id makes the call idempotent."""
    limit = asyncio.Semaphore(STARTS_AT_ONCE)

    async def start(planned: Planned) -> None:
        async with limit:
            while True:
                try:
                    await client.start(ORDER, planned.order, id=planned.saga_id)
                except BrokerError:
                    await asyncio.sleep(1)
                else:
                    placed.add(planned.saga_id)
                    return

    async with Client(broker, source="chaos") as client, asyncio.TaskGroup() as tasks:
        for planned in plan:
            tasks.create_task(start(planned))
            await asyncio.sleep(over_s / len(plan))


async def _until_quiet(settings: Settings, plan: list[Planned], watch: Watch, system: System) -> None:
    """Until every saga has its outcome, and nothing has been said for a while; or until that takes too long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settings.end_s
    watch.changed_at = loop.time()
    while loop.time() < deadline:
        await asyncio.sleep(0.5)
        system.restart_the_dead()
        if len(watch.outcomes) >= len(plan) and loop.time() - watch.changed_at > settings.quiet_s:
            return


async def _judge(
    settings: Settings, plan: list[Planned], broker: KafkaBroker, system: System, watch: Watch, report: Report
) -> None:
    directory = Path(system.processes.environment["PAYMENT_DATABASE"]).parent
    histories = await read_histories(broker)
    findings = audit(histories, read_databases(directory), saga_ids={planned.saga_id for planned in plan})
    with_inbox = all(report.inbox.values())
    report.weaker = [problem for problem in findings.problems if not with_inbox and WEAKER.search(problem)]
    report.violations += [problem for problem in findings.problems if problem not in report.weaker]
    report.outcomes, report.effects = dict(findings.outcomes), dict(findings.effects)
    report.steps_said_again, report.outcomes_said_again = findings.steps_run_again, findings.outcomes_repeated
    report.turned = sum(
        watch.outcomes.get(planned.saga_id) != ("completed" if planned.fails_at is None else "compensated")
        for planned in plan
    )
    report.records, report.dead_letters = dict(sorted(watch.records.items())), watch.dead_letters
    if watch.dead_letters:
        report.violations.append(f"{watch.dead_letters} dead letters, though nobody wrote a bad record")
    groups = [f"choreo.{name}" for name in system.first]
    report.lag = await _lag_when_committed(broker, groups)
    if any(report.lag.values()):
        report.violations.append(f"the log is quiet, and these lag: {report.lag}")


async def _lag_when_committed(broker: KafkaBroker, groups: list[str]) -> dict[str, int]:
    for _ in range(20):
        found = await lag(broker, groups)
        if not any(found.values()):
            break
        await asyncio.sleep(1)
    return found


async def _tell(
    say: Callable[[str], None], settings: Settings, placed: set[str], watch: Watch, faults: Faults, began: float
) -> None:
    while True:
        await asyncio.sleep(15)
        counts: Counter[str] = Counter(watch.outcomes.values())
        say(
            f"{time.monotonic() - began:.0f} s: {len(placed)} of {settings.sagas} placed, "
            f"{len(watch.outcomes)} ended ({dict(counts)}), {faults.fired.total()} faults"
        )
