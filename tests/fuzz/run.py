"""Malformed records among sagas that run: nothing crashes or stands still, each bad one is kept, each saga ends."""

from __future__ import annotations

import asyncio
import logging
import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from choreo import ids
from choreo.broker import open_broker
from choreo.broker.dead_letter import read_dead_letter
from choreo.broker.port import Broker, TopicPartition
from choreo.broker.registry import Registry, ensure_saga_topics
from choreo.broker.topics import dead_letter_topic, saga_topic
from choreo.client import Client
from choreo.client.dead_letters import Wanted, find
from choreo.errors import ChoreoError
from choreo.messages.codec import encode_user_value
from choreo.saga_log import SagaLog
from choreo.saga_log.check import check
from choreo.saga_log.replay import records, replay
from choreo.step import CompensationContext, Context, Options, Reject, Service, StepRuntime
from choreo.store import open_store
from choreo.store.inspection import open_inspection
from tests.fuzz.records import FUZZED, Fate, Fuzz, Running, Source

TOPIC = saga_topic("fuzzed")
AT_ONCE = 200
PARK_LIMIT_S = 1.0  # of the services; the saga-log keeps for ever
STILL_S = 60.0  # without progress for so long, a partition stands still
RUNNING_KEPT = 200  # at so many of the sagas that were started last a record may be aimed


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: so many malformed records among so many sagas."""

    records: int
    sagas: int
    seed: int
    partitions: int = 4


class Report(msgspec.Struct, kw_only=True):
    """What came out; ``faults`` is what must not be."""

    settings: Settings
    broker: str
    took_s: float = 0.0
    records: dict[str, int] = {}
    fates: dict[str, int] = {}
    dead_letters: int = 0
    either_kept: int = 0
    sagas_parked: int = 0
    outcomes: dict[str, int] = {}
    log_records: int = 0
    rss_mib_before: float = 0.0
    rss_mib_peak: float = 0.0
    faults: list[str] = []


class Appended(NamedTuple):
    """A malformed record in the log: its place (``3/4711``), and the beginning of its value."""

    place: str
    kind: str
    fate: Fate
    value: bytes


class InternalErrors(logging.Handler):
    """Collects what was logged with a traceback: a fault of choreo's own, whatever it was turned into."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.messages.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


class Effects:
    """What the handlers have done, by idempotency key: conditional on it, as services should be."""

    def __init__(self) -> None:
        self.state: dict[str, str] = {}

    def service(self) -> Service:
        service = Service("hands")
        for step in FUZZED.steps:
            self._bind(service, step.name)
        return service

    def _bind(self, service: Service, step: str) -> None:
        @service.step(FUZZED, step)
        async def do(order: Any, ctx: Context) -> str:
            if isinstance(order, dict) and order.get("fails_at") == step:
                raise Reject("as it was ordered")
            if self.state.setdefault(ctx.idempotency_key, "standing") == "undone":
                raise Reject("it was undone before")
            return ctx.idempotency_key

        @service.compensation(FUZZED, step)
        async def undo(ctx: CompensationContext) -> None:
            self.state[ctx.step_key] = "undone"


