"""Bytes to records and back: one entry each way, limits, and one error type each.

JSON by default: any Kafka tool and any language can read it. MessagePack is an option, for sizes and speed. The
``content-type`` header says which. What a saga's start is written in, all its records are written in, because input
and effects pass through undecoded; ``transcode`` turns a stray one around.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from choreo.errors import Undecodable, Unencodable
from choreo.messages.alphabets import check_of
from choreo.messages.headers import (
    CONTENT_TYPES,
    JSON,
    LEADING,
    MISPLACED,
    MSGPACK,
    UNBELIEVED,
    UNREADABLE,
    VERSION,
    Headers,
    read_route,
)
from choreo.messages.records import RECORD_TYPES, AnyRecord, Record

T = TypeVar("T")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds that are checked before anything is decoded and before anything is sent.

    Attributes:
        value_bytes_max: of a record's value.
        effect_bytes_max: of one effect, or of the input.
        header_count_max, header_bytes_max: of all headers of a record; the bytes count names and values.
    """

    value_bytes_max: int = 900_000
    effect_bytes_max: int = 256_000
    header_count_max: int = 64
    header_bytes_max: int = 16_384


LIMITS = Limits()

_decoders: dict[str, Any] = {
    JSON: msgspec.json.Decoder(AnyRecord),
    MSGPACK: msgspec.msgpack.Decoder(AnyRecord),
}
_DECODERS: dict[bytes | None, tuple[str, Callable[[bytes], AnyRecord]]] = {
    None: (JSON, _decoders[JSON].decode),
    **{name.encode(): (name, _decoders[name].decode) for name in CONTENT_TYPES},
}
_checks = {kind: check_of(kind) for kind in RECORD_TYPES}
_LEADING_COUNT = len(LEADING)
_LEADING_BYTES = len("".join(LEADING))
_encoders: dict[str, Any] = {JSON: msgspec.json.Encoder(), MSGPACK: msgspec.msgpack.Encoder()}
_plain_decoders: dict[str, Any] = {JSON: msgspec.json.Decoder(), MSGPACK: msgspec.msgpack.Decoder()}

_REFUSED_BY_ADAPTERS = {
    UNREADABLE: "the broker's bytes cannot be taken apart",
    MISPLACED: "in the wrong partition",
    UNBELIEVED: "not believed",
}

# msgspec raises its own errors for most bad bytes, and these three for the rest: a string that is not UTF-8 is a
# UnicodeDecodeError (a ValueError), deep nesting a RecursionError, an absurd number an OverflowError.
_DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)


def decode(key: bytes | None, value: bytes, headers: Headers, *, limits: Limits = LIMITS) -> AnyRecord:
    """The record that a message holds; as ``decode_whole``."""
    return decode_whole(key, value, headers, limits=limits)[0]


def decode_whole(
    key: bytes | None, value: bytes, headers: Headers, *, limits: Limits = LIMITS
) -> tuple[AnyRecord, str, bytes | None]:
    """The record that a message holds, what its user values are written in, and the trace that it is in.

    The only way in.

    Raises:
        Undecodable: too large, of an unknown content type or kind, malformed, not keyed by its own saga id, or of
            another version than its headers say.
    """
    if len(value) > limits.value_bytes_max:
        raise Undecodable(f"value has {len(value)} bytes; at most {limits.value_bytes_max} are allowed")
    given, version, traceparent = _read_headers(headers, limits) if headers else (None, None, None)
    found = _DECODERS.get(given)
    if found is None:
        content_type = (given or b"").decode("ascii", "replace")
        raise Undecodable(f"content-type is {content_type!r}; it must be {' or '.join(CONTENT_TYPES)}")
    content_type, decode_value = found
    try:
        record = decode_value(value)
        _checks[type(record)](record)
    except _DECODE_ERRORS as error:
        raise Undecodable(f"not a record of choreo: {_reason(error)}") from error
    if key != record.saga_id.encode():
        raise Undecodable(f"key {key!r} is not the saga id of the record, {record.saga_id!r}")
    if version is not None and version != b"%d" % record.version:  # who goes by the one would not meet the other
        raise Undecodable(f"header {VERSION} is {version!r}, the record is of version {record.version}")
    return record, content_type, traceparent


