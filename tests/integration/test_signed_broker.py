"""Signed records: what is forged is quarantined, never folded, and fails nothing."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections import Counter
from functools import cache
from pathlib import Path

import msgspec
import pytest

from choreo import Saga, Step
from choreo.broker.announcement import announcement
from choreo.broker.dead_letter import read_dead_letter
from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Broker, Message, TopicPartition
from choreo.broker.registry import announce, ensure_saga_topics, register
from choreo.broker.signed import SignedBroker, signed_by_settings
from choreo.broker.signed.broker import Signer
from choreo.broker.signed.envelope import SIGNATURE, covered_bytes, taken_apart, written
from choreo.broker.signed.trust import Distrusted, Trust
from choreo.cli.app import run_command
from choreo.client import Client
from choreo.errors import ConfigurationError
from choreo.messages import codec
from choreo.messages.headers import JSON, UNBELIEVED, make_headers
from choreo.messages.records import (
    AnyRecord,
    CancelRequested,
    Failure,
    SagaCompensated,
    SagaCompleted,
    StepCompleted,
    StepFailed,
)
from choreo.saga_log import SagaLog
from choreo.step import Options, Service, StepRuntime
from choreo.store.memory import MemoryStore

SHOP = Saga("shop", Step("reserve", compensation="release"), Step("charge"))
SAGAS = 40
FORGED = 10_000
KINDS = ("unsigned", "stranger", "wrong owner", "altered", "elsewhere", "other key", "claimed", "garbled")
OWNERS = ("client", "stock", "money", "saga-log", "bootstrap", "stranger")


def stock_service() -> Service:
    stock = Service("stock")

    @stock.step(SHOP, "reserve")
    async def reserve() -> str:
        return "reserved"

    @stock.compensation(SHOP, "reserve")
    async def release() -> None:
        return None

    return stock


def money_service() -> Service:
    money = Service("money")

    @money.step(SHOP, "charge")
    async def charge() -> str:
        return "charged"

    return money


stock, money = stock_service(), money_service()


class Keys:
    """A key for each owner, and the trust file that ``choreo keys`` writes for them."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        text = ""
        for owner in OWNERS:
            out = str(self.private(owner))
            assert run_command(["keys", "new", f"{owner}-1", "--owner", owner, "--out", out]) == 0
            printed = capsys.readouterr().out
            if owner != "stranger":
                text += printed
        here = "tests.integration.test_signed_broker"
        assert run_command(["keys", "trust", f"{here}:stock", f"{here}:money"]) == 0
        # Whoever owns a key of the operator would stand here; there is none in this deployment.
        text += capsys.readouterr().out.replace(', "operator"', "")
        self.trust_file = directory / "trust.toml"
        self.trust_file.write_text(text)

    def private(self, owner: str) -> Path:
        return self.directory / f"{owner}.pem"

    @cache  # noqa: B019 - as many as there are owners
    def signer(self, owner: str) -> Signer:
        return Signer.read(self.private(owner), f"{owner}-1")

    def trust(self) -> Trust:
        return Trust.read(self.trust_file)

    def over(self, broker: Broker, owner: str) -> Broker:
        return SignedBroker(broker, self.trust(), self.signer(owner))


@pytest.fixture
def keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Keys:
    return Keys(tmp_path, capsys)


def message_of(record: AnyRecord, signer: Signer | None, topic: str = "choreo.shop") -> Message:
    headers = make_headers(record, source="/choreo/somebody", content_type=JSON)
    value = codec.encode(record)
    key = record.saga_id.encode()
    if signer is not None:
        headers = (*headers, signer.header(topic, key, value, headers))
    return Message(topic, 0, 0, 1_000, key, value, headers)


def completed(saga_id: str = "s-1", step: str = "charge", run: str = "forged") -> StepCompleted:
    return StepCompleted(
        saga="shop",
        version=1,
        saga_id=saga_id,
        start="a" * 16,
        step=step,
        run=run,
        due_ms=2**50,
        saga_due_ms=2**50,
        input=msgspec.Raw(b"1"),
        effects={},
        effect=msgspec.Raw(b'"forged"'),
        attempts=1,
        duration_ms=1,
    )