async def run(settings: Settings, broker_url: str, directory: Path, say: Callable[[str], None] = print) -> Report:
    """Run it. The saga-log's store is in the directory."""
    report = Report(settings=settings, broker=broker_url.partition(":")[0])
    internal = InternalErrors()
    logging.getLogger("choreo").addHandler(internal)
    began = time.monotonic()
    rng = random.Random(settings.seed)
    broker = await open_broker(broker_url)
    await ensure_saga_topics(broker, [FUZZED], partitions=settings.partitions)
    store_url = f"sqlite:///{directory / 'store.db'}"
    store = await open_store(store_url)
    effects = Effects()
    options = Options(park_limit_s=PARK_LIMIT_S, poll_timeout_s=0.05)
    services = StepRuntime(effects.service(), broker, options=options, random=random.Random(settings.seed))
    log = SagaLog(broker, store, [FUZZED], poll_timeout_s=0.05)
    runtimes = [asyncio.create_task(services.run(), name="hands"), asyncio.create_task(log.run(), name="saga-log")]
    try:
        report.rss_mib_before = _rss_mib()
        appended = await _append_all(settings, rng, broker, report, say)
        await _until_quiet(broker, runtimes, report, say)
        report.rss_mib_peak = _rss_mib()
        await _judge(settings, broker, effects, appended, report)
        for task in runtimes:
            if task.done():
                report.faults.append(f"{task.get_name()} has ended: {task.exception()!r}")
    finally:
        await asyncio.gather(services.stop(), log.stop(), return_exceptions=True)
        await asyncio.gather(*runtimes, return_exceptions=True)
    parked = [await store.parked_sagas(TopicPartition(TOPIC, number)) for number in range(settings.partitions)]
    report.sagas_parked = sum(map(len, parked))
    parked_at_least = report.fates[Fate.PARKED.name]  # each has a saga of its own
    if not parked_at_least <= report.sagas_parked <= parked_at_least + report.fates[Fate.EITHER.name]:
        report.faults.append(f"{report.sagas_parked} sagas are parked, {parked_at_least} should be")
    report.faults += [f"internal error: {each}" for each in internal.messages]
    await store.close()
    inspection = await open_inspection(store_url)
    checked = await check(broker, inspection, "fuzzed", registry=Registry(broker), dropped_before_ms=0)
    await inspection.close()
    differences = [each for each in checked.differences if each.stored != "not compared"]
    report.faults += [f"the store is not the fold of the log: {each}" for each in differences[:20]]
    await broker.close()
    logging.getLogger("choreo").removeHandler(internal)
    report.took_s = time.monotonic() - began
    return report


async def _append_all(
    settings: Settings, rng: random.Random, broker: Broker, report: Report, say: Callable[[str], None]
) -> list[Appended]:
    """Everything, in a drawn order, side by side; returns the malformed ones."""
    source = Source(rng)
    running: list[Running] = []
    appended: list[Appended] = []
    limit = asyncio.Semaphore(AT_ONCE)
    producer = await broker.producer()
    order = [True] * settings.sagas + [False] * settings.records
    rng.shuffle(order)

    async with Client(broker, source="fuzz") as client:

        async def start(saga_id: str, fails_at: str | None) -> None:
            async with limit:
                await client.start(FUZZED, {"fails_at": fails_at}, id=saga_id)

        async def append(fuzz: Fuzz) -> None:
            async with limit:
                try:
                    at = await producer.send(TOPIC, key=fuzz.key, value=fuzz.value, headers=fuzz.headers)
                except ChoreoError as error:
                    report.faults.append(f"{fuzz.kind} could not be appended: {error}")
                else:
                    appended.append(Appended(f"{at.partition}/{at.offset}", fuzz.kind, fuzz.fate, fuzz.value[:80]))

        async with asyncio.TaskGroup() as tasks:
            for number, is_saga in enumerate(order):
                if is_saga:
                    saga_id = f"saga-{number}"
                    fails_at = rng.choice((None, None, "first", "left", "last"))
                    tasks.create_task(start(saga_id, fails_at))
                    started = Running(saga_id, ids.input_hash(encode_user_value({"fails_at": fails_at})))
                    running = [*running[-RUNNING_KEPT:], started]
                else:
                    tasks.create_task(append(source.draw(running)))
                if number % AT_ONCE == 0:
                    async with limit:  # so that what is drawn is not far ahead of what is appended
                        await asyncio.sleep(0)
                if number % 20_000 == 0:
                    say(f"{number} of {len(order)} drawn, {_rss_mib():.0f} MiB")
                    report.rss_mib_peak = max(report.rss_mib_peak, _rss_mib())
    return appended


