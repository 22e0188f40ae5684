"""Unfinished sagas in memory: as values or as bytes, they are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.core import SagaState
from choreo.saga_log.kept import Kept


def a_state(saga_id: str, offset: int) -> SagaState:
    return SagaState(saga_id, saga="order", standing={"a": 1}, offset=offset)


def test_the_oldest_become_bytes_and_come_back_equal() -> None:
    kept = Kept(2)
    for offset, saga_id in enumerate("abc"):
        kept.put(a_state(saga_id, offset))
    assert kept._bytes.keys() == {"a"}
    assert [kept[saga_id] for saga_id in "abc"] == [a_state(saga_id, offset) for offset, saga_id in enumerate("abc")]


def test_who_is_not_kept_is_missing() -> None:
    kept = Kept(2)
    assert kept.get("a") is None
    with pytest.raises(KeyError):
        kept["a"]


@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from("abcde"), st.booleans()), max_size=40),
)
def test_it_is_a_dictionary_however_few_are_values(values_max: int, acts: list[tuple[str, bool]]) -> None:
    kept, model = Kept(values_max), dict[str, SagaState]()
    for offset, (saga_id, puts) in enumerate(acts):
        if puts:
            kept.put(a_state(saga_id, offset))
            model[saga_id] = a_state(saga_id, offset)
        else:
            kept.discard(saga_id)
            model.pop(saga_id, None)
        assert len(kept._values) <= values_max
        assert len(kept) == len(model)
        assert {each: kept[each] for each in kept} == model
        assert all((each in kept) == (each in model) for each in "abcde")
