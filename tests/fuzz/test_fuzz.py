"""Some thousand malformed records in every build; ``make fuzz RECORDS=100000`` has the large run."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from pathlib import Path

import pytest

from choreo.broker.kafka import KafkaBroker
from choreo.broker.port import TopicPartition
from choreo.broker.registry import ensure_saga_topics
from choreo.broker.topics import saga_topic
from choreo.client.dead_letters import Wanted, find, read, redrive
from choreo.contract import Saga, Step
from choreo.saga_log import SagaLog
from choreo.saga_log.replay import records
from choreo.store.memory import MemoryStore
from deploy.kafka.local_kafka import LocalKafka
from tests.conformance.members import unique
from tests.fuzz.__main__ import told
from tests.fuzz.records import Fate, Fuzz, Running, Source
from tests.fuzz.run import Settings, run
from tests.integration.test_kafka_adapter import append_raw

GROWTH_MIB_MAX = 96


async def malformed(settings: Settings, url: str, directory: Path) -> None:
    logging.getLogger("choreo").setLevel(logging.ERROR)
    try:
        report = await run(settings, url, directory)
    finally:
        logging.getLogger("choreo").setLevel(logging.NOTSET)
    print(told(report))
    assert report.faults == []
    assert sum(report.outcomes.values()) == settings.sagas
    assert report.fates["BAD"] > settings.records // 2
    assert report.rss_mib_peak - report.rss_mib_before < GROWTH_MIB_MAX


async def test_malformed_records_on_the_embedded_broker_stop_nothing_and_each_is_kept_once(
    tmp_path: Path, seed: int
) -> None:
    await malformed(Settings(records=2_000, sagas=200, seed=seed), f"sqlite:///{tmp_path}/log.db", tmp_path)


@pytest.mark.kafka
async def test_malformed_records_over_kafka_stop_nothing_and_each_is_kept_once(
    own_kafka: LocalKafka, tmp_path: Path, seed: int
) -> None:
    await malformed(Settings(records=1_500, sagas=100, seed=seed), own_kafka.url, tmp_path)


@pytest.mark.kafka
async def test_what_the_kafka_client_cannot_take_apart_and_what_is_astray_are_kept_with_their_bytes(
    kafka_url: str,
) -> None:
    broker = await KafkaBroker.open(kafka_url, quarantine=lambda _: None)
    saga = Saga(unique("unread").replace(".", "-"), Step("only"))
    await ensure_saga_topics(broker, [saga], partitions=2)
    topic = saga_topic(saga.name)
    home = await broker.partition_of(topic, "key")  # the key of raw batches
    await append_raw(broker, TopicPartition(topic, home), [b"good bytes", b"bad"])  # both are no records
    await append_raw(broker, TopicPartition(topic, 1 - home), [b"astray"])
    log = SagaLog(broker, MemoryStore(), [saga], group=unique("group"), poll_timeout_s=0.1)
    running = asyncio.create_task(log.run())
    async with asyncio.timeout(60):
        while len(found := await find(broker, saga.name, Wanted())) < 3:
            await asyncio.sleep(0.1)
    assert {each.id: each.message.partition(":")[0] for each in found} == {
        f"{home}/0": "not a record of choreo",
        f"{home}/1": "the broker's bytes cannot be taken apart",
        f"{1 - home}/0": "in the wrong partition",
    }
    letters = [await read(broker, each) for each in found]
    assert {letter.value for letter in letters} == {b"good bytes", b"bad", b"astray"}
    assert {letter.key for letter in letters} == {b"key"}
    await log.stop()
    await running
    [astray] = [each for each in found if each.message.startswith("in the wrong partition")]
    back = await redrive(broker, astray, by="ann", why="its producer partitions as others do now")
    assert back.partition == home, "a redrive brings it where it belongs"
    [[copy]] = [batch async for batch in records(broker, TopicPartition(topic, home), back.offset, back.offset + 1)]
    assert copy.value == b"astray"
    assert copy.headers[0] == ("good", b"1"), "and it comes without the mark"
    await broker.close()


def test_every_kind_is_drawn_and_the_same_seed_draws_the_same() -> None:
    running = [Running("saga-1", "0" * 16)]

    def drawn(source: Source) -> list[Fuzz]:
        return [source.draw(running) for _ in range(3_000)]

    first = drawn(Source(random.Random(7)))
    assert first == drawn(Source(random.Random(7)))
    kinds = Counter((each.kind, each.fate) for each in first)
    assert len(kinds) == 26
    assert {fate for _, fate in kinds} == set(Fate)