async def _until_quiet(
    broker: Broker, runtimes: list[asyncio.Task[None]], report: Report, say: Callable[[str], None]
) -> None:
    """Until both groups have committed all there is: no partition stands still."""
    deadline = time.monotonic() + STILL_S
    told, least = 0.0, 2**62
    while time.monotonic() < deadline and not any(task.done() for task in runtimes):
        tps = [TopicPartition(TOPIC, number) for number in range(await broker.partitions(TOPIC))]
        ends = {tp: end for tp, (_, end) in (await broker.offsets(tps)).items()}
        places = {group: (await broker.group_info(group)).committed for group in ("choreo.hands", "choreo.saga-log")}
        left = {
            f"{group} {tp}": end - (committed[tp].offset if tp in committed else 0)
            for group, committed in places.items()
            for tp, end in ends.items()
        }
        if not any(left.values()):
            return
        if sum(left.values()) < least:
            deadline, least = time.monotonic() + STILL_S, sum(left.values())
        if time.monotonic() - told > 15:
            told = time.monotonic()
            say(f"left to read: {sum(left.values())}")
        await asyncio.sleep(0.2)
    report.faults.append(f"these stand still: { {name: count for name, count in left.items() if count} }")


async def _judge(
    settings: Settings, broker: Broker, effects: Effects, appended: list[Appended], report: Report
) -> None:
    report.records = dict(sorted(Counter(each.kind for each in appended).items()))
    report.fates = {fate.name: sum(each.fate is fate for each in appended) for fate in Fate}
    letters: Counter[str] = Counter()
    for tp_number in range(settings.partitions):
        letters.update(await _letters_by_saga_log(broker, tp_number))
    report.dead_letters = letters.total()
    for place, kind, fate, value in appended:
        kept = letters.pop(place, 0)
        if fate is Fate.BAD and kept != 1:
            report.faults.append(f"{kind} at {place} is kept {kept} times: {value!r}")
        elif fate is Fate.EITHER:
            report.either_kept += kept
            if kept > 1:
                report.faults.append(f"{kind} at {place} is kept {kept} times")
        elif fate in (Fate.HARMLESS, Fate.PARKED) and kept:
            report.faults.append(f"{kind} at {place} is no bad record and is kept as one")
    report.faults += [f"a good record at {place} is kept as a dead letter" for place in letters]
    report.faults += await _judge_sagas(settings, broker, effects, report)
    listed = {each.id for each in await find(broker, "fuzzed", Wanted(reason="unknown_contract"))}
    mismatched = {each.place for each in appended if each.kind == "wrong_contract"}
    report.faults += [f"{place} is not listed as unknown_contract" for place in sorted(mismatched - listed)]


async def _letters_by_saga_log(broker: Broker, partition: int) -> Counter[str]:
    tp = TopicPartition(dead_letter_topic("fuzzed"), partition)
    found: Counter[str] = Counter()
    async for messages in records(broker, tp, *(await broker.offsets([tp]))[tp]):
        for message in messages:
            letter = read_dead_letter(message)
            assert letter is not None, message
            if letter.source == "/choreo/saga-log":  # services keep what is parked for too long
                found[letter.id] += 1
    return found


async def _judge_sagas(settings: Settings, broker: Broker, effects: Effects, report: Report) -> list[str]:
    """Each saga has an outcome, and its effects stand or do not, as the outcome says."""
    faults = []
    by_saga: dict[str, list[str]] = {}
    for key, state in effects.state.items():
        by_saga.setdefault(key.partition("/")[0], []).append(state)
    outcomes: Counter[str] = Counter()
    ended = set()
    folded = replay(broker, "fuzzed", registry=Registry(broker))
    async for saga, _ in folded:
        if not saga.saga_id.startswith("saga-") or not saga.started:
            continue
        ended.add(saga.saga_id)
        standing = by_saga.get(saga.saga_id, []).count("standing")
        kind = saga.outcome.kind if saga.outcome is not None else saga.phase.value
        outcomes[kind] += 1
        if kind not in ("completed", "compensated"):
            faults.append(f"{saga.saga_id} has no outcome: {kind}")
        elif standing != (len(FUZZED.steps) if kind == "completed" else 0):
            faults.append(f"{saga.saga_id} is {kind}, and {standing} effects stand")
    if len(ended) != settings.sagas:
        faults.append(f"{len(ended)} of {settings.sagas} sagas are in the log")
    report.outcomes, report.log_records = dict(outcomes), folded.records_read
    return faults


def _rss_mib() -> float:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
