"""Whether a deployment is as sagas need it: what is wrong is found, what is right is left alone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from choreo.broker.announcement import announcement
from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Committed, TopicInfo, TopicPartition, TopicSpec
from choreo.broker.registry import Registry, announce, register
from choreo.broker.topics import CONTRACTS_TOPIC, dead_letter_topic, saga_topic
from choreo.contract import Saga, Step
from choreo.doctor import Diagnosis, examine
from choreo.doctor.findings import Notes
from choreo.doctor.topics import examine_topics, retention_needed_ms
from choreo.errors import ConfigurationError
from choreo.store import open_store
from tests.conformance.members import ignore
from tests.unit.by_hand import DIAMOND, LINE, T0, FakeClock, a_broker, a_pen
from tests.unit.test_saga_log import running, until

GOOD = TopicInfo(
    name="choreo.order",
    partitions=6,
    retention_ms=7 * 86_400_000,
    retention_bytes=None,
    compacted=False,
    log_append_time=True,
    replication_factor=3,
    in_sync_min=2,
    message_bytes_max=1_048_576,
)
TOPICS: dict[str, TopicInfo | None] = {
    "choreo.order": GOOD,
    "choreo.order.dead-letters": msgspec.structs.replace(GOOD, name="choreo.order.dead-letters"),
    CONTRACTS_TOPIC: msgspec.structs.replace(
        GOOD, name=CONTRACTS_TOPIC, partitions=1, compacted=True, retention_ms=None
    ),
}


def judged(**changes: object) -> list[tuple[str, str]]:
    """What is found when the saga's topic is changed so."""
    notes = Notes()
    topics = TOPICS | {"choreo.order": msgspec.structs.replace(GOOD, **changes)}
    examine_topics(notes, "order", [LINE], topics, is_cluster=True)
    return [(one.check, one.level) for one in notes.diagnosis(now_ms=0, sagas=()).findings if "dead" not in one.subject]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"log_append_time": False}, [("topic_timestamps", "error")]),
        ({"compacted": True}, [("topic_compaction", "error")]),
        ({"retention_ms": 86_400_000}, [("topic_retention", "error")]),
        ({"retention_ms": None}, []),
        ({"retention_bytes": 1_000}, [("topic_retention", "error")]),
        ({"message_bytes_max": 10_000}, [("topic_record_size", "error")]),
        ({"replication_factor": 1}, [("topic_replication", "warning")]),
        ({"in_sync_min": 1}, [("topic_replication", "warning")]),
        ({"in_sync_min": 3}, [("topic_replication", "warning")]),
    ],
)
def test_each_setting_of_a_topic_is_judged(changes: dict[str, object], expected: list[tuple[str, str]]) -> None:
    assert judged(**changes) == expected


def test_retention_has_to_outlast_deadline_settling_compensations_and_repairs() -> None:
    assert retention_needed_ms(LINE) == 86_400_000 + 900_000 + 3 * 900_000 + 86_400_000
    assert judged(retention_ms=retention_needed_ms(LINE)) == []
    assert judged(retention_ms=retention_needed_ms(LINE) - 1) == [("topic_retention", "error")]


def test_topics_that_do_not_fit_together() -> None:
    for changes, check in (
        ({"choreo.order.dead-letters": msgspec.structs.replace(GOOD, partitions=3)}, "topic_partitions"),
        ({"choreo.order.dead-letters": None}, "topic_missing"),
        ({CONTRACTS_TOPIC: None}, "topic_missing"),
        ({CONTRACTS_TOPIC: msgspec.structs.replace(GOOD, partitions=1)}, "topic_compaction"),
        ({CONTRACTS_TOPIC: msgspec.structs.replace(GOOD, compacted=True)}, "topic_partitions"),
    ):
        notes = Notes()
        examine_topics(notes, "order", [LINE], TOPICS | changes, is_cluster=True)
        found = notes.diagnosis(now_ms=0, sagas=()).findings
        assert [one.check for one in found] == [check]
        assert all(one.fix for one in found)


