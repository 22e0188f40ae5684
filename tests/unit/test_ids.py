"""Ids are derived: the same thing said again has the same id, another thing has another."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo import ids

INSTANCE = "order-1/0123456789abcdef/charge_card/2"


@pytest.mark.parametrize("text", ["a", "A1", "0", "shop:7/A.42_x-y", "x" * 200])
def test_a_saga_id_is_letters_digits_and_a_few_signs(text: str) -> None:
    assert ids.is_saga_id(text)


@pytest.mark.parametrize("text", ["", "-a", "/a", "a b", "a\n", "\na", "ä", "a\x00", "x" * 201, "a%2f", "٣"])
def test_what_could_confuse_a_log_a_shell_or_a_page_is_no_saga_id(text: str) -> None:
    assert not ids.is_saga_id(text)


@given(st.text(max_size=300))
def test_is_saga_id_agrees_with_its_description(text: str) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    described = 1 <= len(text) <= 200 and text[0] in alphabet and all(letter in alphabet + "._:/-" for letter in text)
    assert ids.is_saga_id(text) == described


@pytest.mark.parametrize(
    ("pattern", "good"),
    [
        (ids.SAGA_ID_PATTERN, "order-1"),
        (ids.STEP_NAME_PATTERN, "charge_card"),
        (ids.SAGA_NAME_PATTERN, "order"),
        (ids.START_HASH_PATTERN, "0123456789abcdef"),
        (ids.CONTRACT_HASH_PATTERN, "0123456789abcdef" * 2),
    ],
)
def test_no_pattern_lets_a_line_break_pass_at_either_end(pattern: str, good: str) -> None:
    assert re.search(pattern, good)
    for bad in (f"{good}\n", f"\n{good}", f"{good}\n{good}"):
        assert not re.search(pattern, bad)


def test_ids_are_what_they_were_in_the_last_release() -> None:
    instance = ids.instance_id("order-1", "0123456789abcdef", "charge_card", 2)
    command = ids.compensate_id(instance, 3)
    assert instance == INSTANCE
    assert ids.outcome_id(instance, "run-1") == f"{INSTANCE}/run-1"
    assert ids.execute_id(instance) == f"{INSTANCE}/execute"
    assert command == f"{INSTANCE}/compensate/3"
    assert ids.answer_id(command, "run-1") == f"{INSTANCE}/compensate/3/answer/run-1"
    assert ids.input_hash(b'{"amount":1200}') == "f9e5779e3418d0cd"


def test_a_handlers_key_stays_over_attempts_and_changes_with_start_step_and_round() -> None:
    about = {"saga_id": "order-1", "start": "0123456789abcdef", "step": "charge_card", "saga_round": 2}
    key = ids.idempotency_key(**about)
    others = [about | {name: value} for name, value in (("start", "f" * 16), ("step", "x"), ("saga_round", 3))]
    assert key == INSTANCE
    assert key not in [ids.idempotency_key(**other) for other in others]


def test_a_compensations_key_changes_with_its_generation_and_is_not_the_handlers() -> None:
    about = ("order-1", "0123456789abcdef", "charge_card", 2)
    first, second = ids.compensation_key(*about, 1), ids.compensation_key(*about, 2)
    assert len({first, second, ids.idempotency_key(*about)}) == 3


@given(st.binary(), st.binary())
def test_two_inputs_share_a_start_hash_only_if_they_are_the_same_bytes(one: bytes, other: bytes) -> None:
    assert (ids.input_hash(one) == ids.input_hash(other)) == (one == other)
    assert re.search(ids.START_HASH_PATTERN, ids.input_hash(one))


def test_a_scheduled_start_is_another_one_than_the_same_input_now_or_then() -> None:
    schedules: tuple[dict[str, int], ...] = (
        {},
        {"delay_ms": 1},
        {"delay_ms": 2},
        {"not_before_ms": 1},
        {"not_before_ms": 1, "delay_ms": 1},
    )
    assert len({ids.start_hash(b"1", **schedule) for schedule in schedules}) == len(schedules)
    assert ids.start_hash(b"1") == ids.input_hash(b"1")