def forge(rng: random.Random, keys: Keys, target: str, genuine: list[Message]) -> tuple[str, Message]:
    """A record that nobody may believe, of one of the kinds below."""
    kind = rng.choice(
        ["unsigned", "stranger", "wrong owner", "altered", "elsewhere", "other key", "claimed", "garbled"]
    )
    step = rng.choice(["reserve", "charge"])
    record = completed(target, step, run=f"forged-{rng.getrandbits(32):x}")
    owner = {"reserve": "stock", "charge": "money"}[step]
    match kind:
        case "unsigned":
            return kind, message_of(record, None)
        case "stranger":
            return kind, message_of(record, keys.signer("stranger"))
        case "wrong owner":
            wrong = rng.choice([name for name in OWNERS[:5] if name != owner])
            outcome = SagaCompensated(
                saga="shop", version=1, saga_id=target, start="a" * 16, cause="failed", compensations=()
            )
            forged = record if rng.random() < 0.5 else outcome
            return kind, message_of(forged, keys.signer(wrong if forged is record else owner))
        case "altered":
            message = rng.choice(genuine)
            return kind, msgspec.structs.replace(message, value=message.value.replace(b"charged", b"changed") + b" ")
        case "elsewhere":
            message = message_of(record, keys.signer(owner), topic="choreo.other")
            return kind, msgspec.structs.replace(message, topic="choreo.shop")
        case "other key":
            return kind, msgspec.structs.replace(rng.choice(genuine), key=target.encode() + b"x")
        case "claimed":  # an honest signature under a trusted name that is not the signer's
            message = message_of(record, keys.signer("stranger"))
            header = dict(message.headers)[SIGNATURE].replace(b"stranger-1", f"{owner}-1".encode())
            return kind, msgspec.structs.replace(message, headers=(*message.headers[:-1], (SIGNATURE, header)))
        case _:
            message = message_of(record, keys.signer(owner))
            return kind, msgspec.structs.replace(
                message, headers=(*message.headers[:-1], (SIGNATURE, rng.randbytes(40)))
            )


async def read_all(broker: Broker, topic: str) -> list[Message]:
    found: list[Message] = []
    reader = await broker.reader()
    for partition in range(await broker.partitions(topic)):
        tp = TopicPartition(topic, partition)
        _, end = (await broker.offsets([tp]))[tp]
        reader.seek(tp, 0)
        while reader.position(tp) < end:
            found += await reader.poll(timeout_s=0.1)
    await reader.close()
    return found


