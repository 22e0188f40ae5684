"""Which sagas the store may have: no saga that is there is ever taken for a new one."""

from __future__ import annotations

import pytest

from choreo.saga_log import known
from choreo.saga_log.known import Known


def test_until_all_pages_are_read_everything_may_be_stored() -> None:
    found = Known(nothing_stored=False)
    assert found.read_after == ""
    found.take(["a", "b"])
    assert found.read_after == "b"
    assert found.may_have("z")
    found.take([])
    assert found.read_after is None
    assert [saga_id for saga_id in "abcz" if found.may_have(saga_id)] == ["a", "b"]


def test_of_an_empty_store_only_what_has_left_the_memory_is_asked_for() -> None:
    found = Known(nothing_stored=True)
    assert not found.may_have("a")
    found.add("a")
    assert found.may_have("a")
    assert not found.may_have("b")


@pytest.mark.parametrize("layers_max", [1, 3, 10])
def test_nothing_is_forgotten_however_many_there_are(monkeypatch: pytest.MonkeyPatch, layers_max: int) -> None:
    monkeypatch.setattr(known, "ROOM_FIRST", 100)
    monkeypatch.setattr(known, "LAYERS_MAX", layers_max)
    found = Known(nothing_stored=True)
    for number in range(3_000):
        found.add(f"in-{number}")
    assert all(found.may_have(f"in-{number}") for number in range(3_000))
    wrong = sum(found.may_have(f"out-{number}") for number in range(3_000))
    assert layers_max < 10 or wrong < 10, "expected 1"
