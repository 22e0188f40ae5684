"""Who may write what: a file that is deployed with each part, made by ``choreo keys trust``.

    [keys.payment-1]
    owner = "payment"
    public = "…"                      # Ed25519, 32 bytes in base64

    [keys.payment-0]
    owner = "payment"
    public = "…"
    until = 2026-12-01T00:00:00Z      # rotated: what was appended later is not believed

    [sagas.order]
    saga_log = ["saga-log"]
    clients = ["client", "operator", "saga-log"]
    steps = { reserve = ["inventory"], charge = ["payment"] }

    [contracts]
    registrars = ["bootstrap"]

The file, not the log, is the root of trust: what stands in the log can be written by whoever may write there.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from choreo.broker.announcement import KEY_PREFIX
from choreo.errors import ConfigurationError
from choreo.messages.writers import Writer, writer_of

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public key, whose it is, and the append time from which it is not believed any more."""

    owner: Name
    public: str
    until: dt.datetime | None = None


class SagaOwners(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may write the records of a saga: each list names owners of keys."""

    saga_log: list[Name]
    clients: list[Name]
    steps: dict[str, list[Name]]


class Contracts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may register contracts."""

    registrars: list[Name] = []


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: dict[str, Key]
    sagas: dict[str, SagaOwners]
    contracts: Contracts = Contracts()


class _Parent(msgspec.Struct, frozen=True):
    saga: str


class _Claim(msgspec.Struct, frozen=True):
    """What a record says of itself that decides who may write it."""

    type: str
    saga: str = ""
    saga_id: str = ""
    step: str = ""
    run: str = ""
    parent: _Parent | None = None


_CLAIMS: Mapping[str, Any] = {
    "application/json": msgspec.json.Decoder(_Claim),
    "application/msgpack": msgspec.msgpack.Decoder(_Claim),
}


class Distrusted(Exception):  # noqa: N818 - it says what the record is
    """A record that is not believed; the message says why."""


class Trust:
    """Public keys, and who may write what."""

    def __init__(self, file: _File, source: str) -> None:
        self._sagas = file.sagas
        self._registrars = frozenset(file.contracts.registrars)
        self._keys: dict[str, tuple[Ed25519PublicKey, str, int | None]] = {}
        problems: list[str] = []
        for key_id, key in file.keys.items():
            try:
                public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key.public, validate=True))
            except (ValueError, binascii.Error):
                problems.append(f"keys.{key_id}.public is no Ed25519 key of 32 bytes in base64")
                continue
            until = None if key.until is None else int(key.until.timestamp() * 1_000)
            self._keys[key_id] = (public, key.owner, until)
        owners = {key.owner for key in file.keys.values()}
        problems += [f"{where} names {owner!r}, who has no key" for where, owner in _named(file) if owner not in owners]
        if problems:
            raise ConfigurationError(f"{source} is not right:\n  - " + "\n  - ".join(problems))

    @classmethod
    def read(cls, path: Path) -> Trust:
        """From a file.

        Raises:
            ConfigurationError: it cannot be read, or is wrong; everything that is wrong is named.
        """
        try:
            return cls(msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File), str(path))
        except OSError as error:
            raise ConfigurationError(f"the trust file {path} cannot be read: {error.strerror}") from error
        except (msgspec.ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"the trust file {path} is not right: {error}") from error

    def signer(self, key_id: str, signature: bytes, covered: bytes, appended_ms: int) -> str:
        """Whose signature it is.

        Raises:
            Distrusted: nobody's, or of a key that was not good any more.
        """
        if key_id not in self._keys:
            raise Distrusted(f"nobody here knows a key {key_id!r}")
        public, owner, until = self._keys[key_id]
        if until is not None and appended_ms >= until:
            raise Distrusted(f"the key {key_id!r} of {owner} was good only for what was appended earlier")
        try:
            public.verify(signature, covered)
        except InvalidSignature:
            raise Distrusted(f"the signature by {key_id!r} does not fit the record") from None
        return owner

    def check_record(self, owner: str, saga: str, key: bytes, value: bytes, content_type: str) -> None:
        """Hold a record of a saga's topic against who has signed it. The value is asked, since readers believe it.

        Raises:
            Distrusted: the owner may not write it, or it is no record.
        """
        owners = self._sagas.get(saga)
        if owners is None:
            raise Distrusted(f"nobody is named who may write saga {saga!r}")
        try:
            claim = _CLAIMS[content_type].decode(value)
        except (KeyError, msgspec.MsgspecError, ValueError, RecursionError, OverflowError):
            raise Distrusted("it is no record") from None
        if claim.saga != saga or claim.saga_id.encode() != key:
            raise Distrusted("it says that it belongs to another saga")
        if owner not in self._writers(claim, owners):
            about = f" of step {claim.step!r}" if claim.step else ""
            child = f" as a step of saga {claim.parent.saga!r}" if claim.parent else ""
            raise Distrusted(f"{owner} may not write {claim.type}{about} of saga {saga!r}{child}")

    def _writers(self, claim: _Claim, owners: SagaOwners) -> list[str]:
        match writer_of(claim.type, run=claim.run, has_parent=claim.parent is not None):
            case Writer.CLIENT:
                return owners.clients
            case Writer.STEP:
                return owners.steps.get(claim.step, [])
            case Writer.SAGA_LOG:
                return owners.saga_log
            case Writer.PARENT:
                parent = self._sagas.get(claim.parent.saga) if claim.parent else None
                return parent.saga_log if parent else []
        return []

    def check_contract(self, owner: str, key: bytes) -> None:
        """Hold a contract, or a service's word of what it runs, against who has signed it.

        Raises:
            Distrusted: the owner may not register contracts, nor speak for that service.
        """
        if owner not in self._registrars and key != f"{KEY_PREFIX}{owner}".encode():
            raise Distrusted(f"{owner} may not register contracts, nor speak for another service")


def _named(file: _File) -> list[tuple[str, str]]:
    found = [("contracts.registrars", owner) for owner in file.contracts.registrars]
    for name, saga in file.sagas.items():
        lists = {"saga_log": saga.saga_log, "clients": saga.clients}
        lists |= {f"steps.{step}": owners for step, owners in saga.steps.items()}
        found += [(f"sagas.{name}.{where}", owner) for where, owners in lists.items() for owner in owners]
    return found
