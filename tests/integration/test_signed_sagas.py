"""With signatures on, everything that a deployment says to itself is believed: acts, waits, sub-sagas, seals."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from choreo import CompensationContext, Context, Reject, Saga, SagaFailed, Step
from choreo.audit import check_proof, prove, read_checkpoints, seal, verify
from choreo.broker import open_broker
from choreo.broker.encrypted import DirectoryKeys, EncryptedBroker
from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Broker, Message, TopicPartition
from choreo.broker.registry import Registry, ensure_saga_topics, register
from choreo.broker.signed import SignedBroker
from choreo.broker.signed.broker import Signer
from choreo.broker.signed.envelope import SIGNATURE
from choreo.broker.signed.trust import Trust
from choreo.broker.topics import is_saga_topic
from choreo.cli.app import run_command
from choreo.client import Client
from choreo.messages.headers import UNBELIEVED
from choreo.messages.records import TYPE_BY_TAG
from choreo.messages.writers import WRITERS, Writer
from choreo.saga_log import SagaLog
from choreo.step import Options, Service, StepRuntime
from choreo.store.memory import MemoryStore
from tests.signed_deployment import SignedDeployment

TRIP = Saga("trip", Step("hotel", compensation="cancel_hotel"))
HOLIDAY = Saga(
    "holiday",
    Step("reserve", compensation="release", compensation_retries=0),
    Step("travel", saga=TRIP),
    Step("approve", await_signal="approved"),
    Step("pay", compensation="refund"),
    Step("close"),
)
HERE = "tests.integration.test_signed_sagas"
released: list[str] = []
cancelled: list[str] = []
is_back: list[bool] = []


def agency_service() -> Service:
    agency = Service("agency")

    @agency.step(HOLIDAY, "reserve")
    async def reserve() -> str:
        return "reserved"

    @agency.compensation(HOLIDAY, "reserve")
    async def release(ctx: CompensationContext) -> None:
        if not is_back:
            raise RuntimeError("the desk is closed")
        released.append(ctx.saga_id)

    @agency.step(HOLIDAY, "approve")
    async def approve(ctx: Context) -> object:
        return ctx.signals["approved"]

    @agency.step(HOLIDAY, "close")
    async def close(ctx: Context) -> str:
        if ctx.input["refused"]:
            raise Reject("no")
        return "closed"

    return agency


def bank_service() -> Service:
    bank = Service("bank")

    @bank.step(HOLIDAY, "pay")
    async def pay() -> str:
        return "paid"

    @bank.compensation(HOLIDAY, "pay")
    async def refund() -> None:
        return None

    return bank


def hotel_service() -> Service:
    hotel = Service("hotel")

    @hotel.step(TRIP, "hotel")
    async def book() -> str:
        return "room 12"

    @hotel.compensation(TRIP, "hotel")
    async def cancel(ctx: CompensationContext) -> None:
        cancelled.append(ctx.saga_id)

    return hotel


agency, bank, hotel = agency_service(), bank_service(), hotel_service()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> SignedDeployment:
    directory = tmp_path_factory.mktemp("keys")
    return SignedDeployment(directory, *(f"{HERE}:{name}" for name in ("HOLIDAY", "agency", "bank", "hotel")))


@asynccontextmanager
async def running(log: Broker, over: Callable[[str], Broker]) -> AsyncIterator[Client]:
    for kept in (released, cancelled, is_back):
        kept.clear()
    await ensure_saga_topics(log, [HOLIDAY], partitions=2)
    await register(over("bootstrap"), [HOLIDAY])
    options = Options(poll_timeout_s=0.02, commit_interval_s=0.05)
    runtimes = [
        *(StepRuntime([each], over(each.name), options=options) for each in (agency, bank, hotel)),
        SagaLog(over("saga-log"), MemoryStore(), [HOLIDAY]),
    ]
    tasks = [asyncio.create_task(runtime.run()) for runtime in runtimes]
    try:
        async with Client(over("client")) as client:
            yield client
    finally:
        for runtime in runtimes:
            await runtime.stop()
        await asyncio.gather(*tasks)


async def until(what: Callable[[], Awaitable[bool]], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not await what():
            await asyncio.sleep(0.02)


async def is_at(client: Client, saga_id: str, *phases: str) -> bool:
    return (await client.status(HOLIDAY, saga_id)).phase in phases


async def everything(broker: Broker) -> list[Message]:
    reader = await broker.reader()
    found: list[Message] = []
    for topic in sorted(await broker.topics()):
        tps = [TopicPartition(topic, number) for number in range(await broker.partitions(topic))]
        for tp, (_, end) in (await broker.offsets(tps)).items():
            reader.seek(tp, 0)
            while reader.position(tp) < end:
                found += await reader.poll(timeout_s=0.05)
    await reader.close()
    return found


def input_of(*, refused: bool = False) -> dict[str, bool]:
    return {"refused": refused}


async def play(client: Client, operator: Client) -> None:
    """All that clients and operators can ask for, a sub-saga that is undone, a saga that is stuck."""
    by = {"operator": "anna", "reason": "a test"}
    await operator.pause(HOLIDAY, **by)
    await client.start(HOLIDAY, input_of(), id="good")
    await operator.pause(HOLIDAY, "good", **by)
    await operator.resume(HOLIDAY, **by)
    await operator.resume(HOLIDAY, "good", **by)
    await client.signal(HOLIDAY, "good", "approved", "go")
    assert (await client.wait(HOLIDAY, "good", timeout_s=20)).effects.keys() >= {"travel", "close"}
    for saga_id, act in (("retried", "retry"), ("skipped", "skip"), ("resolved", "resolve")):
        await client.start(HOLIDAY, input_of(refused=True), id=saga_id)
        await client.signal(HOLIDAY, saga_id, "approved", "go")
        await until(lambda saga_id=saga_id: is_at(client, saga_id, "stuck"))
        if act == "retry":
            is_back.append(True)
        await operator.act(HOLIDAY, saga_id, act, "reserve", **by)
        await until(lambda saga_id=saga_id: is_at(client, saga_id, "compensated"))
        is_back.clear()
    await client.start(HOLIDAY, input_of(), id="cancelled")
    is_back.append(True)
    await client.cancel(HOLIDAY, "cancelled", reason="changed my mind")
    with pytest.raises(SagaFailed):
        await client.wait(HOLIDAY, "cancelled", timeout_s=20)
    assert released[0] == "retried"
    assert {f"holiday/{name}/travel/1" for name in ("retried", "skipped", "resolved")} <= set(cancelled)


async def test_everything_that_a_deployment_says_to_itself_is_believed(keys: SignedDeployment) -> None:
    log = await MemoryBroker.open("memory://believed")
    async with (
        running(log, lambda owner: keys.over(log, owner)) as client,
        Client(keys.over(log, "operator")) as operator,
    ):
        await play(client, operator)
    read = await everything(keys.readable(log))
    assert [message for message in read if message.headers and message.headers[0][0] == UNBELIEVED] == []
    assert [message for message in read if message.topic.endswith(".dead-letters")] == []
    said = {msgspec.json.decode(message.value)["type"] for message in read if is_saga_topic(message.topic)}
    others = {tag for tag, kind in TYPE_BY_TAG.items() if WRITERS[kind] is not Writer.SAGA_LOG}
    assert said >= others, "the test has shown every record that somebody else than the saga-log writes"
    await log.close()


async def test_a_key_is_rotated_between_two_sagas_and_both_stay_believed(tmp_path: Path) -> None:
    parts = [f"{HERE}:{name}" for name in ("HOLIDAY", "agency", "bank", "hotel")]
    keys = SignedDeployment(tmp_path, *parts)
    log = await MemoryBroker.open("memory://rotated")

    async def run_saga(client: Client, saga_id: str) -> None:
        await client.start(HOLIDAY, input_of(), id=saga_id)
        await client.signal(HOLIDAY, saga_id, "approved", "go")
        await client.wait(HOLIDAY, saga_id, timeout_s=20)

    async with running(log, lambda owner: keys.over(log, owner)) as client:
        await run_saga(client, "before")
    # The new key goes into everybody's file, then its owner signs with it, then the old one ends.
    old = keys.signer("bank")
    (tmp_path / "bank" / "key.pem").unlink()
    SignedDeployment(tmp_path, *parts)
    new = Signer.read(tmp_path / "bank" / "key.pem", "bank-2")
    line, ends = f'public = "{old.public}"\n', dt.datetime.now(dt.UTC).isoformat()
    for path in tmp_path.glob("*/trust.toml"):
        path.write_text(path.read_text().replace(line, f"{line}until = {ends}\n"))
    await asyncio.sleep(0.01)

    def over(owner: str) -> Broker:
        return SignedBroker(log, Trust.read(keys.trust_file), new if owner == "bank" else keys.signer(owner))

    async with running(log, over) as client:
        await run_saga(client, "after")
    read = await everything(keys.readable(log))
    assert [message for message in read if message.headers and message.headers[0][0] == UNBELIEVED] == []
    paid = [message for message in read if message.header("choreo_step") == b"pay"]
    signed_by = {(message.header(SIGNATURE) or b"").partition(b".")[0]: message.key for message in paid}
    assert signed_by == {b"bank-1": b"before", b"bank-2": b"after"}
    thief = await SignedBroker(log, Trust.read(keys.trust_file), old).producer()
    stolen = paid[-1]
    unsigned = tuple(header for header in stolen.headers if header[0] != SIGNATURE)
    await thief.send("choreo.holiday", key=(stolen.key or b"").decode(), value=stolen.value, headers=unsigned)
    read = await everything(keys.readable(log))
    (unbelieved,) = (message for message in read if message.headers and message.headers[0][0] == UNBELIEVED)
    assert b"was good only for what was appended earlier" in unbelieved.headers[0][1]
    await log.close()


@pytest.mark.parametrize("wrapped", ["signed", "encrypted"])
async def test_a_log_is_sealed_and_proved_where_it_is_signed_or_encrypted(
    keys: SignedDeployment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrapped: str,
) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    log = await open_broker(url)
    payload_keys = DirectoryKeys(tmp_path / "payload")

    def over(owner: str) -> Broker:
        return keys.over(log, owner) if wrapped == "signed" else EncryptedBroker(log, payload_keys, "")

    async with running(log, over) as client:
        for saga_id in ("one", "two"):
            await client.start(HOLIDAY, input_of(), id=saga_id)
            await client.signal(HOLIDAY, saga_id, "approved", "go")
            await client.wait(HOLIDAY, saga_id, timeout_s=20)
            # By a program that has a broker of its own; who seals has no key for records, and needs none.
            sealer = keys.readable(log) if wrapped == "signed" else over("sealer")
            made = await seal(sealer, "holiday")
            found = await read_checkpoints(sealer, "holiday")
            assert found.odd == []
            assert {one.hash for one in made} <= {one.hash for chain in found.chains.values() for one in chain}
            assert check_proof(await prove(sealer, "holiday", saga_id)).holds
        forger = await log.producer()
        await forger.send("choreo.holiday", key="two", value=b"{}", headers=(("ce_type", b"choreo.step_failed.v1"),))
        await seal(sealer, "holiday")
        told = await verify(sealer, "holiday", registry=Registry(sealer), now_ms=0)
        assert told.faults_total["root_differs"] == 0, "what is sealed is the log, not what a reader makes of it"
        assert sum(each.segments for each in told.partitions) >= 3
    await log.close()
    if wrapped == "signed":
        monkeypatch.setenv("CHOREO_TRUST_FILE", str(keys.trust_file))
    else:
        monkeypatch.setenv("CHOREO_PAYLOAD_KEYS", str(tmp_path / "payload"))
    at, proof = ["--broker", url], str(tmp_path / "proof.json")
    seal_key = keys.directory / "sealer"

    def run(*command: str) -> str:
        assert run_command(list(command)) == 0, capsys.readouterr()
        return capsys.readouterr().out

    await asyncio.to_thread(run, "audit", "seal", "holiday", "--key", str(seal_key / "key.pem"), *at)
    await asyncio.to_thread(run, "audit", "prove", "holiday", "two", "--output", proof, *at)
    assert "saga two: " in await asyncio.to_thread(run, "audit", "check-proof", proof)
