"""What a worker knows of pauses, and what it does then."""

from __future__ import annotations

from typing import Any

import pytest

from choreo.broker.port import Message
from choreo.messages.codec import encode
from choreo.messages.headers import make_headers
from choreo.messages.records import (
    Execute,
    Record,
    SagaPaused,
    SagaResumed,
    SagaStarted,
    StepCompleted,
    TypePaused,
    TypeResumed,
)
from choreo.step.pauses import Pauses
from tests.unit.wire_examples import wire_examples

EXAMPLES: dict[type[Record], Any] = wire_examples()
SAGA = EXAMPLES[SagaStarted].saga


def message(kind: type[Record], key: str | None = None, value: bytes | None = None) -> Message:
    record = EXAMPLES[kind]
    headers = make_headers(record, source="/choreo/test", content_type="application/json")
    key = record.saga_id if key is None else key
    return Message("choreo.order", 0, 7, 1_000, key.encode(), encode(record) if value is None else value, headers)


def test_events_behind_a_pause_are_held_and_commands_are_not() -> None:
    pauses = Pauses(SAGA)
    assert not pauses.hold(message(SagaStarted))
    pauses.see(message(SagaPaused))
    assert pauses.hold(message(SagaStarted))
    assert pauses.hold(message(StepCompleted))
    assert not pauses.hold(message(Execute)), "it was decided before the pause"
    assert not pauses.hold(message(SagaStarted, "another-saga"))
    pauses.see(message(SagaResumed))
    assert not pauses.hold(message(SagaStarted))


def test_a_pause_of_the_type_holds_all_sagas_and_its_end_those_that_are_not_paused_themselves() -> None:
    pauses = Pauses(SAGA)
    pauses.see(message(TypePaused))
    pauses.see(message(SagaPaused))
    assert pauses.hold(message(StepCompleted, "another-saga"))
    pauses.see(message(TypeResumed))
    assert not pauses.hold(message(StepCompleted, "another-saga"))
    assert pauses.hold(message(StepCompleted))


@pytest.mark.parametrize("value", [b"{", b"[]"])
def test_what_is_no_record_pauses_nothing(value: bytes) -> None:
    pauses = Pauses(SAGA)
    pauses.see(message(SagaPaused, value=value))
    assert not pauses.hold(message(StepCompleted))


def test_a_record_of_another_saga_in_this_topic_pauses_nothing() -> None:
    pauses = Pauses("another")
    pauses.see(message(SagaPaused))
    assert not pauses.hold(message(StepCompleted))
