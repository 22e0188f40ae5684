"""Bytes to records and back: what is written can be read, and what is read can be trusted or is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import json
import uuid
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from choreo.errors import Undecodable, Unencodable
from choreo.messages import codec
from choreo.messages.codec import (
    LIMITS,
    Limits,
    decode,
    decode_user_value,
    encode,
    encode_user_value,
    traceparent_of,
    transcode,
)
from choreo.messages.family import SagaUndone, UndoRequested
from choreo.messages.headers import CONTENT_TYPES, JSON, LEADING, MSGPACK, VERSION, Headers, make_headers
from choreo.messages.records import (
    RECORD_TYPES,
    CancelRefused,
    CancelRequested,
    CancelStep,
    Compensate,
    CompensationFailed,
    Execute,
    Failure,
    OperatorActed,
    Record,
    RoundStarted,
    SagaCompensated,
    SagaCompleted,
    SagaPaused,
    SagaResumed,
    SagaStarted,
    SagaStuck,
    SignalReceived,
    StartRefused,
    StepCompensated,
    StepCompleted,
    StepFailed,
    StepSkipped,
    TypePaused,
    TypeResumed,
)
from tests.unit.wire_examples import ABOUT, FAILURE, SAGA_ID, START, STEP, wire_examples

KEY = SAGA_ID.encode()
AS = {content_type: (("content-type", content_type.encode()),) for content_type in CONTENT_TYPES}
EVERY_RECORD = [
    pytest.param(record, content_type, id=f"{kind.__name__}-{content_type.rpartition('/')[2]}")
    for content_type in CONTENT_TYPES
    for kind, record in wire_examples(content_type).items()
]
VALID = [
    (encode(record, content_type=content_type), AS[content_type])
    for content_type in CONTENT_TYPES
    for record in wire_examples(content_type).values()
]
STARTED = wire_examples()[SagaStarted]
STARTED_JSON = encode(STARTED)


def refused(
    value: bytes, headers: Headers = AS[JSON], *, key: bytes | None = KEY, limits: Limits = codec.LIMITS
) -> str:
    with pytest.raises(Undecodable) as error:
        decode(key, value, headers, limits=limits)
    return str(error.value)


# Round trips


def test_there_is_an_example_of_every_record() -> None:
    assert set(wire_examples()) == set(RECORD_TYPES)


@pytest.mark.parametrize(("record", "content_type"), EVERY_RECORD)
def test_every_record_survives_the_wire(record: Record, content_type: str) -> None:
    value = encode(record, content_type=content_type)
    headers = make_headers(record, source="/choreo/test", content_type=content_type)
    again = decode(KEY, value, headers)
    assert again == record
    assert encode(again, content_type=content_type) == value
    assert again.id == record.id


@pytest.mark.parametrize("kind", RECORD_TYPES)
def test_a_record_without_its_optional_fields_survives_the_wire_and_has_the_defaults(kind: type[Record]) -> None:
    full = msgspec.json.decode(encode(wire_examples()[kind]))
    needed = {field.encode_name for field in msgspec.structs.fields(kind) if field.required} | {"type"}
    value = json.dumps({name: part for name, part in full.items() if name in needed}).encode()
    record = decode(KEY, value, ())
    assert type(record) is kind
    for field in msgspec.structs.fields(kind):
        if not field.required:
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            assert getattr(record, field.name) == default
    assert decode(KEY, encode(record), ()) == record


def test_without_a_content_type_the_value_is_json() -> None:
    assert decode(KEY, STARTED_JSON, ()) == STARTED


def test_the_users_values_pass_through_byte_for_byte() -> None:
    odd = b'{"b" : 1.50,\n "a":"\\u00e4\\/", "a":[ ]}'
    record = StepCompleted(
        **STEP, run="r", due_ms=1, saga_due_ms=1, input=Raw(odd), effects={"x": Raw(odd)}, effect=Raw(odd)
    )
    again = decode(KEY, encode(record), ())
    assert isinstance(again, StepCompleted)
    assert bytes(again.input) == bytes(again.effect) == bytes(again.effects["x"]) == odd
    assert encode(again).count(odd) == 3


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_an_effect_of_null_is_an_effect_and_an_absent_one_is_none(content_type: str) -> None:
    null = Raw(encode_user_value(None, content_type=content_type))
    command = Compensate(**STEP, generation=1, deadline_ms=1, input=null, effects={})
    for effect in (null, msgspec.UNSET):
        sent = msgspec.structs.replace(command, effect=effect)
        again = decode(KEY, encode(sent, content_type=content_type), AS[content_type])
        assert isinstance(again, Compensate)
        assert again.effect == effect


def test_fields_of_a_newer_writer_are_passed_over() -> None:
    newer = msgspec.json.decode(STARTED_JSON) | {"colour": "red", "more": {"deep": [1]}}
    assert decode(KEY, json.dumps(newer, separators=(",", ":")).encode(), AS[JSON]) == STARTED
    assert decode(KEY, msgspec.msgpack.encode(newer), AS[MSGPACK]).id == STARTED.id


def test_the_trace_context_is_found_among_the_headers() -> None:
    assert traceparent_of((("traceparent", b"00-a-b-01"),)) == b"00-a-b-01"
    assert traceparent_of(()) is None


# Ids

STEM = f"{SAGA_ID}/{START}/charge_card/2"
ID_OF: dict[type[Record], str] = {
    SagaStarted: f"{SAGA_ID}/{START}/start/req-1",
    CancelRequested: f"{SAGA_ID}/cancel/req-2",
    SignalReceived: f"{SAGA_ID}/signal/req-3",
    SagaPaused: f"{SAGA_ID}/pause/req-5",
    SagaResumed: f"{SAGA_ID}/resume/req-6",
    TypePaused: f"{SAGA_ID}/pause/req-7",
    TypeResumed: f"{SAGA_ID}/resume/req-8",
    OperatorActed: f"{STEM}/operator/req-4",
    StepCompleted: f"{STEM}/run-1",
    StepFailed: f"{STEM}/run-2",
    Execute: f"{STEM}/execute",
    Compensate: f"{STEM}/compensate/4",
    StepCompensated: f"{STEM}/compensate/4/answer/run-3",
    CompensationFailed: f"{STEM}/compensate/4/answer/run-4",
    StepSkipped: f"{SAGA_ID}/{START}/charge_card/2/skipped",
    CancelStep: f"{SAGA_ID}/{START}/charge_card/2/cancel",
    UndoRequested: f"{SAGA_ID}/{START}/undo/4",
    SagaUndone: f"{SAGA_ID}/undo-outcome/4",
    RoundStarted: f"{SAGA_ID}/{START}/round/2",
    SagaStuck: f"{STEM}/compensate/4/stuck",
    SagaCompleted: f"{SAGA_ID}/outcome",
    SagaCompensated: f"{SAGA_ID}/outcome",
    StartRefused: f"{SAGA_ID}/{START}/start-refused",
    CancelRefused: f"{SAGA_ID}/cancel/req-2/refused",
}


@pytest.mark.parametrize("kind", RECORD_TYPES)
def test_the_id_of_every_record_is_what_it_was_in_the_last_release(kind: type[Record]) -> None:
    assert wire_examples()[kind].id == ID_OF[kind]


def test_equal_records_have_equal_ids_and_only_the_two_outcomes_share_one() -> None:
    ids = {kind: record.id for kind, record in wire_examples().items()}
    assert ids == {kind: record.id for kind, record in wire_examples(MSGPACK).items()}
    assert len(set(ids.values())) == len(RECORD_TYPES) - 1


def test_what_the_saga_log_says_in_place_of_a_worker_has_an_id_of_its_own() -> None:
    late = StepFailed(**STEP, failure=Failure(kind="timed_out"))
    silent = CompensationFailed(**STEP, generation=4, failure=Failure(kind="timed_out"))
    assert late.id == f"{STEM}/timed-out"
    assert silent.id == f"{STEM}/compensate/4/answer/timed-out"


def test_a_completion_is_late_from_the_first_millisecond_after_its_due() -> None:
    completed = wire_examples()[StepCompleted]
    assert isinstance(completed, StepCompleted)
    assert not completed.is_late(completed.due_ms)
    assert completed.is_late(completed.due_ms + 1)


# Limits when reading


def test_a_value_over_the_limit_is_refused_before_it_is_decoded() -> None:
    exact = Limits(value_bytes_max=len(STARTED_JSON))
    assert decode(KEY, STARTED_JSON, (), limits=exact) == STARTED
    assert refused(b"x" * (len(STARTED_JSON) + 1), limits=exact) == (
        f"value has {len(STARTED_JSON) + 1} bytes; at most {len(STARTED_JSON)} are allowed"
    )


def test_too_many_headers_are_refused() -> None:
    limits = Limits(header_count_max=2)
    assert decode(KEY, STARTED_JSON, (("a", b""), ("b", b"")), limits=limits) == STARTED
    assert refused(STARTED_JSON, (("a", b""),) * 3, limits=limits) == "record has 3 headers; at most 2 are allowed"


def test_too_large_headers_are_refused_names_included() -> None:
    limits = Limits(header_bytes_max=5)
    assert decode(KEY, STARTED_JSON, (("ab", b"123"),), limits=limits) == STARTED
    assert refused(STARTED_JSON, (("abc", b"123"),), limits=limits) == "headers have 6 bytes; at most 5 are allowed"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"saga_id": "x" * 201}, "$.saga_id"),
        ({"saga_id": f"{SAGA_ID}\n"}, "$.saga_id"),
        ({"saga_id": "a b"}, "$.saga_id"),
        ({"saga_id": 7}, "$.saga_id"),
        ({"saga": "Order"}, "$.saga"),
        ({"saga": "o" * 101}, "$.saga"),
        ({"step": "charge card"}, "$.step"),
        ({"step": "s" * 65}, "$.step"),
        ({"start": "xyz"}, "$.start"),
        ({"start": "0" * 17}, "$.start"),
        ({"version": 0}, "$.version"),
        ({"version": 1_000_001}, "$.version"),
        ({"version": True}, "$.version"),
        ({"version": 1.5}, "$.version"),
        ({"round": 0}, "$.round"),
        ({"run": "r" * 65}, "$.run"),
        ({"run": ""}, "$.run"),
        ({"due_ms": -1}, "$.due_ms"),
        ({"due_ms": 2**53 + 1}, "$.due_ms"),
        ({"due_ms": "1"}, "$.due_ms"),
        ({"attempts": -1}, "$.attempts"),
        ({"effects": []}, "$.effects"),
        ({"effects": {"Bad name": 1}}, "$.effects"),
    ],
)
@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_a_field_out_of_its_bounds_is_refused_by_name(change: dict[str, Any], where: str, content_type: str) -> None:
    fields = msgspec.json.decode(encode(wire_examples()[StepCompleted])) | change
    module = msgspec.json if content_type == JSON else msgspec.msgpack
    assert where in refused(module.encode(fields), AS[content_type])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("message", "x" * 65_537),
        ("traceback", "x" * 65_537),
        ("code", "x" * 4_097),
        ("exception_type", "x" * 4_097),
        ("kind", "bored"),
    ],
)
def test_a_failures_texts_and_kind_are_bounded(field: str, value: str) -> None:
    fields = msgspec.json.decode(encode(wire_examples()[StepFailed]))
    fields["failure"][field] = value
    assert f"$.failure{'' if field == 'kind' else f'.{field}'}" in refused(json.dumps(fields).encode())


# Hostile bytes


def with_input(value: bytes) -> bytes:
    return STARTED_JSON.replace(bytes(STARTED.input), value)


HOSTILE_JSON = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "deep nesting": b"[" * 100_000,
    "deep nesting in the input": with_input(b"[" * 100_000 + b"]" * 100_000),
    "deep nesting in an unknown field": STARTED_JSON[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "text that is not UTF-8": STARTED_JSON.replace(b'"req-1"', b'"\xff"'),
    "a key that is not UTF-8": STARTED_JSON.replace(b'"request"', b'"\xff"'),
    "an integer of 100,000 digits": STARTED_JSON.replace(b"3600000", b"9" * 100_000),
    "an integer of 4,000 digits": STARTED_JSON.replace(b"3600000", b"9" * 4_000),
    "not a number": STARTED_JSON.replace(b"3600000", b"NaN"),
    "not a number in the input": with_input(b"NaN"),
    "infinity": STARTED_JSON.replace(b"3600000", b"1e999"),
    "a byte order mark": b"\xef\xbb\xbf" + STARTED_JSON,
    "trailing bytes": STARTED_JSON + b"{}",
    "a cut end": STARTED_JSON[:-1],
    "half a surrogate pair": STARTED_JSON.replace(b'"req-1"', b'"\\ud800"'),
    "an unknown type": STARTED_JSON.replace(b"saga_started", b"saga_sturted"),
    "no type": STARTED_JSON.replace(b'"type"', b'"tipe"'),
    "a type that is no text": STARTED_JSON.replace(b'"saga_started"', b"7"),
    "a required field missing": STARTED_JSON.replace(b'"contract_hash"', b'"contract_hush"'),
    "the other codec": encode(wire_examples(MSGPACK)[SagaStarted], content_type=MSGPACK),
}
STARTED_MSGPACK = encode(wire_examples(MSGPACK)[SagaStarted], content_type=MSGPACK)
HOSTILE_MSGPACK = {
    "nothing": b"",
    "nil": b"\xc0",
    "deep nesting": b"\x91" * 100_000,
    "a map of 2^32-1 entries": b"\xdf\xff\xff\xff\xff",
    "a list of 2^32-1 entries": b"\xdd\xff\xff\xff\xff",
    "text of 2^32-1 bytes": b"\xdb\xff\xff\xff\xff",
    "bytes of 2^32-1 bytes": b"\xc6\xff\xff\xff\xff",
    "an extension of 2^32-1 bytes": b"\xc9\xff\xff\xff\xff\x01",
    "a byte that means nothing": b"\xc1",
    "text that is not UTF-8": STARTED_MSGPACK.replace(b"\xa5req-1", b"\xa5\xff\xff\xff\xff\xff"),
    "trailing bytes": STARTED_MSGPACK + b"\xc0",
    "a cut end": STARTED_MSGPACK[:-1],
    "an unknown type": STARTED_MSGPACK.replace(b"saga_started", b"saga_sturted"),
    "a map as a key": b"\x81\x80\x01",
    "the other codec": STARTED_JSON,
}


@pytest.mark.parametrize("value", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
def test_hostile_json_is_undecodable_and_nothing_else(value: bytes) -> None:
    assert value != STARTED_JSON
    assert refused(value).startswith("not a record of choreo: ")


@pytest.mark.parametrize("value", HOSTILE_MSGPACK.values(), ids=HOSTILE_MSGPACK)
def test_hostile_messagepack_is_undecodable_and_nothing_else(value: bytes) -> None:
    assert value != STARTED_MSGPACK
    assert refused(value, AS[MSGPACK]).startswith("not a record of choreo: ")


@given(st.binary(max_size=200), st.sampled_from(CONTENT_TYPES))
def test_arbitrary_bytes_are_undecodable_and_nothing_else(value: bytes, content_type: str) -> None:
    refused(value, AS[content_type])


@given(st.sampled_from(VALID), st.data())
def test_a_damaged_record_is_read_or_undecodable_and_nothing_else(
    valid: tuple[bytes, Headers], data: st.DataObject
) -> None:
    value, headers = valid
    start = data.draw(st.integers(0, len(value)))
    end = data.draw(st.integers(start, min(len(value), start + 8)))
    noise = data.draw(
        st.binary(max_size=8) | st.sampled_from([b'"', b"\\", b"{", b"]", b"\xdf\xff\xff\xff\xff", b"\xff"])
    )
    with contextlib.suppress(Undecodable):
        record = decode(KEY, value[:start] + noise + value[end:], headers)
        assert record.saga_id == SAGA_ID


@given(st.sampled_from(VALID), st.binary() | st.none(), st.lists(st.tuples(st.text(), st.binary())).map(tuple))
def test_any_key_and_any_headers_give_a_record_or_undecodable(
    valid: tuple[bytes, Headers], key: bytes | None, headers: Headers
) -> None:
    value, content_type = valid
    with contextlib.suppress(Undecodable):
        assert decode(key, value, (*headers, *content_type)).saga_id.encode() == key


@pytest.mark.parametrize("key", [None, b"", b"other", KEY + b"\n", KEY.lower()])
def test_a_record_under_another_key_than_its_saga_id_is_refused(key: bytes | None) -> None:
    assert refused(STARTED_JSON, key=key) == f"key {key!r} is not the saga id of the record, {SAGA_ID!r}"


@pytest.mark.parametrize(
    "content_type", [b"", b"text/plain", b"application/json; charset=utf-8", b"\xff", b"APPLICATION/JSON"]
)
def test_a_content_type_other_than_the_two_is_refused(content_type: bytes) -> None:
    told = refused(STARTED_JSON, (("content-type", content_type),))
    assert told.endswith("; it must be application/json or application/msgpack")


# Limits when writing


def test_a_record_over_the_limit_is_not_written_and_the_message_says_what_to_do() -> None:
    with pytest.raises(Unencodable, match=r"SagaStarted of saga 'shop:7/A.42' has .* Keep large values elsewhere"):
        encode(STARTED, limits=Limits(value_bytes_max=len(STARTED_JSON) - 1))
    assert encode(STARTED, limits=Limits(value_bytes_max=len(STARTED_JSON))) == STARTED_JSON


@pytest.mark.parametrize(
    ("record", "where"),
    [
        (CancelRequested(**ABOUT | {"saga_id": "a b"}, request="r"), "$.saga_id"),
        (CancelRequested(**ABOUT, request=""), "$.request"),
        (StepFailed(**STEP, failure=Failure(kind="crashed", message="x" * 65_537)), "$.failure.message"),
        (StepFailed(**STEP, failure=Failure(kind="crashed", message="\ud800")), "surrogates not allowed"),
        (SagaCompleted(**ABOUT, result=Raw(b"1"), effects={"Bad name": Raw(b"1")}), "$.effects"),
        (SagaCompleted(**ABOUT, result=Raw(b""), effects={}), "malformed"),
        (SagaCompleted(**ABOUT, result=Raw(b"\x81\xa1a\x01"), effects={}), "malformed"),
    ],
    ids=["saga id", "request", "long text", "surrogate", "step name", "empty effect", "other codec"],
)
def test_what_no_reader_would_take_is_not_written(record: Record, where: str) -> None:
    with pytest.raises(Unencodable) as error:
        encode(record)
    assert f"{type(record).__name__} of saga" in str(error.value)
    assert where in str(error.value)


def test_an_effect_or_input_over_the_limit_is_named_by_its_type() -> None:
    limits = Limits(effect_bytes_max=10)
    assert encode_user_value("x" * 8, limits=limits) == b'"xxxxxxxx"'
    with pytest.raises(Unencodable, match="a value of type str has 11 bytes encoded; at most 10 are allowed"):
        encode_user_value("x" * 9, limits=limits)


# Users' values


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Parcel:
    weight: decimal.Decimal
    labels: set[str]


class Order(msgspec.Struct):
    id: uuid.UUID
    at: dt.datetime
    parcels: list[Parcel]
    colour: Colour = Colour.RED


ORDER = Order(
    uuid.UUID(int=7),
    dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
    [Parcel(decimal.Decimal("1.50"), {"b", "a", "c"})],
)


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_a_typed_value_survives_as_its_type(content_type: str) -> None:
    value = encode_user_value(ORDER, content_type=content_type)
    assert decode_user_value(value, Order, content_type=content_type) == ORDER
    assert decode_user_value(Raw(value), Order, content_type=content_type) == ORDER


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_equal_values_have_equal_bytes_whatever_the_order_of_keys_and_sets(content_type: str) -> None:
    one = {"a": {"x": 1, "y": 2}, "set": {0, 8, 16}}
    other = {"set": {16, 8, 0}, "a": {"y": 2, "x": 1}}
    assert (list(one), list(one["set"])) != (list(other), list(other["set"]))
    assert encode_user_value(one, content_type=content_type) == encode_user_value(other, content_type=content_type)


def test_the_bytes_of_a_value_are_what_they_were_in_the_last_release() -> None:
    assert encode_user_value({"b": [1, None, 1.5], "a": "ä"}) == '{"a":"ä","b":[1,null,1.5]}'.encode()
    assert encode_user_value(ORDER) == (
        b'{"id":"00000000-0000-0000-0000-000000000007","at":"2026-01-02T03:04:05.000006Z",'
        b'"parcels":[{"weight":"1.50","labels":["a","b","c"]}],"colour":"red"}'
    )


class Opaque:
    pass


def test_a_value_without_an_encoding_is_named_by_its_type() -> None:
    itself: list[object] = []
    itself.append(itself)
    for value, name in (
        (Opaque(), "Opaque"),
        ({"a": Opaque()}, "dict"),
        (itself, "list"),
        ("\ud800", "str"),
        (1j, "complex"),
    ):
        for content_type in CONTENT_TYPES:
            with pytest.raises(Unencodable, match=f"a value of type {name} cannot be encoded: "):
                encode_user_value(value, content_type=content_type)


@pytest.mark.parametrize(
    ("value", "where"), [(b'{"id":1}', "$.id"), (b"[]", "object"), (b"", "truncated"), (b"\xff", "malformed")]
)
def test_a_value_that_does_not_fit_its_type_says_where(value: bytes, where: str) -> None:
    with pytest.raises(Undecodable) as error:
        decode_user_value(value, Order)
    assert where in str(error.value)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(PLAIN, st.sampled_from(CONTENT_TYPES))
def test_plain_values_survive_their_codec_and_a_transcoding_there_and_back(value: object, source: str) -> None:
    (target,) = set(CONTENT_TYPES) - {source}
    encoded = encode_user_value(value, content_type=source)
    turned = transcode(encoded, source, target)
    assert decode_user_value(encoded, Any, content_type=source) == value
    assert decode_user_value(turned, Any, content_type=target) == value
    assert transcode(turned, target, source) == encoded


def test_transcoding_into_the_same_codec_changes_no_byte() -> None:
    assert transcode(b' {"b":1 }', JSON, JSON) == b' {"b":1 }'


@pytest.mark.parametrize(
    ("value", "source"),
    [
        (b"", JSON),
        (b"{", JSON),
        (b"\xff", JSON),
        (b'"\xff"', JSON),
        (b"[" * 100_000, JSON),
        (b"1" * 30, JSON),
        (b"", MSGPACK),
        (b"\xc1", MSGPACK),
        (b"\xa1\xff", MSGPACK),
        (b"\x91" * 100_000, MSGPACK),
        (b"\xd4\x05\x00", MSGPACK),
        (b"\x81\x90\x01", MSGPACK),
        (b"\x81\x80\x01", MSGPACK),
    ],
)
def test_what_cannot_be_turned_into_the_other_codec_is_undecodable(value: bytes, source: str) -> None:
    (target,) = set(CONTENT_TYPES) - {source}
    with pytest.raises(Undecodable, match=f"cannot turn {source} into {target}: "):
        transcode(value, source, target)


@given(st.binary(max_size=60), st.sampled_from(CONTENT_TYPES))
def test_arbitrary_bytes_as_a_users_value_are_read_or_undecodable_and_nothing_else(value: bytes, source: str) -> None:
    (target,) = set(CONTENT_TYPES) - {source}
    with contextlib.suppress(Undecodable):
        decode_user_value(value, dict[str, Order | Colour | None], content_type=source)
    with contextlib.suppress(Undecodable):
        decode_user_value(transcode(value, source, target), Any, content_type=target)


def test_a_failure_without_details_is_short_on_the_wire() -> None:
    assert msgspec.json.encode(Failure(kind="timed_out")) == b'{"kind":"timed_out"}'
    assert msgspec.json.decode(msgspec.json.encode(FAILURE), type=Failure) == FAILURE


def test_a_type_without_a_hash_is_read_like_any_other() -> None:
    kind: Any = Annotated[list[int], {"said": "by another library"}]
    with pytest.raises(TypeError):
        hash(kind)
    for content_type in CONTENT_TYPES:
        value = encode_user_value([1, 2], content_type=content_type)
        assert decode_user_value(value, kind, content_type=content_type) == [1, 2]


@pytest.mark.parametrize("kind", RECORD_TYPES)
def test_the_headers_of_every_record_begin_as_its_reader_expects(kind: type[Record]) -> None:
    headers = make_headers(wire_examples()[kind], source="/s", content_type=JSON, traceparent=b"t")
    assert tuple(name for name, _ in headers[: len(LEADING)]) == LEADING


@pytest.mark.parametrize("traceparent", [None, b"00-1"])
@pytest.mark.parametrize(
    "more", [(), (("traceparent", b"other"),), (("content-type", MSGPACK.encode()), (VERSION, b"9"))]
)
def test_headers_in_the_usual_order_are_read_as_in_any_other(traceparent: bytes | None, more: Headers) -> None:
    usual = make_headers(wire_examples()[StepCompleted], source="/s", content_type=JSON, traceparent=traceparent)
    headers = (*usual, *more)
    elsewhere = (("foreign", b""), *headers)  # nothing stands where it usually does
    assert codec._read_headers(headers, LIMITS) == codec._find_headers(headers, LIMITS)
    assert codec._read_headers(headers, LIMITS) == codec._read_headers(elsewhere, LIMITS)
    size = sum(len(name) + len(text) for name, text in headers)
    assert codec._read_headers(headers, Limits(header_bytes_max=size))
    with pytest.raises(Undecodable, match=f"headers have {size} bytes"):
        codec._read_headers(headers, Limits(header_bytes_max=size - 1))
