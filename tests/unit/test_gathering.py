"""How long a reader lets records come together: by the sagas that it has watched, and only where they take long."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from choreo.broker.kafka.gathering import GATHER_S_MAX, SAGAS, WATCH_MS_MAX, Gathering
from choreo.broker.port import Message
from choreo.messages.headers import CE_TYPE
from choreo.messages.records import Record, SagaCompensated, SagaCompleted, SagaStarted, StepCompleted, StepFailed

COMPLETED: Sequence[type[Record]] = (SagaStarted, StepCompleted, StepCompleted, StepCompleted, SagaCompleted)


def message(saga_id: str, kind: type[Record], at_ms: int) -> Message:
    headers = (("ce_specversion", b"1.0"), ("ce_type", CE_TYPE[kind]))
    return Message("choreo.order", 0, 0, at_ms, saga_id.encode(), b"", headers)


def passes(gathering: Gathering, saga_id: str, hop_ms: int, records: Sequence[type[Record]] = COMPLETED) -> None:
    """One saga, each record of which comes by itself."""
    for number, kind in enumerate(records):
        gathering.saw([message(saga_id, kind, number * hop_ms)])


def pass_many(gathering: Gathering, hop_ms: int, number: int = SAGAS) -> None:
    for each in range(number):
        passes(gathering, f"s-{each}", hop_ms)


def test_nothing_is_gathered_before_enough_sagas_have_ended() -> None:
    gathering = Gathering()
    pass_many(gathering, 100, SAGAS - 1)
    assert gathering.gather_s == 0
    passes(gathering, "one more", 100)
    assert gathering.gather_s == pytest.approx(0.020)


@pytest.mark.parametrize(("hop_ms", "gather_s"), [(2, 0), (9, 0), (10, 0.002), (150, 0.030), (5_000, GATHER_S_MAX)])
def test_a_fifth_of_the_time_between_two_records_of_a_saga(hop_ms: int, gather_s: float) -> None:
    gathering = Gathering()
    pass_many(gathering, hop_ms)
    assert gathering.gather_s == pytest.approx(gather_s)


def test_one_long_hop_among_short_ones_counts() -> None:
    gathering = Gathering()
    for each in range(SAGAS):
        for kind, at_ms in zip(COMPLETED, (0, 1, 390, 399, 400), strict=True):
            gathering.saw([message(f"s-{each}", kind, at_ms)])
    assert gathering.gather_s == pytest.approx(0.020)


def test_a_saga_that_is_undone_counts_by_all_of_its_records() -> None:
    gathering = Gathering()
    records = (SagaStarted, StepCompleted, StepCompleted, StepFailed, *(StepCompleted,) * 4, SagaCompensated)
    for each in range(SAGAS):
        passes(gathering, f"s-{each}", 50, records)
    assert gathering.gather_s == pytest.approx(0.010)


def test_where_a_third_of_the_sagas_is_quick_they_are_what_counts() -> None:
    gathering = Gathering()
    for each in range(SAGAS):
        passes(gathering, f"s-{each}", 1 if each % 3 == 0 else 1_000)
    assert gathering.gather_s == 0


def test_when_sagas_become_quick_again_the_pauses_end() -> None:
    gathering = Gathering()
    pass_many(gathering, 200)
    assert gathering.gather_s == GATHER_S_MAX
    pass_many(gathering, 2)
    assert gathering.gather_s == 0


def test_sagas_side_by_side_are_told_apart() -> None:
    gathering = Gathering()
    for number, kind in enumerate(COMPLETED):
        for each in range(SAGAS):
            gathering.saw(
                [message(f"other-{each}-{number}", StepCompleted, 0), message(f"s-{each}", kind, number * 60)]
            )
    assert gathering.gather_s == pytest.approx(0.012)


def test_sagas_that_never_end_make_room() -> None:
    gathering = Gathering()
    for each in range(SAGAS):
        gathering.saw([message(f"waiting-{each}", SagaStarted, 0)])
    pass_many(gathering, 100)
    assert gathering.gather_s == 0
    for each in range(SAGAS):
        gathering.saw([message(f"later-{each}", StepCompleted, WATCH_MS_MAX + 1)])
    pass_many(gathering, 100)
    assert gathering.gather_s == pytest.approx(0.020)


def test_what_is_no_record_is_passed_over() -> None:
    gathering = Gathering()
    for key in (None, b"\xff"):
        gathering.saw([Message("choreo.order", 0, 0, 0, key, b"", ())])
        gathering.saw([Message("choreo.order", 0, 1, 0, key, b"", (("ce_type", b"foreign"),))])
    pass_many(gathering, 100)
    assert gathering.gather_s == pytest.approx(0.020)
