"""Deny by default: with the rights that ``choreo acl`` prints each part does its job, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from choreo import Reject, Saga, SagaFailed, Step
from choreo.access import Principal, principals
from choreo.broker import open_broker
from choreo.broker.port import Broker, TopicPartition, TopicSpec
from choreo.broker.registry import ensure_saga_topics, register
from choreo.cli.app import run_command
from choreo.client import Client
from choreo.errors import ChoreoError, ConfigurationError
from choreo.saga_log import SagaLog
from choreo.saga_log.runtime import GROUP
from choreo.step import Options, Service, StepRuntime
from choreo.store.memory import MemoryStore
from deploy.kafka.local_kafka import LocalKafkaError
from tests.conftest import USE
from tests.secure_kafka import SecureKafka

TRIP = Saga("trip", Step("hotel", compensation="cancel_hotel"), Step("flight"))
OTHER = Saga("other", Step("alone"))
DEAD = "choreo.trip.dead-letters"
QUICK = Options(poll_timeout_s=0.05, commit_interval_s=0.05)
ROLES = ("bootstrap", "client", "hotels", "flights", "saga-log", "operator", "audit")

hotels, flights = Service("hotels"), Service("flights")


@hotels.step(TRIP, "hotel")
async def book_hotel() -> str:
    return "room"


@hotels.compensation(TRIP, "hotel")
async def cancel_hotel() -> None:
    return None


@flights.step(TRIP, "flight")
async def book_flight(wish: str) -> str:
    if wish == "full":
        raise Reject("no seats")
    return "seat"


def parts() -> tuple[Principal, ...]:
    services = [(service.name, service.group, ["trip"]) for service in (hotels, flights)]
    return tuple(principals(["trip"], services, GROUP))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    users = [f"choreo-{role}" for role in ROLES]
    try:
        kafka = SecureKafka(tmp_path_factory.mktemp("access"), users, authorizing=True)
        kafka.kafka.start()
    except LocalKafkaError as error:
        USE.give_up(str(error))
    yield kafka
    kafka.kafka.stop()


@pytest.fixture(scope="module")
def allowed(secure: SecureKafka) -> None:
    """The rights are in force, as they are printed; topics of another saga are there, set up by somebody else."""
    asyncio.run(allow(secure))


async def allow(secure: SecureKafka) -> None:
    await secure.allow(parts())
    broker = await open_broker(secure.kafka.url)
    try:
        await ensure_saga_topics(broker, [OTHER], partitions=1)
        async with as_role(secure, "bootstrap") as bootstrap:
            await ensure_saga_topics(bootstrap, [TRIP], partitions=2)
            await register(bootstrap, [TRIP])
        for topic in ("choreo.other", DEAD):  # there is something to read
            await write(broker, topic)
    finally:
        await broker.close()


@asynccontextmanager
async def as_role(secure: SecureKafka, role: str) -> AsyncIterator[Broker]:
    broker = await open_broker(secure.user_url(f"choreo-{role}"))
    try:
        yield broker
    finally:
        await broker.close()


@pytest.mark.kafka
async def test_each_part_does_its_job(secure: SecureKafka, allowed: None) -> None:
    async with contextlib.AsyncExitStack() as stack:
        brokers = {role: await stack.enter_async_context(as_role(secure, role)) for role in ROLES}
        for role in ("hotels", "flights", "saga-log"):  # whoever starts verifies its topics first
            await ensure_saga_topics(brokers[role], [TRIP], partitions=2)
        runtimes = [
            StepRuntime([hotels], brokers["hotels"], options=QUICK),
            StepRuntime([flights], brokers["flights"], options=QUICK),
            SagaLog(brokers["saga-log"], MemoryStore(), [TRIP]),
        ]
        tasks = [asyncio.create_task(runtime.run()) for runtime in runtimes]
        try:
            client = await stack.enter_async_context(Client(brokers["client"]))
            outcome = await asyncio.wait_for(client.run(TRIP, "free"), 60)
            assert msgspec.json.decode(outcome.result) == "seat"
            with pytest.raises(SagaFailed, match="no seats"):
                await asyncio.wait_for(client.run(TRIP, "full"), 60)
            assert await histories(brokers["audit"], "choreo.trip") >= 9
        finally:
            for runtime in runtimes:
                await runtime.stop()
            await asyncio.gather(*tasks)


async def histories(broker: Broker, topic: str) -> int:
    """The number of records that can be read in a topic."""
    reader = await broker.reader()
    try:
        count = 0
        for partition in range(await broker.partitions(topic)):
            tp = TopicPartition(topic, partition)
            _, end = (await broker.offsets([tp]))[tp]
            reader.seek(tp, 0)
            while reader.position(tp) < end:
                count += len(await reader.poll(timeout_s=0.5))
        return count
    finally:
        await reader.close()


async def write(broker: Broker, topic: str) -> None:
    producer = await broker.producer()
    try:
        await asyncio.wait_for(producer.send(topic, key="k", value=b"{}", headers=()), 20)
    finally:
        await producer.close()


async def join(broker: Broker, group: str) -> None:
    assigned = asyncio.Event()

    async def on_assigned(tps: Any) -> None:
        assigned.set()

    async def on_revoked(tps: Any) -> None:
        pass

    consumer = await broker.consumer(group, ["choreo.trip"], on_assigned=on_assigned, on_revoked=on_revoked)
    try:
        for _ in range(20):
            await consumer.poll(timeout_s=0.2)
            if assigned.is_set():
                return
        raise ConfigurationError(f"never a member of {group}")
    finally:
        await consumer.close()


async def create(broker: Broker, topic: str) -> None:
    await broker.ensure_topics([TopicSpec(name=topic, partitions=1, retention_ms=3_600_000)])


Attempt = Callable[[Broker], Awaitable[Any]]

# What may not be seen is not there.
DENIALS = ("not authorized", "TopicAuthorizationFailed", "there is no topic", "never a member")
READS = {"client", "hotels", "flights", "saga-log", "operator", "audit"}
WRITES = READS - {"audit"}
WRITES_DEAD_LETTERS = {"hotels", "flights", "saga-log", "operator"}
ATTEMPTS: dict[str, tuple[Attempt, set[str]]] = {
    "write choreo.trip": (lambda broker: write(broker, "choreo.trip"), WRITES),
    "read choreo.trip": (lambda broker: histories(broker, "choreo.trip"), READS),
    "write choreo.trip.dead-letters": (lambda broker: write(broker, "choreo.trip.dead-letters"), WRITES_DEAD_LETTERS),
    "read choreo.trip.dead-letters": (
        lambda broker: histories(broker, "choreo.trip.dead-letters"),
        {"operator", "audit"},
    ),
    "write choreo.contracts": (lambda broker: write(broker, "choreo.contracts"), {"bootstrap"}),
    "write choreo.other": (lambda broker: write(broker, "choreo.other"), set()),
    "read choreo.other": (lambda broker: histories(broker, "choreo.other"), set()),
    "join choreo.hotels": (lambda broker: join(broker, hotels.group), {"hotels"}),
    "join choreo.flights": (lambda broker: join(broker, flights.group), {"flights"}),
    "join choreo.saga-log": (lambda broker: join(broker, GROUP), {"saga-log"}),
    "create a topic": (lambda broker: create(broker, "somebody-elses"), set()),
}


@pytest.mark.kafka
@pytest.mark.parametrize("role", ROLES)
async def test_and_nothing_beside_it(secure: SecureKafka, allowed: None, role: str) -> None:
    wrong: list[str] = []
    async with as_role(secure, role) as broker:
        for name, (attempt, may) in ATTEMPTS.items():
            try:
                await attempt(broker)
                if role not in may:
                    wrong.append(f"{role} may {name}")
            except ChoreoError as error:
                if role in may or not any(said in str(error) for said in DENIALS):
                    wrong.append(f"{role} may not {name}: {error}")
    assert wrong == []


# -------------------------------------------------------------------------------------------------- what is printed


def test_strimzi_gets_a_user_for_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    parts = ["services.order:ORDER", "services.payment:service"]
    assert run_command(["acl", *parts, "--format", "strimzi", "--cluster", "events"]) == 0
    users = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [user["metadata"]["name"] for user in users] == [
        f"choreo-{role}" for role in ("bootstrap", "client", "payment", "saga-log", "operator", "audit", "sealer")
    ]
    assert all(user["metadata"]["labels"] == {"strimzi.io/cluster": "events"} for user in users)
    (payment,) = (user for user in users if user["metadata"]["name"] == "choreo-payment")
    acls = payment["spec"]["authorization"]["acls"]
    assert {"resource": acls[-1]["resource"]} == {
        "resource": {"type": "group", "name": "choreo.payment", "patternType": "literal"}
    }
    assert acls[0]["operations"] == ["Read", "Write", "Describe", "DescribeConfigs"]


def test_commands_for_kafka_are_quoted_and_name_the_principal(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["acl", "services.payment:service", "--format", "kafka-acls", "--user", "payment=CN=pay, O=A"]
    assert run_command(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(
        "--allow-principal 'User:CN=pay, O=A' --operation Read --operation Describe --group choreo.payment" in line
        for line in lines
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["services.payment:service", "--user", "paiment=x"], "no such role: paiment; there are bootstrap, client"),
        (["services.payment:service", "--user", "payment"], "must be ROLE=USER"),
        (["services.payment.steps:charge_card"], "a Saga or a Service is needed"),
    ],
)
def test_what_is_no_part_or_no_role_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["acl", *arguments]) == 3
    assert said in capsys.readouterr().err
