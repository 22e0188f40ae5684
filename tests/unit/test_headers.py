"""The CloudEvents 1.0 binding to Kafka, binary mode, and the routes that readers take from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.messages.headers import CE_TYPE, JSON, MSGPACK, TYPE_BY_CE, Headers, Route, make_headers, read_route
from choreo.messages.records import RECORD_TYPES, Record, RoundStarted, SagaCompensated, StepCompleted, StepRecord
from tests.unit.wire_examples import SAGA_ID, START, wire_examples

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
EVERY_RECORD = [pytest.param(record, id=kind.__name__) for kind, record in wire_examples().items()]

NAMES = sorted(
    {name for kind in RECORD_TYPES for name, _ in make_headers(wire_examples()[kind], source="/s", content_type=JSON)}
)
HOSTILE_HEADERS = st.lists(
    st.tuples(st.sampled_from([*NAMES, "traceparent"]) | st.text(), st.binary() | st.text(max_size=9).map(str.encode)),
    max_size=20,
).map(tuple)


def headers_of(record: Record, traceparent: bytes | None = None) -> Headers:
    return make_headers(record, source="/choreo/payment", content_type=JSON, traceparent=traceparent)


@pytest.mark.parametrize("record", EVERY_RECORD)
def test_every_record_has_the_attributes_that_cloudevents_requires(record: Record) -> None:
    headers = dict(headers_of(record))
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_id"] == record.id.encode()
    assert headers["ce_source"] == b"/choreo/payment"
    assert headers["ce_type"] == b"choreo." + str(type(record).__struct_config__.tag).encode() + b".v1"
    assert headers["content-type"] == b"application/json"


@pytest.mark.parametrize("record", EVERY_RECORD)
def test_header_names_are_lower_case_and_unique_and_values_are_utf_8(record: Record) -> None:
    headers = headers_of(record, TRACEPARENT)
    names = [name for name, _ in headers]
    assert names == [name.lower() for name in names]
    assert len(set(names)) == len(names)
    assert all(value and value.decode() for _, value in headers)


def test_the_subject_is_saga_saga_id_and_step() -> None:
    examples = wire_examples()
    assert dict(headers_of(examples[StepCompleted]))["ce_subject"] == f"order/{SAGA_ID}/charge_card".encode()
    assert dict(headers_of(examples[RoundStarted]))["ce_subject"] == f"order/{SAGA_ID}/".encode()


def test_each_type_of_record_has_a_ce_type_of_its_own() -> None:
    assert {TYPE_BY_CE[CE_TYPE[kind]] for kind in RECORD_TYPES} == set(RECORD_TYPES)


def test_the_trace_context_is_carried_unchanged_and_left_out_where_there_is_none() -> None:
    record = wire_examples()[StepCompleted]
    assert read_route(headers_of(record, TRACEPARENT)).traceparent == TRACEPARENT
    assert "traceparent" not in dict(headers_of(record))
    assert read_route(headers_of(record)).traceparent is None


@pytest.mark.parametrize("record", EVERY_RECORD)
def test_the_route_read_back_says_what_the_record_says(record: Record) -> None:
    assert read_route(headers_of(record)) == Route(
        kind=type(record),
        version=record.version,
        step=record.step if isinstance(record, StepRecord) else "",
        round=getattr(record, "round", 0),
        start=START,
        generation=getattr(record, "generation", 0),
        traceparent=None,
        content_type=JSON,
    )


def test_an_outcome_is_not_routed_to_the_step_that_failed() -> None:
    outcome = wire_examples()[SagaCompensated]
    assert isinstance(outcome, SagaCompensated)
    assert outcome.step == "charge_card"
    assert read_route(headers_of(outcome)).step == ""


def test_no_headers_are_an_empty_route_in_json() -> None:
    assert read_route(()) == Route(
        kind=None, version=0, step="", round=0, start="", generation=0, traceparent=None, content_type=JSON
    )


def test_of_a_repeated_header_the_first_counts() -> None:
    route = read_route(
        (
            ("content-type", MSGPACK.encode()),
            ("choreo_step", b"a"),
            ("choreo_step", b"b"),
            ("content-type", JSON.encode()),
        )
    )
    assert (route.step, route.content_type) == ("a", MSGPACK)


@pytest.mark.parametrize("number", [b"", b"-1", b"+1", b" 1", b"1_0", b"1.0", b"9" * 10, b"\xb2", "٣".encode(), b"x"])
def test_a_number_that_is_not_plain_short_digits_counts_as_none(number: bytes) -> None:
    assert read_route((("choreo_round", number), ("choreo_generation", number))).round == 0
    assert read_route((("choreo_round", number), ("choreo_generation", number))).generation == 0


@given(HOSTILE_HEADERS)
def test_reading_a_route_is_total(headers: Headers) -> None:
    route = read_route(headers)
    assert route.kind is None or route.kind in RECORD_TYPES
    assert 0 <= route.round <= 999_999_999
    assert 0 <= route.generation <= 999_999_999


def test_a_header_without_a_value_counts_as_missing() -> None:
    nothing = tuple((name, None) for name in NAMES)
    assert read_route(nothing) == read_route(())  # type: ignore[arg-type]
