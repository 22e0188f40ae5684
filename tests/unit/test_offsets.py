"""The tracker of finished offsets, held against a model that keeps every offset in a set."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from choreo.broker.offsets import TAIL_CHARS_WARNING, OffsetTracker
from choreo.broker.port import COMMIT_METADATA_MAX_CHARS, Committed


@dataclass
class Model:
    """What the tracker promises, without any cleverness."""

    start: int
    begun: list[int] = field(default_factory=list)
    finished: set[int] = field(default_factory=set)

    def lowest_unfinished(self) -> int:
        pending = [offset for offset in self.begun if offset not in self.finished]
        return min(pending) if pending else max(self.begun, default=self.start - 1) + 1


@st.composite
def work(draw: st.DrawFn) -> tuple[int, list[tuple[str, int]]]:
    """A start, and deliveries (ascending, with holes) mixed with finishes (any order)."""
    start = draw(st.integers(0, 10_000))
    offset = start
    pending: list[int] = []
    steps: list[tuple[str, int]] = []
    for deliver in draw(st.lists(st.booleans(), max_size=120)):
        if deliver or not pending:
            offset += draw(st.sampled_from([0, 0, 0, 0, 1, 7, 1_000]))
            steps.append(("begin", offset))
            pending.append(offset)
            offset += 1
        else:
            steps.append(("finish", pending.pop(draw(st.integers(0, len(pending) - 1)))))
    return start, steps


def played(tracker: OffsetTracker, model: Model, steps: list[tuple[str, int]]) -> None:
    for action, offset in steps:
        if action == "begin":
            tracker.begin(offset)
            model.begun.append(offset)
        else:
            tracker.finish(offset)
            model.finished.add(offset)


@given(work())
def test_the_lowest_unfinished_offset_is_committed(case: tuple[int, list[tuple[str, int]]]) -> None:
    start, steps = case
    tracker, model = OffsetTracker(start), Model(start)
    for step in steps:
        played(tracker, model, [step])
        assert tracker.unfinished == len(model.begun) - len(model.finished)
        place = tracker.committable()
        if model.finished:
            assert place is not None
            assert place.offset == model.lowest_unfinished()
        else:
            assert place is None


@given(work())
def test_a_restart_knows_exactly_what_was_finished(case: tuple[int, list[tuple[str, int]]]) -> None:
    start, steps = case
    tracker, model = OffsetTracker(start), Model(start)
    played(tracker, model, steps)
    place = tracker.committable()
    if place is None:
        assert not model.finished
        return
    restarted = OffsetTracker(*place)
    assert {offset for offset in model.begun if restarted.is_finished(offset)} == model.finished
    assert not restarted.is_finished(max(model.begun) + 1)


@given(work(), st.integers(0, 120), st.data())
def test_a_restart_loses_nothing_that_it_has_not_delivered_again(
    case: tuple[int, list[tuple[str, int]]], redelivered: int, data: st.DataObject
) -> None:
    start, steps = case
    tracker, model = OffsetTracker(start), Model(start)
    played(tracker, model, steps)
    first = tracker.committable() or Committed(start)

    again = OffsetTracker(*first)
    known = set(model.finished)
    for offset in [offset for offset in model.begun if offset >= first.offset][:redelivered]:
        again.begin(offset)
        if again.is_finished(offset) or data.draw(st.booleans()):
            again.finish(offset)
            known.add(offset)
    second = again.committable() or first

    assert second.offset >= first.offset
    third = OffsetTracker(*second)
    assert {offset for offset in model.begun if third.is_finished(offset)} == known


@settings(max_examples=25)
@given(st.integers(0, 2**40), st.integers(1, 9), st.integers(1_500, 4_000))
def test_a_tail_that_does_not_fit_is_cut_at_its_far_end(start: int, gap: int, records: int) -> None:
    tracker = OffsetTracker(start)
    offsets = range(start, start + records * (gap + 1))
    for offset in offsets:
        tracker.begin(offset)
    finished = [offset for offset in offsets if (offset - start) % (gap + 1) == gap]
    for offset in finished:
        tracker.finish(offset)

    place = tracker.committable()
    assert place is not None
    assert place.offset == start
    assert len(place.metadata) <= COMMIT_METADATA_MAX_CHARS
    restarted = OffsetTracker(*place)
    kept = [offset for offset in offsets if restarted.is_finished(offset)]
    assert kept == finished[: len(kept)]
    if len(kept) < len(finished):
        assert len(place.metadata) > COMMIT_METADATA_MAX_CHARS - 10


@given(work())
def test_a_tail_is_ascii(case: tuple[int, list[tuple[str, int]]]) -> None:
    start, steps = case
    tracker = OffsetTracker(start)
    played(tracker, Model(start), steps)
    place = tracker.committable()
    assert place is None or place.metadata.isascii()


@given(st.text(max_size=60) | st.from_regex(r"f1:[0-9+,]*", fullmatch=True))
def test_metadata_of_others_never_breaks_a_start(metadata: str) -> None:
    tracker = OffsetTracker(5, metadata)
    tracker.begin(5)
    tracker.finish(5)
    place = tracker.committable()
    assert place is not None
    assert place.offset >= 6


@pytest.mark.parametrize("metadata", ["", "{}", "f1:", "f1:0", "f1:1+0", "f1:1,", "f1:1+-2", "f2:1", "f1:1 ", "f1:١"])  # noqa: RUF001
def test_metadata_that_is_not_a_tail_is_taken_as_empty(metadata: str) -> None:
    tracker = OffsetTracker(0, metadata)
    assert not any(tracker.is_finished(offset) for offset in range(10))


def test_the_tail_reads_as_its_docstring_says() -> None:
    tracker = OffsetTracker(100)
    for offset in range(100, 112):
        tracker.begin(offset)
    for offset in (102, 104, 105, 106, 111):
        tracker.finish(offset)
    assert tracker.committable() == Committed(100, "f1:2,1+3,4")


def test_what_the_last_owner_finished_is_passed_over_when_all_before_it_is_done() -> None:
    tracker = OffsetTracker(10, "f1:1+2,1")  # 11, 12 and 14 are finished
    tracker.begin(10)
    tracker.finish(10)
    assert tracker.committable() == Committed(13, "f1:1")


def test_the_tail_warns_before_it_is_full() -> None:
    tracker = OffsetTracker(0)
    for offset in range(5_000):
        tracker.begin(offset)
    for offset in range(1, 5_000, 2):
        warned = tracker.tail_is_nearly_full
        tracker.finish(offset)
        place = tracker.committable()
        assert place is not None
        assert warned == (len(tracker_tail_before(place)) >= TAIL_CHARS_WARNING)
        if warned:
            break
    else:
        pytest.fail("2,500 ranges do not fit, so the warning must have come")
    assert len(place.metadata) < COMMIT_METADATA_MAX_CHARS


def tracker_tail_before(place: Committed) -> str:
    """The tail without the run that was finished last."""
    return place.metadata.rpartition(",")[0]


def test_finishing_everything_leaves_no_tail_and_no_memory() -> None:
    tracker = OffsetTracker(0)
    for offset in range(50_000):
        tracker.begin(offset)
        if offset % 10 == 9:
            for done in range(offset, offset - 10, -1):
                tracker.finish(done)
    assert tracker.committable() == Committed(50_000, "")
    assert tracker.unfinished == 0
    assert len(tracker._offsets) < 5_000
