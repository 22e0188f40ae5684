"""The keys of a deployment: who may sign what, from the contracts and services themselves, and a key for each part.

A directory has, for each part, what that part alone is given: ``payment/key.pem`` and ``payment/trust.toml``. The trust
file is the same in all of them; ``choreo.broker.signed.trust`` says what stands in it.
"""

from __future__ import annotations

import base64
import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from choreo.contract.saga import Saga
from choreo.errors import ConfigurationError

BOOTSTRAP, CLIENT, OPERATOR, SAGA_LOG, AUDIT, SEALER = "bootstrap", "client", "operator", "saga-log", "audit", "sealer"
KEY, PUBLIC_KEY, TRUST = "key.pem", "public.pem", "trust.toml"
SECRET_PREFIX = "signing-"  # noqa: S105 - a name

Hosted = Iterable[tuple[str, str]]


def owners_text(sagas: Mapping[str, Saga], services: Sequence[tuple[str, Hosted]]) -> str:
    """Who may write what, as the trust file has it.

    Args:
        sagas: by name.
        services: each one's name, and the saga and the name of each step that it runs.

    Raises:
        ConfigurationError: nobody runs a step.
    """
    owners: dict[str, dict[str, list[str]]] = {
        # A step that is a saga is answered by that saga's saga-log.
        name: {step.name: [SAGA_LOG] if step.child else [] for step in saga.steps}
        for name, saga in sorted(sagas.items())
    }
    for service, hosted in services:
        for saga_name, step in hosted:
            names = owners[saga_name].setdefault(step, [])
            if service not in names:
                names.append(service)
    lonely = [f"{saga}.{step}" for saga, steps in owners.items() for step, names in steps.items() if not names]
    if lonely:
        raise ConfigurationError(f"no service here runs {', '.join(lonely)}; name the services that do")
    lines = [f"[contracts]\nregistrars = {json.dumps([BOOTSTRAP])}\n"]
    for saga_name, steps in owners.items():
        lines += [
            f"[sagas.{saga_name}]",
            f"saga_log = {json.dumps([SAGA_LOG])}",
            f"clients = {json.dumps([CLIENT, OPERATOR, SAGA_LOG])}",
            "",
            f"[sagas.{saga_name}.steps]",
            *(f"{step} = {json.dumps(names)}" for step, names in steps.items()),
            "",
        ]
    return "\n".join(lines)


def key_text(key_id: str, owner: str, public: str, until: str = "") -> str:
    """A key, as the trust file has it."""
    rotated = f"until = {until}\n" if until else ""
    return f'[keys."{key_id}"]\nowner = "{owner}"\npublic = "{public}"\n{rotated}\n'


def new_key(path: Path) -> str:
    """Make an Ed25519 key in a file that only we may read, and return the public half as the trust file has it.

    Raises:
        ConfigurationError: the file is there, or cannot be written; or the package ``cryptography`` is missing.
    """
    ed25519, serialization = _cryptography()
    private = ed25519.Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()


def public_of(path: Path) -> str:
    """The public half of a key that is there.

    Raises:
        ConfigurationError: it cannot be read, or is no Ed25519 key.
    """
    from choreo.broker.signed.broker import Signer

    return Signer.read(path, path.parent.name).public


def equip(directory: Path, sagas: Mapping[str, Saga], services: Sequence[tuple[str, Hosted]]) -> dict[str, Path]:
    """Give each part of a deployment a directory of its own with its key and the trust file.

    What is there stays: keys are made only where there is none, and keys that somebody has added to the trust files, as
    when one is rotated, are kept in them.

    Returns:
        The directory of each part.

    Raises:
        ConfigurationError: something cannot be read or written, a file that is there is wrong, nobody runs a step.
    """
    owners = owners_text(sagas, services)
    parts = {
        name: directory / name
        for name in (BOOTSTRAP, CLIENT, OPERATOR, SAGA_LOG, *sorted({name for name, _ in services}), SEALER, AUDIT)
    }
    known = _keys_in(directory / AUDIT / TRUST)
    for name, path in parts.items():
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be made: {error.strerror}") from error
        if name == AUDIT:
            continue  # it only reads
        key = path / KEY
        public = public_of(key) if key.exists() else new_key(key)
        if name == SEALER:
            _write(path / PUBLIC_KEY, _public_pem(public))  # for those who check proofs
        elif all(each["public"] != public for each in known.values()):
            known[_free_id(name, known)] = {"owner": name, "public": public}
    text = "".join(
        key_text(key_id, key["owner"], key["public"], _instant(key.get("until"))) for key_id, key in known.items()
    )
    for path in parts.values():
        _write(path / TRUST, text + owners)
    return parts


def secrets(parts: Mapping[str, Path]) -> str:
    """A Kubernetes ``Secret`` for each part, named ``signing-`` and the part, with the files of its directory."""
    import yaml

    return str(
        yaml.safe_dump_all(
            (
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": f"{SECRET_PREFIX}{name}"},
                    "type": "Opaque",
                    "stringData": {file.name: file.read_text() for file in sorted(path.iterdir())},
                }
                for name, path in parts.items()
            ),
            sort_keys=False,
            explicit_start=True,
        )
    )


def _keys_in(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    from choreo.broker.signed.trust import Trust

    Trust.read(path)  # says what is wrong with it
    return dict(tomllib.loads(path.read_text(encoding="utf-8"))["keys"])


def _free_id(owner: str, known: Mapping[str, Any]) -> str:
    number = 1
    while f"{owner}-{number}" in known:
        number += 1
    return f"{owner}-{number}"


def _instant(until: Any) -> str:
    return "" if until is None else until.isoformat()


def _public_pem(public: str) -> str:
    ed25519, serialization = _cryptography()
    key = ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(public))
    pem: bytes = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ConfigurationError("keys need the extra `security`: pip install 'choreo-sagas[security]'") from error
    return ed25519, serialization
