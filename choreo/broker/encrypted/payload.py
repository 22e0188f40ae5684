"""Which parts of a record are the users', and how they are encrypted: AES-256-GCM (NIST SP 800-38D).

An encrypted value stands where the value stood, as {"encrypted": 1, "key": id, "box": nonce and ciphertext in base64},
each with a random nonce. What it is bound to (the saga's name and id) is authenticated with it, so that it cannot be
moved to another saga. An encrypted text of a failure is the same in one string, ``encrypted:1:id:box``.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from choreo.messages.headers import JSON
from choreo.messages.records import AnyRecord, Failure

NONCE_BYTES = 12
TEXT_PREFIX = "encrypted:1:"
TEXT_BYTES_MAX = 40_000  # what is encrypted is a third longer, and has to be within the limit of such a text
TEXTS = ("message", "traceback")
VALUES = ("input", "effect", "result", "payload")
MAPS = ("effects", "signals")


class Encrypted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value that only who has the key can read."""

    encrypted: int
    key: str
    box: str


_encoders: dict[str, Any] = {JSON: msgspec.json, "application/msgpack": msgspec.msgpack}


def encrypted_value(raw: bytes, content_type: str) -> Encrypted | None:
    """The encrypted value that these bytes are; ``None`` if they are a plain one."""
    try:
        found: Encrypted = _encoders[content_type].decode(raw, type=Encrypted)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return found if found.encrypted == 1 else None


def encrypt_value(raw: bytes, key_id: str, key: bytes, bound_to: bytes, content_type: str) -> bytes:
    """A value, encrypted; one that is already is left as it is."""
    if encrypted_value(raw, content_type) is not None:
        return raw
    encrypted: bytes = _encoders[content_type].encode(Encrypted(1, key_id, _box(raw, key, bound_to)))
    return encrypted


def decrypt_box(box: str, key: bytes, bound_to: bytes) -> bytes | None:
    """What is in it; ``None`` if it was altered, moved, or encrypted with another key."""
    try:
        content = base64.b64decode(box, validate=True)
        return AESGCM(key).decrypt(content[:NONCE_BYTES], content[NONCE_BYTES:], bound_to)
    except (binascii.Error, ValueError, InvalidTag):
        return None


def encrypt_text(text: str, key_id: str, key: bytes, bound_to: bytes) -> str:
    """A text of a failure, encrypted; its end is kept if it is long."""
    if text.startswith(TEXT_PREFIX) or not text:
        return text
    return f"{TEXT_PREFIX}{key_id}:{_box(text.encode()[-TEXT_BYTES_MAX:], key, bound_to)}"


def encrypted_text(text: str) -> tuple[str, str] | None:
    """Key id and box of a encrypted text; ``None`` if it is a plain one."""
    if not text.startswith(TEXT_PREFIX):
        return None
    key_id, colon, box = text.removeprefix(TEXT_PREFIX).partition(":")
    return (key_id, box) if colon else None


def with_payload(record: AnyRecord, value: Callable[[bytes], bytes], text: Callable[[str], str]) -> AnyRecord:
    """The record, with each of the users' encoded values and each text of a failure changed."""
    changes: dict[str, Any] = {}
    for name in VALUES:
        found = getattr(record, name, None)
        if isinstance(found, msgspec.Raw):
            changes[name] = msgspec.Raw(value(bytes(found)))
    for name in MAPS:
        found = getattr(record, name, None)
        if found:
            changes[name] = {step: msgspec.Raw(value(bytes(effect))) for step, effect in found.items()}
    failure = getattr(record, "failure", None)
    if isinstance(failure, Failure):
        texts = {name: text(said) for name in TEXTS if (said := getattr(failure, name))}
        changes["failure"] = msgspec.structs.replace(failure, **texts)
    return msgspec.structs.replace(record, **changes)


def _box(content: bytes, key: bytes, bound_to: bytes) -> str:
    nonce = secrets.token_bytes(NONCE_BYTES)
    return base64.b64encode(nonce + AESGCM(key).encrypt(nonce, content, bound_to)).decode()