class Deployment:
    """A log with the services and the saga-log that ought to be there."""

    def __init__(self, broker: MemoryBroker, clock: FakeClock) -> None:
        self.broker, self.clock = broker, clock

    @classmethod
    async def open(cls, *contracts: Saga, services: bool = True) -> Deployment:
        clock = FakeClock()
        broker = await a_broker(*(contracts or (LINE,)), partitions=2, now_ms=clock.now_ms)
        deployment = cls(broker, clock)
        if services:
            await deployment.announce("payment", *(contracts or (LINE,)))
            for group in ("choreo.payment", "choreo.saga-log"):
                await deployment.member(group, *(saga_topic(each.name) for each in (contracts or (LINE,))))
        return deployment

    async def announce(self, service: str, *contracts: Saga) -> None:
        registry = Registry(self.broker)
        await registry.refresh()
        steps = [(saga.name, saga.version, step.name) for saga in contracts for step in saga.steps]
        await announce(self.broker, registry, [announcement(service, f"choreo.{service}", steps)])

    async def member(self, group: str, *topics: str) -> object:
        consumer = await self.broker.consumer(group, topics, on_assigned=ignore, on_revoked=ignore)
        await consumer.poll(timeout_s=0)
        return consumer

    async def examined(self, *sagas: str, **options: object) -> Diagnosis:
        found = await examine(self.broker, sagas, now_ms=self.clock.ms, **options)  # type: ignore[arg-type]
        assert msgspec.json.decode(msgspec.json.encode(found))["checks"] == found.checks
        return found

    async def findings(self, **options: object) -> list[tuple[str, str]]:
        return [(one.check, one.subject) for one in (await self.examined(**options)).findings]


async def test_a_deployment_as_it_has_to_be_is_healthy() -> None:
    deployment = await Deployment.open(LINE, DIAMOND)
    found = await deployment.examined()
    assert found.healthy
    assert found.sagas == ("diamond", "order")
    assert await deployment.findings() == []
    assert (await deployment.examined("order")).sagas == ("order",)


async def test_steps_that_nobody_runs_and_groups_that_nobody_is_in() -> None:
    deployment = await Deployment.open(services=False)
    assert await deployment.findings() == [
        ("step_without_service", "order@1/a"),
        ("step_without_service", "order@1/b"),
        ("step_without_service", "order@1/c"),
        ("group_without_members", "choreo.saga-log"),
    ]
    await deployment.announce("payment", LINE)
    assert await deployment.findings() == [
        ("group_without_members", "choreo.payment"),
        ("group_without_members", "choreo.saga-log"),
    ]


async def test_a_step_that_two_services_run() -> None:
    deployment = await Deployment.open()
    await deployment.announce("billing", Saga("order", Step("a")))
    await deployment.member("choreo.billing", saga_topic("order"))
    assert await deployment.findings() == [("step_with_two_services", "order@1/a")]


async def test_a_group_that_reads_other_topics_lacks_partitions() -> None:
    deployment = await Deployment.open(services=False)
    await deployment.announce("payment", LINE)
    await deployment.member("choreo.payment", dead_letter_topic("order"))
    await deployment.member("choreo.saga-log", saga_topic("order"))
    assert await deployment.findings() == [("group_partitions", "choreo.payment")]


async def test_a_group_that_does_not_keep_up_is_warned_of() -> None:
    deployment = await Deployment.open()
    pen = await a_pen(deployment.broker, LINE)
    await pen.start("s")
    assert await deployment.findings() == []
    deployment.clock.ms += 61_000
    found = await deployment.examined()
    behind = [one for one in found.findings if one.check == "group_behind"]
    assert {one.subject for one in behind} == {"choreo.payment", "choreo.saga-log"}
    assert all("1m1s old; lag 1" in one.text for one in behind)
    assert found.healthy, "that is a warning"