async def test_ten_thousand_forged_records_change_nothing(keys: Keys, seed: int) -> None:
    rng = random.Random(seed)
    log = await MemoryBroker.open("memory://forged")
    over = {owner: keys.over(log, owner) for owner in OWNERS[:5]}
    await ensure_saga_topics(log, [SHOP], partitions=2)
    await register(over["bootstrap"], [SHOP])
    options = Options(poll_timeout_s=0.05, commit_interval_s=0.1)
    saga_log = SagaLog(over["saga-log"], MemoryStore(), [SHOP])
    runtimes = [
        StepRuntime([stock], over["stock"], options=options),
        StepRuntime([money], over["money"], options=options),
        saga_log,
    ]
    tasks = [asyncio.create_task(runtime.run()) for runtime in runtimes]
    kinds: Counter[str] = Counter()
    try:
        async with Client(over["client"]) as client:
            first = await client.run(SHOP, "genuine", id="first")
            assert msgspec.json.decode(first.result) == "charged"
            genuine = [message for message in await read_all(log, "choreo.shop") if message.key == b"first"]
            attacker = await log.producer()
            waits = []
            for i in range(SAGAS):
                waits.append(asyncio.create_task(client.run(SHOP, i, id=f"saga-{i}")))
                for _ in range(FORGED // SAGAS):
                    target = rng.choice([f"saga-{rng.randrange(SAGAS)}", "first", "never-started"])
                    kind, message = forge(rng, keys, target, genuine)
                    kinds[kind] += 1
                    key = (message.key or b"").decode()
                    await attacker.send("choreo.shop", key=key, value=message.value, headers=message.headers)
            outcomes = await asyncio.wait_for(asyncio.gather(*waits), 120)
            assert [msgspec.json.decode(outcome.result) for outcome in outcomes] == ["charged"] * SAGAS
    finally:
        for runtime in runtimes:
            await runtime.stop()
        await asyncio.gather(*tasks)
    assert set(kinds) == set(KINDS)
    assert sum(kinds.values()) == FORGED
    letters = [
        letter for message in await read_all(log, "choreo.shop.dead-letters") if (letter := read_dead_letter(message))
    ]
    assert len({letter.id for letter in letters}) == FORGED, "each forged record is kept once, as evidence"
    believed = [
        codec.decode(message.key, message.value, message.headers)
        for message in await read_all(over["saga-log"], "choreo.shop")
        if message.headers[0][0] != UNBELIEVED
    ]
    assert not [record for record in believed if isinstance(record, StepFailed | SagaCompensated)]
    assert sum(isinstance(record, SagaCompleted) for record in believed) == SAGAS + 1
    assert not [record for record in believed if "forged" in getattr(record, "run", "")]
    await log.close()


# --------------------------------------------------------------------------------------------------------- the rules


def trusted(keys: Keys, message: Message, *, at_ms: int = 1_000) -> str:
    trust = keys.trust()
    key_id, signature = taken_apart(dict(message.headers)[SIGNATURE])
    covered = covered_bytes(message.topic, message.key or b"", message.value, message.headers)
    owner = trust.signer(key_id, signature, covered, at_ms)
    trust.check_record(owner, "shop", message.key or b"", message.value, JSON)
    return owner


def test_each_record_has_its_writers(keys: Keys) -> None:
    assert trusted(keys, message_of(completed(), keys.signer("money"))) == "money"
    cancel = CancelRequested(saga="shop", version=1, saga_id="s-1", start="a" * 16, request="r")
    assert trusted(keys, message_of(cancel, keys.signer("client"))) == "client"
    with pytest.raises(Distrusted, match="money may not write cancel_requested of saga 'shop'"):
        trusted(keys, message_of(cancel, keys.signer("money")))
    with pytest.raises(Distrusted, match="stock may not write step_completed of step 'charge'"):
        trusted(keys, message_of(completed(), keys.signer("stock")))
    timed_out = StepFailed(
        saga="shop",
        version=1,
        saga_id="s-1",
        start="a" * 16,
        step="charge",
        failure=Failure(kind="timed_out"),
    )
    assert trusted(keys, message_of(timed_out, keys.signer("saga-log"))) == "saga-log"
    with pytest.raises(Distrusted, match="money may not write step_failed"):
        trusted(keys, message_of(timed_out, keys.signer("money")))


def test_a_rotated_key_is_good_for_what_was_appended_before(keys: Keys) -> None:
    rotated = dt.datetime.fromtimestamp(5, dt.UTC).isoformat().replace("+00:00", "Z")
    text = keys.trust_file.read_text().replace('owner = "money"\n', f'owner = "money"\nuntil = {rotated}\n')
    keys.trust_file.write_text(text)
    message = message_of(completed(), keys.signer("money"))
    assert trusted(keys, message, at_ms=4_999) == "money"
    with pytest.raises(Distrusted, match="was good only for what was appended earlier"):
        trusted(keys, message, at_ms=5_000)


def test_the_first_of_two_headers_counts_for_the_signature_too(keys: Keys) -> None:
    message = message_of(completed(), keys.signer("money"))
    doubled = msgspec.structs.replace(message, headers=(("choreo_step", b"reserve"), *message.headers))
    with pytest.raises(Distrusted, match="does not fit"):
        trusted(keys, doubled)
    appended = msgspec.structs.replace(message, headers=(*message.headers, ("choreo_step", b"reserve")))
    assert trusted(keys, appended) == "money"


def test_headers_of_others_are_not_covered(keys: Keys) -> None:
    message = message_of(completed(), keys.signer("money"))
    assert (
        trusted(keys, msgspec.structs.replace(message, headers=(*message.headers, ("traceparent", b"00-1")))) == "money"
    )


@pytest.mark.parametrize("header", [b"", b"nodot", b"key.not base64!", b"\xff.YQ"])
def test_a_malformed_signature_is_one_that_does_not_fit(keys: Keys, header: bytes) -> None:
    try:
        key_id, signature = taken_apart(header)
    except ValueError:
        return
    with pytest.raises(Distrusted):
        keys.trust().signer(key_id, signature, b"", 0)


def test_a_signature_can_be_read_back() -> None:
    assert taken_apart(written("payment.eu-1", b"\x00" * 64)) == ("payment.eu-1", b"\x00" * 64)


async def test_without_a_key_of_our_own_nothing_is_written(keys: Keys) -> None:
    log = await MemoryBroker.open("memory://keyless")
    broker = signed_by_settings(log, {"CHOREO_TRUST_FILE": str(keys.trust_file)})
    await ensure_saga_topics(broker, [SHOP], partitions=1)
    producer = await broker.producer()
    with pytest.raises(ConfigurationError, match="without a key of our own; set CHOREO_SIGNING_KEY_FILE"):
        await producer.send("choreo.shop", key="k", value=b"{}")
    await log.close()


async def test_a_contract_that_nobody_may_register_is_none(keys: Keys) -> None:
    log = await MemoryBroker.open("memory://contracts")
    await ensure_saga_topics(log, [SHOP], partitions=1)
    await register(keys.over(log, "money"), [SHOP])
    assert (await register(keys.over(log, "bootstrap"), [])).contracts == ()
    await register(keys.over(log, "bootstrap"), [SHOP])
    assert (await register(keys.over(log, "money"), [])).contracts == (SHOP,)
    await log.close()


async def test_a_service_speaks_for_itself_alone(keys: Keys) -> None:
    log = await MemoryBroker.open("memory://announced")
    await ensure_saga_topics(log, [SHOP], partitions=1)
    steps = [("shop", 1, "charge")]
    for name in ("money", "stock"):
        word = announcement(name, f"choreo.{name}", steps)
        await announce(keys.over(log, "money"), await register(keys.over(log, "client"), []), [word])
    assert [word.service for word in (await register(keys.over(log, "client"), [])).services] == ["money"]
    await log.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not right"),
        ('[keys.a]\nowner = "x"\npublic = "AA=="\n[sagas]\n', "keys.a.public is no Ed25519 key"),
        ('[keys]\n[sagas.s]\nsaga_log=["y"]\nclients=[]\nsteps={}\n', "sagas.s.saga_log names 'y', who has no key"),
        ("[keys]\n[sagas]\n[sages]\n", "unknown field `sages`"),
        ("= nonsense", "is not right"),
    ],
)
def test_a_trust_file_that_is_wrong_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "trust.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refusal:
        Trust.read(path)
    assert said in str(refusal.value)


def test_half_of_a_pair_of_settings_is_refused(keys: Keys) -> None:
    key = str(keys.private("money"))
    for environment, said in (
        ({"CHOREO_SIGNING_KEY_FILE": key, "CHOREO_TRUST_FILE": "x"}, "without CHOREO_SIGNING_KEY_ID"),
        ({"CHOREO_SIGNING_KEY_FILE": key, "CHOREO_SIGNING_KEY_ID": "m"}, "without CHOREO_TRUST_FILE"),
        ({"CHOREO_TRUST_FILE": "/nowhere"}, "cannot be read: No such file"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            signed_by_settings(None, environment)  # type: ignore[arg-type]


def test_a_private_key_is_for_our_eyes_only_and_is_never_overwritten(
    keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys.private("money").stat().st_mode & 0o077 == 0
    assert run_command(["keys", "new", "money-2", "--owner", "money", "--out", str(keys.private("money"))]) == 3
    assert "File exists" in capsys.readouterr().err
