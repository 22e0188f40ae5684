"""Sealed logs and proofs: what is proven holds, and whatever is changed in log or file is found."""

from __future__ import annotations

import json
import subprocess
from base64 import b64encode
from pathlib import Path
from typing import Any

import msgspec
import pytest

from choreo.audit import Checkpoint, Proof, check_proof, prove, read_checkpoints, read_proof, seal, verify
from choreo.audit.signing import Ed25519Signer, read_public_key
from choreo.broker.memory import MemoryBroker
from choreo.broker.port import TopicPartition
from choreo.broker.registry import Registry
from choreo.broker.topics import checkpoint_topic
from choreo.cli.app import run_command
from choreo.cli.exits import Exit
from choreo.errors import ConfigurationError, SagaNotFound
from tests.unit.audit.recorded import LINE, Recorder, log_of

TP = TopicPartition("choreo.order", 0)


def written(*saga_ids: str, told: Recorder | None = None) -> Recorder:
    """Sagas that complete, their records interleaved."""
    told = told or Recorder(LINE)
    for saga_id in saga_ids:
        told.start(saga_id)
    for step in "abc":
        for saga_id in saga_ids:
            told.completed(saga_id, step)
    return told


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.audit.segments.SEGMENT_RECORDS", 4)


async def sealed(*saga_ids: str, **options: Any) -> tuple[MemoryBroker, list[Checkpoint]]:
    broker, _ = await log_of(LINE, written(*saga_ids).messages)
    return broker, await seal(broker, "order", **options)


def append(broker: MemoryBroker, told: Recorder) -> None:
    partition = broker._log._partitions[TP]
    for message in told.messages[partition.end :]:
        partition._records[message.offset] = message
        partition.end = message.offset + 1


async def test_all_that_is_new_is_sealed_in_segments_that_follow_each_other(small: None) -> None:
    told = written("m", "z")
    broker, _ = await log_of(LINE, told.messages)
    made = await seal(broker, "order")
    assert [(one.first, one.end, one.records) for one in made] == [(0, 4, 4), (4, 8, 4), (8, 10, 2)]
    assert [one.previous for one in made[1:]] == [one.hash for one in made[:-1]]
    assert await seal(broker, "order") == []
    append(broker, written("q", told=told))
    more = await seal(broker, "order")
    assert (more[0].first, more[0].previous) == (10, made[-1].hash)
    found = await read_checkpoints(broker, "order")
    assert (found.chains, found.odd) == ({0: [*made, *more]}, [])


@pytest.mark.parametrize("saga_id", ["a-first", "m", "z"])
async def test_a_proof_holds_and_names_the_records_of_its_saga(small: None, saga_id: str) -> None:
    broker, made = await sealed("a-first", "m", "z")
    proof = await prove(broker, "order", saga_id)
    read = read_proof(msgspec.json.encode(proof))
    assert read == proof
    found = check_proof(read, checkpoint=made[-1].hash)
    assert found.problems == ()
    assert found.anchored
    assert found.types == ("saga_started", "step_completed", "step_completed", "step_completed", "saga_completed")
    assert (found.first, found.end, found.unsealed) == (0, 15, 0)
    assert not check_proof(read).anchored


@pytest.mark.parametrize("saga_id", ["a", "n", "zz"])
async def test_that_a_segment_has_nothing_of_a_saga_is_shown_by_its_neighbours(small: None, saga_id: str) -> None:
    told = written("m", "q")
    written(saga_id, told=told)
    broker, _ = await log_of(LINE, told.messages)
    await seal(broker, "order")
    proof = await prove(broker, "order", saga_id)
    assert proof.segments[0].head is None
    assert 1 <= len(proof.segments[0].neighbours) <= 2
    assert check_proof(proof).holds
    hidden = msgspec.structs.replace(proof.segments[0], neighbours=())
    assert not check_proof(msgspec.structs.replace(proof, segments=(hidden, *proof.segments[1:]))).holds