async def test_a_version_in_flight_that_no_service_serves() -> None:
    old, new = LINE, Saga("order", Step("a"), version=2)
    deployment = await Deployment.open(services=False)
    await register(deployment.broker, [new])
    await deployment.announce("payment", new)
    for group in ("choreo.payment", "choreo.saga-log"):
        await deployment.member(group, saga_topic("order"))
    assert await deployment.findings() == []
    await (await a_pen(deployment.broker, old)).start("s")
    assert await deployment.findings(read_log=False) == [("not_examined", "order")]
    assert await deployment.findings() == [("version_unserved", f"order@1/{step}") for step in ("a", "b", "c")]
    found = await deployment.examined()
    assert "1 sagas of version 1 are under way" in found.findings[0].text


async def test_contracts_that_are_deployed_and_registered_otherwise() -> None:
    deployment = await Deployment.open()
    changed, unknown = Saga("order", Step("other")), Saga("order", Step("a"), version=9)
    assert await deployment.findings(contracts=[LINE]) == []
    assert await deployment.findings(contracts=[changed]) == [("contract_differs", "order@1")]
    assert await deployment.findings(contracts=[unknown]) == [("contract_missing", "order@9")]


async def test_a_clock_that_is_behind_the_brokers() -> None:
    deployment = await Deployment.open()
    await (await a_pen(deployment.broker, LINE)).start("s")
    deployment.clock.ms -= 60_000
    found = await deployment.examined()
    assert "1m in the future" in next(one.text for one in found.findings if one.check == "clock_skew")


async def test_topics_that_are_missing_or_strange() -> None:
    broker = await MemoryBroker.open("memory://doctor-strange", now_ms=FakeClock().now_ms)
    with pytest.raises(ConfigurationError, match="no saga is registered"):
        await examine(broker, now_ms=T0)
    await broker.ensure_topics([TopicSpec(name=saga_topic("order"), partitions=2, retention_ms=1_000, compacted=True)])
    found = await examine(broker, ["order"], now_ms=T0, contracts=[LINE])
    checks = {(one.check, one.subject) for one in found.findings}
    assert {
        ("topic_missing", "choreo.order.dead-letters"),
        ("topic_missing", "choreo.contracts"),
        ("topic_compaction", "choreo.order"),
        ("contract_missing", "order@1"),
    } <= checks


async def test_a_store_is_examined(tmp_path: Path) -> None:
    deployment = await Deployment.open()
    url = f"sqlite:///{tmp_path}/store.db"
    assert await deployment.findings(store=url) == [("store_unreachable", "store")]
    pen = await a_pen(deployment.broker, LINE)
    await pen.start("s")
    store = await open_store(url)
    async with running(deployment.broker, LINE, store=store, group="other") as log:
        await until(lambda: "s" in log.states())
    await store.close()
    assert await deployment.findings(store=url) == []
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE partitions SET offset = offset + 1000")
    connection.close()
    assert await deployment.findings(store=url) == [("store_of_another_log", "store of choreo.order")]


async def test_versions_in_flight_are_asked_of_the_store(tmp_path: Path) -> None:
    old, new = LINE, Saga("order", Step("a"), version=2)
    deployment = await Deployment.open(services=False)
    await register(deployment.broker, [new])
    await (await a_pen(deployment.broker, old)).start("s")
    url = f"sqlite:///{tmp_path}/store.db"
    store = await open_store(url)
    async with running(deployment.broker, old, new, store=store) as log:
        await until(lambda: "s" in log.states())
    await store.close()
    found = await deployment.findings(store=url, read_log=False)
    assert ("version_unserved", "order@1/a") in found


async def test_a_member_that_committed_everything_is_not_behind() -> None:
    deployment = await Deployment.open(services=False)
    await deployment.announce("payment", LINE)
    await (await a_pen(deployment.broker, LINE)).start("s")
    place = TopicPartition(saga_topic("order"), await deployment.broker.partition_of(saga_topic("order"), "s"))
    for group in ("choreo.payment", "choreo.saga-log"):
        consumer = await deployment.member(group, saga_topic("order"))
        await consumer.commit({place: Committed(1)})  # type: ignore[attr-defined]
    deployment.clock.ms += 3_600_000
    assert await deployment.findings() == []