def _read_headers(headers: Headers, limits: Limits) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Content type, version and trace; of a repeated name the first.

    The headers of nearly all records begin with the same names, so they are taken apart where they stand, without a
    search.

    Raises:
        Undecodable: the headers cannot be accepted.
    """
    count = len(headers)
    if count > limits.header_count_max:
        raise Undecodable(f"record has {count} headers; at most {limits.header_count_max} are allowed")
    if count < _LEADING_COUNT:
        return _find_headers(headers, limits)
    (n0, t0), (n1, t1), (n2, t2), (n3, t3), (n4, t4), (n5, t5), (n6, t6), (n7, t7) = headers[:_LEADING_COUNT]
    if (n0, n1, n2, n3, n4, n5, n6, n7) != LEADING:
        return _find_headers(headers, limits)
    size = _LEADING_BYTES + len(t0) + len(t1) + len(t2) + len(t3) + len(t4) + len(t5) + len(t6) + len(t7)
    traceparent = None
    for name, text in headers[_LEADING_COUNT:]:
        size += len(name) + len(text)
        if name == "traceparent" and traceparent is None:
            traceparent = text
    if size > limits.header_bytes_max:
        raise _too_large(size, limits)
    return t5, t7, traceparent


def _find_headers(headers: Headers, limits: Limits) -> tuple[bytes | None, bytes | None, bytes | None]:
    """As ``_read_headers``, of headers that stand in any order."""
    name, text = headers[0]
    if name in _REFUSED_BY_ADAPTERS:
        raise Undecodable(f"{_REFUSED_BY_ADAPTERS[name]}: {text.decode('utf-8', 'replace')}")
    size = sum(len(name) + len(text) for name, text in headers)
    if size > limits.header_bytes_max:
        raise _too_large(size, limits)
    found = dict(reversed(headers))  # of a repeated name the first counts
    return found.get("content-type"), found.get(VERSION), found.get("traceparent")


def _too_large(size: int, limits: Limits) -> Undecodable:
    return Undecodable(f"headers have {size} bytes; at most {limits.header_bytes_max} are allowed")


def encode(record: Record, *, content_type: str = JSON, limits: Limits = LIMITS) -> bytes:
    """The value of a message that holds the record. What this gives, ``decode`` takes.

    Reading it back costs a microsecond or two, beside a send of hundreds, and finds what the types of a struct do not
    hold: a text over its limit, an id of wrong letters, an effect that is written in the other codec. Sent, such a
    record would be refused by every reader, and the saga would wait for its deadline.

    Raises:
        Unencodable: it is larger than the limit, or ``decode`` would refuse it; the message names the field.
    """
    try:
        value: bytes = _encoders[content_type].encode(record)
        read_back = _decoders[content_type].decode(value)
        _checks[type(read_back)](read_back)
    except (*_DECODE_ERRORS, TypeError) as error:
        raise Unencodable(
            f"{type(record).__name__} of saga {record.saga_id!r} cannot be written: {_reason(error)}"
        ) from error
    if len(value) > limits.value_bytes_max:
        raise Unencodable(
            f"{type(record).__name__} of saga {record.saga_id!r} has {len(value)} bytes, input and effects included; "
            f"at most {limits.value_bytes_max} are allowed. Keep large values elsewhere and pass references"
        )
    return value


def content_type_of(headers: Headers) -> str:
    """What the value is written in; JSON where nothing is said."""
    for name, text in headers:
        if name == "content-type":
            return text.decode("ascii", "replace")
    return JSON


def encode_user_value(value: object, *, content_type: str = JSON, limits: Limits = LIMITS) -> bytes:
    """An input or effect as bytes: whatever msgspec can write (structs, dataclasses, builtins, datetime, UUID, …).

    Map keys are sorted, so that equal values have equal bytes.

    Raises:
        Unencodable: no encoding for the type, or over the limit.
    """
    module = msgspec.json if content_type == JSON else msgspec.msgpack
    try:
        encoded: bytes = module.encode(value, order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise Unencodable(f"a value of type {type(value).__qualname__} cannot be encoded: {error}") from error
    if len(encoded) > limits.effect_bytes_max:
        raise Unencodable(
            f"a value of type {type(value).__qualname__} has {len(encoded)} bytes encoded; "
            f"at most {limits.effect_bytes_max} are allowed. Keep large values elsewhere and pass references"
        )
    return encoded


def decode_user_value(value: bytes | msgspec.Raw, kind: type[T] | Any, *, content_type: str = JSON) -> T:
    """An input or effect as a value of the given type (``Any`` for plain builtins).

    Raises:
        Undecodable: the bytes do not fit the type; the message says where.
    """
    try:
        decoder = _user_decoder(kind, content_type)  # type: ignore[arg-type]
    except TypeError:  # the type has no hash; or msgspec has no way to read it, and says so again
        decoder = _user_decoder.__wrapped__(kind, content_type)
    try:
        decoded: T = decoder.decode(value)
    except _DECODE_ERRORS as error:
        raise Undecodable(_reason(error)) from error
    return decoded


@lru_cache(maxsize=256)
def _user_decoder(kind: Any, content_type: str) -> Any:
    """What reads values of a type. To make it takes msgspec ten times as long as to read a value: services have few."""
    module = msgspec.json if content_type == JSON else msgspec.msgpack
    return module.Decoder(kind)


def transcode(value: bytes, source: str, target: str) -> bytes:
    """A user's value in another codec. Raises ``Undecodable`` for malformed bytes."""
    if source == target:
        return value
    try:
        encoded: bytes = _encoders[target].encode(_plain_decoders[source].decode(value))
    except (*_DECODE_ERRORS, TypeError) as error:
        raise Undecodable(f"cannot turn {source} into {target}: {_reason(error)}") from error
    return encoded


def traceparent_of(headers: Headers) -> bytes | None:
    """The trace context to carry on."""
    return read_route(headers).traceparent


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
