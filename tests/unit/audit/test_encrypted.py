"""Logs whose payloads are encrypted: verified, sealed and proven without the keys, and after one is deleted."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from choreo.audit import check_proof, prove, seal, verify
from choreo.audit.veiled import is_veiled, veiled
from choreo.broker.encrypted import DirectoryKeys
from choreo.broker.encrypted.broker import Encryption
from choreo.broker.port import Message
from choreo.broker.registry import Registry
from choreo.messages.codec import decode, encode
from choreo.messages.records import StepCompleted
from tests.unit.audit.recorded import HISTORIES, T0, log_of

LATER = T0 + 3_600_000


@pytest.fixture
def encryption(tmp_path: Path) -> Encryption:
    return Encryption(DirectoryKeys(tmp_path / "keys"), "")


def encrypted(message: Message, encryption: Encryption) -> Message:
    """As it would stand in the log: each sender encrypts anew what it has in the clear."""
    record = decode(message.key, message.value, message.headers)
    return msgspec.structs.replace(message, value=encode(encryption.encrypt(record, "application/json")))


@pytest.mark.parametrize("name", HISTORIES)
async def test_what_is_encrypted_anew_in_each_record_is_sound_without_a_key(name: str, encryption: Encryption) -> None:
    told = HISTORIES[name]()
    messages = [encrypted(message, encryption) for message in told.messages]
    assert b"encrypted" in messages[0].value
    again = [*messages, msgspec.structs.replace(encrypted(told.messages[1], encryption), offset=len(messages))]
    last = messages[-1].timestamp_ms
    again[-1] = msgspec.structs.replace(again[-1], timestamp_ms=last)
    broker, registry = await log_of(told.contract, again)
    found = await verify(broker, told.contract.name, registry=registry, now_ms=LATER)
    assert found.sound, found.faults
    assert found.notices_total["repeated"] == 1


async def test_a_proof_holds_when_the_key_is_gone(encryption: Encryption) -> None:
    told = HISTORIES["back"]()
    broker, _ = await log_of(told.contract, [encrypted(message, encryption) for message in told.messages])
    await seal(broker, "order")
    proof = await prove(broker, "order", "s")
    assert check_proof(proof).holds
    assert (await verify(broker, "order", registry=Registry(broker), now_ms=LATER)).partitions[0].segments == 1


async def test_a_plain_value_in_the_place_of_an_encrypted_one_is_found(encryption: Encryption) -> None:
    told = HISTORIES["happy"]()
    messages = [encrypted(message, encryption) for message in told.messages]
    record = decode(messages[2].key, messages[2].value, messages[2].headers)
    assert isinstance(record, StepCompleted)
    forged = msgspec.structs.replace(record, effects={"a": msgspec.Raw(b'"forged"')})
    messages[2] = msgspec.structs.replace(messages[2], value=encode(forged))
    broker, registry = await log_of(told.contract, messages)
    assert set((await verify(broker, "order", registry=registry, now_ms=LATER)).faults_total) == {"altered"}


@pytest.mark.parametrize("raw", [b'{"encrypted":1,}', b'{"encrypted":1,"box":"x"}', b"\x83\xa9encrypted\x01"])
def test_what_only_looks_encrypted_is_left_as_it_is(raw: bytes) -> None:
    assert is_veiled(raw)
    assert bytes(veiled(raw)) == raw


def test_values_under_other_keys_differ() -> None:
    ours, theirs = (
        json.dumps({"encrypted": 1, "key": key, "box": "x"}, separators=(",", ":")).encode() for key in ("a", "b")
    )
    assert veiled(ours) != veiled(theirs)
    assert veiled(ours) == veiled(ours.replace(b'"x"', b'"y"'))
