"""A broker whose records are signed on the way in and verified on the way out."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from choreo.broker.port import Broker, Headers, Message
from choreo.broker.signed.envelope import SIGNATURE, covered_bytes, taken_apart, written
from choreo.broker.signed.trust import Distrusted, Trust
from choreo.broker.topics import CONTRACTS_TOPIC, is_saga_topic, saga_of
from choreo.broker.wrapped import WrappedBroker
from choreo.errors import ConfigurationError
from choreo.messages.codec import content_type_of
from choreo.messages.headers import SET_ASIDE, UNBELIEVED

KEY_FILE, KEY_ID, TRUST_FILE = "CHOREO_SIGNING_KEY_FILE", "CHOREO_SIGNING_KEY_ID", "CHOREO_TRUST_FILE"


class Signer:
    """Our own key."""

    def __init__(self, key_id: str, private: Ed25519PrivateKey) -> None:
        self.key_id = key_id
        self._private = private

    @classmethod
    def read(cls, path: Path, key_id: str) -> Signer:
        """From a PEM file.

        Raises:
            ConfigurationError: it cannot be read, or is no Ed25519 key.
        """
        try:
            private = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigurationError(f"the signing key {path} cannot be read: {error}") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigurationError(f"the signing key {path} is no Ed25519 key; `choreo keys new` makes one")
        return cls(key_id, private)

    @property
    def public(self) -> str:
        """The public half, as the trust file has it."""
        return base64.b64encode(self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()

    def header(self, topic: str, key: bytes, value: bytes, headers: Headers) -> tuple[str, bytes]:
        """The header that signs a record."""
        return SIGNATURE, written(self.key_id, self._private.sign(covered_bytes(topic, key, value, headers)))


def signed_by_settings(broker: Broker, environment: Mapping[str, str]) -> Broker:
    """The broker, wrapped if the settings name a key or whom to trust.

    Raises:
        ConfigurationError: a file cannot be used, or half of a pair of settings is missing.
    """
    key_file, key_id, trust_file = (environment.get(name, "") for name in (KEY_FILE, KEY_ID, TRUST_FILE))
    if not (key_file or trust_file):
        return broker
    if key_file and not key_id:
        raise ConfigurationError(f"{KEY_FILE} is set without {KEY_ID}, the key's name in the trust file")
    if not trust_file:
        raise ConfigurationError(f"{KEY_FILE} is set without {TRUST_FILE}; `choreo keys trust` writes one")
    signer = Signer.read(Path(key_file), key_id) if key_file else None
    return SignedBroker(broker, Trust.read(Path(trust_file)), signer)


class SignedBroker(WrappedBroker):
    """Signs what is sent, and delivers nothing that was not signed by who may write it.

    What is not believed is delivered under ``UNBELIEVED``, without the headers that would make it somebody's: step
    services pass it over, and the saga-log puts it into the dead letters. It is never folded, and it fails no step.

    Args:
        inner: the broker.
        trust: who may write what.
        signer: our own key; without one nothing can be sent.
    """

    def __init__(self, inner: Broker, trust: Trust, signer: Signer | None) -> None:
        super().__init__(inner)
        self._trust = trust
        self._signer = signer

    def outgoing(self, topic: str, key: str, value: bytes, headers: Headers) -> tuple[bytes, Headers]:
        """Signed, unless it is: a dead letter that is written back keeps the signature of whoever wrote it first."""
        if not _is_signed(topic) or any(name == SIGNATURE for name, _ in headers):
            return value, headers
        if self._signer is None:
            raise ConfigurationError(
                f"nothing can be written to {topic} without a key of our own; set {KEY_FILE} and {KEY_ID}"
            )
        return value, (*headers, self._signer.header(topic, key.encode(), value, headers))

    def incoming(self, message: Message) -> Message:
        """As it is if it is believed; else under a mark, or as no contract."""
        if not _is_signed(message.topic):
            return message
        try:
            self._check(message)
        except Distrusted as distrusted:
            if message.topic == CONTRACTS_TOPIC:
                return msgspec.structs.replace(message, value=b"")
            return msgspec.structs.replace(message, headers=unbelieved(message.headers, str(distrusted)))
        return message

    def _check(self, message: Message) -> None:
        header = message.header(SIGNATURE)
        if header is None:
            raise Distrusted("it is not signed")
        try:
            key_id, signature = taken_apart(header)
        except ValueError as error:
            raise Distrusted(str(error)) from error
        key = message.key or b""
        covered = covered_bytes(message.topic, key, message.value, message.headers)
        owner = self._trust.signer(key_id, signature, covered, message.timestamp_ms)
        if message.topic == CONTRACTS_TOPIC:
            self._trust.check_contract(owner, key)
        else:
            content_type = content_type_of(message.headers)
            self._trust.check_record(owner, saga_of(message.topic), key, message.value, content_type)


def _is_signed(topic: str) -> bool:
    """Dead letters are evidence, and are delivered as they are; checkpoints bear the signature of whoever seals."""
    return is_saga_topic(topic) or topic == CONTRACTS_TOPIC


def unbelieved(headers: Headers, why: str) -> Headers:
    """Headers of a record that is not believed: the reason, then the old ones under names that nobody acts on."""
    return ((UNBELIEVED, why.encode()), *((f"{SET_ASIDE}{name}", value) for name, value in headers))
