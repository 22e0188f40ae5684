"""Payloads in the log: unreadable without a key, erased with it, and in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from choreo import CompensationContext, Context, Reject, Saga, SagaFailed, Step
from choreo.broker.encrypted import DirectoryKeys, EncryptedBroker, encrypted_by_settings
from choreo.broker.encrypted.broker import Encryption, named_subject
from choreo.broker.encrypted.payload import (
    TEXT_BYTES_MAX,
    decrypt_box,
    encrypt_text,
    encrypt_value,
    encrypted_text,
    encrypted_value,
)
from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Broker, Message, TopicPartition
from choreo.broker.registry import ensure_saga_topics
from choreo.cli.app import run_command
from choreo.client import Client
from choreo.errors import ConfigurationError
from choreo.messages.codec import encode
from choreo.messages.headers import JSON, MSGPACK, make_headers
from choreo.messages.records import SagaStarted
from choreo.messages.values import LongText
from choreo.saga_log import SagaLog
from choreo.step import Options, Service, StepRuntime
from choreo.store.memory import MemoryStore

SHOP = Saga("shop", Step("reserve", compensation="release"), Step("charge"))
PATH = "customer.id"
SECRET = "alice@example.org"
released: list[Any] = []


def shop_service() -> Service:
    shop = Service("shop-steps")

    @shop.step(SHOP, "reserve")
    async def reserve(ctx: Context) -> dict[str, str]:
        return {"for": ctx.input["customer"]["mail"]}

    @shop.compensation(SHOP, "reserve")
    async def release(ctx: CompensationContext) -> None:
        released.append(ctx.effect)

    @shop.step(SHOP, "charge")
    async def charge(ctx: Context) -> str:
        if ctx.input["broke"]:
            raise Reject(f"{ctx.input['customer']['mail']} is broke", code="broke")
        return f"charged {ctx.effects['reserve']['for']}"

    return shop


def order(customer: int, *, broke: bool = False) -> dict[str, Any]:
    return {"customer": {"id": customer, "mail": SECRET}, "broke": broke}


@asynccontextmanager
async def running(log: Broker, keys: DirectoryKeys, content_type: str = JSON) -> AsyncIterator[Client]:
    """Services and clients have keys, the saga-log has none."""
    await ensure_saga_topics(log, [SHOP], partitions=1)
    options = Options(poll_timeout_s=0.02, commit_interval_s=0.05)
    runtimes = [
        StepRuntime([shop_service()], EncryptedBroker(log, keys, PATH), options=options),
        SagaLog(log, MemoryStore(), [SHOP]),
    ]
    tasks = [asyncio.create_task(runtime.run()) for runtime in runtimes]
    try:
        async with Client(EncryptedBroker(log, keys, PATH), content_type=content_type) as client:
            yield client
    finally:
        for runtime in runtimes:
            await runtime.stop()
        await asyncio.gather(*tasks)


async def everything(broker: Broker, topic: str = "choreo.shop") -> list[Message]:
    reader = await broker.reader()
    tp = TopicPartition(topic, 0)
    reader.seek(tp, 0)
    _, end = (await broker.offsets([tp]))[tp]
    found: list[Message] = []
    while reader.position(tp) < end:
        found += await reader.poll(timeout_s=0.1)
    await reader.close()
    return found


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
async def test_nothing_of_a_person_stands_in_the_log_and_sagas_run_as_ever(tmp_path: Path, content_type: str) -> None:
    log = await MemoryBroker.open(f"memory://encrypted-{content_type}")
    released.clear()
    async with running(log, DirectoryKeys(tmp_path), content_type) as client:
        outcome = await client.run(SHOP, order(1), id="good")
        decode = msgspec.msgpack.decode if content_type == MSGPACK else msgspec.json.decode
        assert decode(outcome.result) == f"charged {SECRET}"
        with pytest.raises(SagaFailed, match="is broke") as failed:
            await client.run(SHOP, order(2, broke=True), id="bad")
        assert SECRET in str(failed.value)
        assert released == [{"for": SECRET}], "a compensation gets its effect"
    written = await everything(log)
    assert len(written) > 8
    assert not [message for message in written if SECRET.encode() in message.value]
    opened = await everything(EncryptedBroker(log, DirectoryKeys(tmp_path), ""))
    assert [message for message in opened if SECRET.encode() in message.value]
    await log.close()


async def test_a_deleted_key_erases_one_person_and_leaves_the_history(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = await MemoryBroker.open("memory://erased")
    async with running(log, DirectoryKeys(tmp_path)) as client:
        for customer in (1, 2):
            await client.run(SHOP, order(customer), id=f"of-{customer}")
    before = await everything(log)
    assert run_command(["keys", "erase", "1", "--keys", str(tmp_path), "--path", PATH]) == 0
    readable = {
        message.key
        for message in await everything(EncryptedBroker(log, DirectoryKeys(tmp_path), PATH))
        if SECRET.encode() in message.value
    }
    assert readable == {b"of-2"}
    assert await everything(log) == before
    async with Client(log) as client:
        assert (await client.status(SHOP, "of-1")).phase == "completed"
    assert run_command(["keys", "erase", "1", "--keys", str(tmp_path), "--path", PATH]) == 1
    assert f"there is no key for {PATH} = 1" in capsys.readouterr().err
    await log.close()


async def test_a_dead_letter_of_a_service_that_has_the_keys_stays_encrypted(tmp_path: Path) -> None:
    log = await MemoryBroker.open("memory://buried")
    keys = DirectoryKeys(tmp_path)
    await ensure_saga_topics(log, [SHOP], partitions=1)
    ours = EncryptedBroker(log, keys, PATH)
    record = msgspec.structs.replace(started(order(1)), version=99)
    producer = await ours.producer()
    headers = make_headers(record, source="/choreo/newer", content_type=JSON)
    await producer.send("choreo.shop", key=record.saga_id, value=encode(record), headers=headers)
    options = Options(poll_timeout_s=0.02, commit_interval_s=0.05, park_limit_s=0.0)
    runtime = StepRuntime([shop_service()], ours, options=options)
    task = asyncio.create_task(runtime.run())
    async with asyncio.timeout(20):
        while not (letters := await everything(log, "choreo.shop.dead-letters")):
            await asyncio.sleep(0.02)
    await runtime.stop()
    await task
    (original,) = (
        message for message in await everything(log) if message.key == b"s-1" and b"started" in message.value
    )
    assert [letter.value for letter in letters] == [original.value]
    assert SECRET.encode() not in letters[0].value
    await log.close()


def started(user_input: object, saga_id: str = "s-1") -> SagaStarted:
    return SagaStarted(
        saga="shop",
        version=1,
        saga_id=saga_id,
        start="a" * 16,
        contract_hash="b" * 32,
        request="r",
        saga_deadline_ms=1,
        input=msgspec.Raw(msgspec.json.encode(user_input)),
    )


def test_an_encrypted_value_cannot_be_moved_to_another_saga(tmp_path: Path) -> None:
    encryption = Encryption(DirectoryKeys(tmp_path), PATH)
    encrypted = encryption.encrypt(started(order(1)), JSON)
    assert encryption.decrypt(encrypted, JSON) == started(order(1))
    moved = msgspec.structs.replace(encrypted, saga_id="s-2")
    assert encryption.decrypt(moved, JSON) == moved


def test_each_saga_is_a_subject_where_the_input_names_none(tmp_path: Path) -> None:
    keys = DirectoryKeys(tmp_path)
    encryption = Encryption(keys, PATH)
    ids = set()
    for saga_id, user_input in (
        ("a", {}),
        ("b", "text"),
        ("c", {"customer": {"id": None}}),
        ("d", order(7)),
        ("e", order(7)),
    ):
        encrypted = encrypted_value(bytes(encryption.encrypt(started(user_input, saga_id), JSON).input), JSON)
        assert encrypted is not None
        ids.add(encrypted.key)
    assert ids == {keys.id_of(f"saga:shop/{saga_id}") for saga_id in "abc"} | {keys.id_of(named_subject(PATH, "7"))}


def test_what_is_encrypted_is_not_encrypted_again(tmp_path: Path) -> None:
    key = DirectoryKeys(tmp_path).find_or_make("k")
    once = encrypt_value(b'"x"', "k", key, b"s", JSON)
    assert encrypt_value(once, "k", key, b"s", JSON) == once
    text = encrypt_text("x", "k", key, b"s")
    assert encrypt_text(text, "k", key, b"s") == text


def test_the_longest_text_is_encrypted_within_its_limit(tmp_path: Path) -> None:
    key = DirectoryKeys(tmp_path).find_or_make("k")
    text = encrypt_text("é" * 65_536, "k" * 32, key, b"s")
    msgspec.convert(text, LongText)
    parts = encrypted_text(text)
    assert parts is not None
    opened = decrypt_box(parts[1], key, b"s")
    assert opened is not None
    assert len(opened) == TEXT_BYTES_MAX


@pytest.mark.parametrize("box", ["", "AAAA", "not base64!", "A" * 64])
def test_a_box_that_was_altered_does_not_open(tmp_path: Path, box: str) -> None:
    assert decrypt_box(box, DirectoryKeys(tmp_path).find_or_make("k"), b"s") is None


def test_keys_are_made_once_and_are_for_our_eyes_only(tmp_path: Path) -> None:
    one, other = DirectoryKeys(tmp_path / "keys"), DirectoryKeys(tmp_path / "keys")
    assert one.find("k") is None
    assert one.find_or_make("k") == other.find_or_make("k")
    (path,) = (tmp_path / "keys").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="has 5 bytes instead of 32"):
        DirectoryKeys(tmp_path / "keys").find("k")


async def test_without_the_setting_nothing_is_encrypted(tmp_path: Path) -> None:
    log = await MemoryBroker.open("memory://plain")
    assert encrypted_by_settings(log, {}) is log
    assert isinstance(encrypted_by_settings(log, {"CHOREO_PAYLOAD_KEYS": str(tmp_path)}), EncryptedBroker)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        encrypted_by_settings(log, {"CHOREO_PAYLOAD_KEYS": str(tmp_path / "file")})
    await log.close()
