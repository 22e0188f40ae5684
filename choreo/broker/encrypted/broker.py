"""A broker whose records' payloads are encrypted on the way in and opened on the way out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from choreo.broker.encrypted.keys import DirectoryKeys, KeyStore
from choreo.broker.encrypted.payload import (
    decrypt_box,
    encrypt_text,
    encrypt_value,
    encrypted_text,
    encrypted_value,
    with_payload,
)
from choreo.broker.port import Broker, Headers, Message
from choreo.broker.topics import is_saga_topic
from choreo.broker.wrapped import WrappedBroker
from choreo.errors import ConfigurationError, Undecodable
from choreo.messages import codec
from choreo.messages.headers import MSGPACK
from choreo.messages.records import AnyRecord

KEYS, SUBJECT = "CHOREO_PAYLOAD_KEYS", "CHOREO_PAYLOAD_SUBJECT"
REMEMBERED_MAX = 100_000
MARK = b"encrypted"  # stands in every encrypted value and text, in either codec


def encrypted_by_settings(broker: Broker, environment: Mapping[str, str]) -> Broker:
    """The broker, wrapped if the settings say where keys are.

    Raises:
        ConfigurationError: the directory cannot be used.
    """
    directory = environment.get(KEYS, "")
    if not directory:
        return broker
    return EncryptedBroker(broker, DirectoryKeys(Path(directory)), environment.get(SUBJECT, ""))


class EncryptedBroker(WrappedBroker):
    """Encrypts what users put into records, and decrypts what it has a key for. What it has none for stays as it is.

    Args:
        inner: the broker.
        keys: where keys are kept.
        subject: the path in a saga's input to the data subject, as ``customer.id``. Where the input has no such place,
            and with an empty path, each saga is a subject of its own.
    """

    def __init__(self, inner: Broker, keys: KeyStore, subject: str) -> None:
        super().__init__(inner)
        self._encryption = Encryption(keys, subject)

    def outgoing(self, topic: str, key: str, value: bytes, headers: Headers) -> tuple[bytes, Headers]:
        """With its payload encrypted."""
        if not is_saga_topic(topic):
            return value, headers
        try:
            record = codec.decode(key.encode(), value, headers)
        except Undecodable as error:  # a dead letter that is written back: as it is, or not at all
            raise ConfigurationError(f"what cannot be read cannot be encrypted: {error}") from error
        content_type = codec.content_type_of(headers)
        return codec.encode(self._encryption.encrypt(record, content_type), content_type=content_type), headers

    def incoming(self, message: Message) -> Message:
        """With what of its payload there is a key for."""
        if not is_saga_topic(message.topic) or MARK not in message.value:
            return message
        try:
            record = codec.decode(message.key, message.value, message.headers)
        except Undecodable:
            return message  # its reader finds out, and says why
        content_type = codec.content_type_of(message.headers)
        opened = self._encryption.decrypt(record, content_type)
        return msgspec.structs.replace(message, value=codec.encode(opened, content_type=content_type))


class Encryption:
    """Which key is for which saga, and what is done with it."""

    def __init__(self, keys: KeyStore, subject: str) -> None:
        self._keys = keys
        self._path = tuple(part for part in subject.split(".") if part)
        self._key_of: OrderedDict[str, str] = OrderedDict()

    def encrypt(self, record: AnyRecord, content_type: str) -> AnyRecord:
        """The record as it goes into the log."""
        key_id = self._key_for(record, content_type)
        key = self._keys.find_or_make(key_id)
        bound_to = _bound_to(record)
        return with_payload(
            record,
            lambda raw: encrypt_value(raw, key_id, key, bound_to, content_type),
            lambda text: encrypt_text(text, key_id, key, bound_to),
        )

    def decrypt(self, record: AnyRecord, content_type: str) -> AnyRecord:
        """The record as its reader gets it."""
        bound_to = _bound_to(record)

        def value(raw: bytes) -> bytes:
            encrypted = encrypted_value(raw, content_type)
            if encrypted is None:
                return raw
            self._remember(record.saga_id, encrypted.key)
            opened = self._opened(encrypted.key, encrypted.box, bound_to)
            return raw if opened is None else opened

        def text(said: str) -> str:
            parts = encrypted_text(said)
            opened = None if parts is None else self._opened(*parts, bound_to)
            return said if opened is None else opened.decode("utf-8", "replace")

        return with_payload(record, value, text)

    def _opened(self, key_id: str, box: str, bound_to: bytes) -> bytes | None:
        key = self._keys.find(key_id)
        return None if key is None else decrypt_box(box, key, bound_to)

    def _key_for(self, record: AnyRecord, content_type: str) -> str:
        """By the subject in its input; else as the records of the saga that we have read; else the saga's own."""
        said = getattr(record, "input", None)
        if isinstance(said, msgspec.Raw):
            encrypted = encrypted_value(bytes(said), content_type)
            key_id = encrypted.key if encrypted else self._keys.id_of(self._subject(record, bytes(said), content_type))
            return self._remember(record.saga_id, key_id)
        known = self._key_of.get(record.saga_id)
        return known or self._keys.id_of(f"saga:{record.saga}/{record.saga_id}")

    def _subject(self, record: AnyRecord, raw: bytes, content_type: str) -> str:
        found: Any = (msgspec.msgpack if content_type == MSGPACK else msgspec.json).decode(raw) if self._path else None
        for part in self._path:
            found = found.get(part) if isinstance(found, dict) else None
        if isinstance(found, str | int) and not isinstance(found, bool):
            return named_subject(".".join(self._path), str(found))
        return f"saga:{record.saga}/{record.saga_id}"

    def _remember(self, saga_id: str, key_id: str) -> str:
        self._key_of[saga_id] = key_id
        self._key_of.move_to_end(saga_id)
        if len(self._key_of) > REMEMBERED_MAX:
            self._key_of.popitem(last=False)
        return key_id


def named_subject(path: str, value: str) -> str:
    """A data subject, by the path to it and what stands there."""
    return f"{path}:{value}"


def _bound_to(record: AnyRecord) -> bytes:
    return f"{record.saga}/{record.saga_id}".encode()