async def test_what_is_not_sealed_is_not_proven(small: None) -> None:
    told = written("m")
    broker, _ = await log_of(LINE, told.messages)
    with pytest.raises(ConfigurationError, match="run choreo audit seal order"):
        await prove(broker, "order", "m")
    await seal(broker, "order")
    append(broker, written("late", told=told))
    assert len((await prove(broker, "order", "late")).unsealed) == 5
    with pytest.raises(SagaNotFound):
        await prove(broker, "order", "nobody")


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all leaves of a JSON document."""
    if isinstance(value, dict):
        return [each for key, inner in value.items() for each in paths(inner, (*at, key))]
    if isinstance(value, list):
        return [each for number, inner in enumerate(value) for each in paths(inner, (*at, number))]
    return [at]


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, int):
        return value + 1
    text = str(value)
    return text[:-1] + ("0" if text[-1:] != "0" else "1") if text else "00"


async def test_whatever_is_changed_in_a_proof_it_does_not_hold_any_more(small: None) -> None:
    broker, made = await sealed("a-first", "m", "z")
    document = json.loads(msgspec.json.encode(await prove(broker, "order", "m")))
    harmless = {("format",), ("saga",), ("saga_id",)}
    tried = 0
    for path in paths(document):
        if path in harmless or path[-1] in ("signature", "public_key"):
            continue
        damaged = json.loads(json.dumps(document))
        place = damaged
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = changed(place[path[-1]])
        proof = msgspec.convert(damaged, Proof)
        found = check_proof(proof, checkpoint=made[-1].hash)
        if path[-1] in ("key", "value") or "headers" in path:  # the last letter of base64 may hold no bit of the bytes
            continue
        assert not found.holds, path
        tried += 1
    assert tried > 60


async def test_records_that_are_dropped_changed_or_moved_in_a_proof_are_missed(small: None) -> None:
    broker, _ = await sealed("m", "z")
    proof = await prove(broker, "order", "m")
    at = next(number for number, segment in enumerate(proof.segments) if len(segment.records) > 1)
    segment = proof.segments[at]
    first, *rest = segment.records
    other = msgspec.structs.replace(first, value=b64encode(b"{}").decode())
    for records, why in (
        (tuple(rest), "one is missing"),
        ((*rest, first), "not in order"),
        ((first, first, *rest), "not in order"),
        ((other, *rest), "it was changed, or never there"),
        ((), "one is missing"),
    ):
        damaged = msgspec.structs.replace(segment, records=records)
        found = check_proof(
            msgspec.structs.replace(proof, segments=(*proof.segments[:at], damaged, *proof.segments[at + 1 :]))
        )
        assert any(why in problem for problem in found.problems), found.problems
    for segments in (proof.segments[:1] + proof.segments[2:], proof.segments[::-1]):
        assert not check_proof(msgspec.structs.replace(proof, segments=segments)).holds
    assert not check_proof(msgspec.structs.replace(proof, segments=())).holds


async def test_another_sagas_proof_is_not_this_ones(small: None) -> None:
    broker, _ = await sealed("m", "z")
    proof = await prove(broker, "order", "m")
    assert not check_proof(msgspec.structs.replace(proof, saga_id="z")).holds


async def test_a_log_that_was_changed_after_it_was_sealed_is_found_by_verify_and_cannot_be_proven(small: None) -> None:
    broker, made = await sealed("m", "z")
    registry = Registry(broker)
    found = await verify(broker, "order", registry=registry, now_ms=made[-1].at_ms)
    assert found.sound, found.faults
    assert found.partitions[0].segments == 3
    records = broker._log._partitions[TP]._records
    headers = (*records[5].headers, ("note", b"a word"))
    records[5] = msgspec.structs.replace(records[5], headers=headers)  # says the same as before to every reader
    found = await verify(broker, "order", registry=registry, now_ms=made[-1].at_ms)
    assert [(one.kind, one.offset) for one in found.faults] == [("root_differs", 4)]
    with pytest.raises(ConfigurationError, match="are not what was sealed"):
        await prove(broker, "order", "m")


async def test_a_checkpoint_that_does_not_follow_is_odd(small: None) -> None:
    broker, made = await sealed("m")
    producer = await broker.producer()
    forged = msgspec.structs.replace(made[-1], root="0" * 64, previous=made[-1].hash)
    for value in (msgspec.json.encode(forged), b"{}", msgspec.json.encode(made[-1])):
        await producer.send(checkpoint_topic("order"), key="0", value=value)
    found = await read_checkpoints(broker, "order")
    assert found.chains == {0: made}
    assert [why[:16] for _, why in found.odd] == ["it begins at off", "not a checkpoint"]
    verified = await verify(broker, "order", registry=Registry(broker), now_ms=made[-1].at_ms)
    assert verified.faults_total == {"root_differs": 2}


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """PEM files as openssl writes them."""
    found = {}
    for name in ("ours", "theirs"):
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
        found |= {name: str(private), f"{name}.pub": str(public)}
    return found


async def test_signed_checkpoints_anchor_a_proof(small: None, keys: dict[str, str]) -> None:
    signer = Ed25519Signer.from_file(keys["ours"])
    assert read_public_key(keys["ours.pub"]) == signer.public_key
    broker, _ = await sealed("m", "z", signer=signer)
    proof = await prove(broker, "order", "m")
    assert check_proof(proof, public_key=signer.public_key).anchored
    found = check_proof(proof, public_key=read_public_key(keys["theirs.pub"]))
    assert not found.holds
    assert "not signed by" in found.problems[0]
    forged = msgspec.structs.replace(proof.segments[0].checkpoint, at_ms=1)
    segment = msgspec.structs.replace(proof.segments[0], checkpoint=forged)
    changed_proof = msgspec.structs.replace(proof, segments=(segment, *proof.segments[1:]))
    assert not check_proof(changed_proof, public_key=signer.public_key).holds


def test_keys_that_are_none_are_refused(tmp_path: Path, keys: dict[str, str]) -> None:
    (tmp_path / "text").write_text("no key")
    subprocess.run(["openssl", "genpkey", "-algorithm", "x25519", "-out", tmp_path / "x.pem"], check=True)
    for path, why in (("nowhere", "cannot be read"), ("text", "no private key"), ("x.pem", "an Ed25519 key is needed")):
        with pytest.raises(ConfigurationError, match=why):
            Ed25519Signer.from_file(str(tmp_path / path))
    with pytest.raises(ConfigurationError, match="neither 64 hex digits nor"):
        read_public_key(keys["ours"])


@pytest.mark.parametrize("value", [b"", b"{}", b"[1]", b'{"format":"other"}'])
def test_what_is_no_proof_is_refused(value: bytes) -> None:
    with pytest.raises(ConfigurationError, match="not a proof"):
        read_proof(value)


def test_the_commands_seal_prove_and_check_without_the_broker(
    tmp_path: Path, keys: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    from choreo.broker import open_broker
    from choreo.broker.registry import ensure_saga_topics, register
    from tests.unit.by_hand import LINE as HAND
    from tests.unit.by_hand import Pen

    url, file = f"sqlite:///{tmp_path}/log.db", str(tmp_path / "proof.json")

    async def fill() -> None:
        broker = await open_broker(url)
        await ensure_saga_topics(broker, [HAND], partitions=2)
        await register(broker, [HAND])
        pen = Pen(broker, await broker.producer(), HAND)  # type: ignore[arg-type]
        for saga_id in ("s", "t", "u"):
            await pen.whole_line(saga_id)
        await broker.close()

    asyncio.run(fill())
    assert run_command(["audit", "prove", "order", "s", "--broker", url]) == Exit.CONFIGURATION
    assert run_command(["audit", "seal", "order", "--key", keys["ours"], "--broker", url]) == Exit.DONE
    said = capsys.readouterr()
    assert "signed by" in said.out
    assert run_command(["audit", "prove", "order", "s", "--output", file, "--broker", url]) == Exit.DONE
    (tmp_path / "log.db").unlink()
    assert run_command(["audit", "check-proof", file, "--public-key", keys["ours.pub"]]) == Exit.DONE
    assert "saga s: 4 records, saga_started, step_completed" in capsys.readouterr().out
    assert run_command(["audit", "check-proof", file]) == Exit.DONE
    assert "NOT ANCHORED" in capsys.readouterr().out
    assert run_command(["audit", "check-proof", file, "--public-key", keys["theirs.pub"], "--json"]) == Exit.NO
    assert json.loads(capsys.readouterr().out)["holds"] is False
    assert run_command(["audit", "check-proof", str(tmp_path / "none")]) == Exit.CONFIGURATION
