"""Encrypted payloads, for those who compare records without the keys.

A value that is encrypted twice is not the same twice, since each time has a random nonce. What can be compared without
the key is whether it is encrypted, and for whom.
"""

from __future__ import annotations

from typing import Any

import msgspec

from choreo.messages.records import Failure, Record

_BEGINNINGS = (b'{"encrypted":1,', b"\x83\xa9encrypted\x01")
_TEXT = "encrypted:1:"


class _Envelope(msgspec.Struct, frozen=True):
    key: str


def is_veiled(value: bytes | msgspec.Raw) -> bool:
    """Whether a user's value is encrypted."""
    return bytes(value).startswith(_BEGINNINGS)


def veiled(value: Any) -> Any:
    """A value of a record (or a record) in which all that is encrypted is replaced by whose key it needs."""
    match value:
        case msgspec.Raw() | bytes():
            raw = bytes(value)
            return msgspec.Raw(_key_of(raw)) if raw.startswith(_BEGINNINGS) else msgspec.Raw(raw)
        case dict():
            return {key: veiled(inner) for key, inner in value.items()}
        case Failure():
            texts = {name: _text(getattr(value, name)) for name in ("message", "traceback")}
            return msgspec.structs.replace(value, **texts)
        case Record():
            names = type(value).__struct_fields__
            changes = {name: veiled(found) for name in names if (found := getattr(value, name)) is not None}
            return msgspec.structs.replace(value, **changes)
    return value


def says_the_same(one: Any, other: Any) -> bool:
    """Whether two values are alike, as far as can be seen without keys."""
    match one, other:
        case (msgspec.Raw() | bytes(), msgspec.Raw() | bytes()):
            return bytes(one) == bytes(other) or veiled(one) == veiled(other)
        case dict(), dict():
            return one.keys() == other.keys() and all(says_the_same(one[key], other[key]) for key in one)
    return bool(one == other or veiled(one) == veiled(other))


def _key_of(raw: bytes) -> bytes:
    try:
        decode = msgspec.json.decode if raw.startswith(b"{") else msgspec.msgpack.decode
        return msgspec.json.encode(f"encrypted:{decode(raw, type=_Envelope).key}")
    except (msgspec.MsgspecError, ValueError):
        return raw  # it only looks like one


def _text(said: str | None) -> str | None:
    return _TEXT + said.removeprefix(_TEXT).partition(":")[0] if said and said.startswith(_TEXT) else said
