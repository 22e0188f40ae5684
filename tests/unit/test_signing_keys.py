"""``choreo keys init``: each part gets a key of its own, and nothing that is there is lost."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

from choreo.audit.signing import Ed25519Signer, read_public_key
from choreo.broker.signed.trust import Trust
from choreo.cli.app import run_command

SERVICES = ("inventory", "payment", "shipping", "notification")
PARTS = ["services.order:ORDER", *(f"services.{name}:service" for name in SERVICES)]
SIGNING = {"bootstrap", "client", "operator", "saga-log", *SERVICES}


def init(directory: Path, *options: str) -> None:
    assert run_command(["keys", "init", *PARTS, "--directory", str(directory), *options]) == 0


def test_each_part_is_given_what_it_needs_and_no_more(tmp_path: Path) -> None:
    init(tmp_path)
    found = {path.name: {file.name for file in path.iterdir()} for path in tmp_path.iterdir()}
    assert found == {
        **{name: {"key.pem", "trust.toml"} for name in SIGNING},
        "audit": {"trust.toml"},
        "sealer": {"key.pem", "public.pem", "trust.toml"},
    }
    for name in SIGNING:
        assert (tmp_path / name / "key.pem").stat().st_mode & 0o077 == 0
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
        Trust.read(tmp_path / name / "trust.toml")
    sealer = Ed25519Signer.from_file(str(tmp_path / "sealer" / "key.pem"))
    assert read_public_key(str(tmp_path / "sealer" / "public.pem")) == sealer.public_key


def test_what_is_there_stays(tmp_path: Path) -> None:
    init(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    trust = tmp_path / "audit" / "trust.toml"
    rotated = '[keys."payment-0"]\nowner = "payment"\npublic = "{}"\nuntil = 2026-12-01T00:00:00Z\n'
    inventory = tomllib.loads(trust.read_text())["keys"]["inventory-1"]["public"]
    trust.write_text(rotated.format(inventory) + trust.read_text())
    init(tmp_path)
    after = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    assert {path for path in after if after[path] != before[path]} == {path for path in after if path.suffix == ".toml"}
    kept = tomllib.loads((tmp_path / "payment" / "trust.toml").read_text())["keys"]
    assert kept["payment-0"]["until"].isoformat() == "2026-12-01T00:00:00+00:00"
    assert len(kept) == len(SIGNING) + 1
    (tmp_path / "payment" / "key.pem").unlink()
    init(tmp_path)
    assert {"payment-1", "payment-2"} <= set(tomllib.loads(trust.read_text())["keys"]), "a lost key gets a successor"


def test_secrets_for_kubernetes_have_the_same_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path, "--format", "kubernetes")
    secrets = {each["metadata"]["name"]: each for each in yaml.safe_load_all(capsys.readouterr().out)}
    assert set(secrets) == {f"signing-{name}" for name in (*SIGNING, "audit", "sealer")}
    for name in SIGNING:
        content = secrets[f"signing-{name}"]["stringData"]
        assert content == {file.name: file.read_text() for file in (tmp_path / name).iterdir()}


def test_a_trust_file_that_is_wrong_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path)
    trust = tmp_path / "audit" / "trust.toml"
    trust.write_text("keys = 3\n")
    assert run_command(["keys", "init", *PARTS, "--directory", str(tmp_path)]) == 3
    assert str(trust) in capsys.readouterr().err
    assert trust.read_text() == "keys = 3\n"


def test_a_step_that_nobody_runs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["keys", "init", *PARTS[:-1], "--directory", str(tmp_path / "keys")]) == 3
    assert "no service here runs order.notify_customer" in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()
