"""What a cancel would undo, and in which order."""

from __future__ import annotations

import pytest

from choreo.audit import CancelPreview, preview_cancel
from choreo.contract import Saga, Step
from choreo.core import SagaState
from tests.unit.audit.test_history import say_what_is_owed, trail_of
from tests.unit.by_hand import DIAMOND, LINE, Pen, a_broker, a_pen

PIVOTED = Saga("pivoted", Step("a", compensation="undo_a"), Step("p", pivot=True), Step("z", compensation="undo_z"))
GAP = Saga("gap", Step("a", compensation="undo_a"), Step("b"), Step("c", compensation="undo_c"))


async def pen_of(contract: Saga) -> Pen:
    pen = await a_pen(await a_broker(contract), contract)
    await pen.start("s")
    return pen


async def previewed(pen: Pen) -> CancelPreview:
    trail = await trail_of(pen)
    assert trail.contract is not None
    return preview_cancel(trail.contract, trail.state)


async def test_what_stands_is_undone_backwards_and_what_is_in_flight_first_if_it_completes() -> None:
    pen = await pen_of(LINE)
    await pen.completed("s", "a")
    found = await previewed(pen)
    assert (found.verdict, found.settles) == ("undone", ("b",))
    assert [(one.wave, one.step, one.compensation, one.certain) for one in found.undo] == [
        (1, "c", "undo_c", False),
        (2, "b", "undo_b", False),
        (3, "a", "undo_a", True),
    ], "a completion of b triggers c, wanted or not (rule 4)"


async def test_parallel_branches_are_undone_in_one_wave() -> None:
    pen = await pen_of(DIAMOND)
    for step in ("a", "b", "c"):
        await pen.completed("s", step)
    await say_what_is_owed(pen)
    found = await previewed(pen)
    waves: dict[int, set[str]] = {}
    for one in found.undo:
        waves.setdefault(one.wave, set()).add(one.step)
    assert waves == {1: {"d"}, 2: {"b", "c"}, 3: {"a"}}
    assert {one.step for one in found.undo if not one.certain} == {"d"}


async def test_the_preview_is_what_a_cancel_then_does() -> None:
    pen = await pen_of(LINE)
    await pen.completed("s", "a")
    await pen.completed("s", "b")
    expected = [one.step for one in (await previewed(pen)).undo]
    await pen.cancel("s")
    await pen.completed("s", "c")
    undone = []
    while owed := [one for one in (await trail_of(pen)).state.owed if one.kind == "compensate"]:
        await say_what_is_owed(pen)
        for one in owed:
            undone.append(one.step)
            await pen.compensated("s", one.step)
    assert undone == expected == ["c", "b", "a"]


async def test_a_step_without_compensation_stays_and_is_named() -> None:
    pen = await pen_of(GAP)
    await pen.completed("s", "a")
    await pen.completed("s", "b")
    found = await previewed(pen)
    assert [(one.step, one.why) for one in found.keeps] == [("b", "no_compensation")]
    assert [one.step for one in found.undo] == ["c", "a"]
    await pen.failed("s", "c")
    assert (await previewed(pen)).verdict == "going_back"


async def test_at_the_pivot_a_cancel_waits_and_behind_it_it_is_refused() -> None:
    pen = await pen_of(PIVOTED)
    await pen.completed("s", "a")
    await say_what_is_owed(pen)
    found = await previewed(pen)
    assert (found.verdict, found.settles) == ("deferred", ("p",))
    assert [one.step for one in found.undo] == ["a"]
    await pen.completed("s", "p")
    found = await previewed(pen)
    assert (found.verdict, found.undo) == ("refused", ())
    assert [(one.step, one.why) for one in found.keeps] == [("a", "past_pivot"), ("p", "past_pivot")]


async def test_after_the_outcome_it_is_refused() -> None:
    pen = await pen_of(LINE)
    await pen.whole_line("s")
    found = await previewed(pen)
    assert (found.verdict, found.why) == ("refused", "the saga has completed")


async def test_a_stuck_compensation_is_named_as_what_stays() -> None:
    pen = await pen_of(LINE)
    await pen.completed("s", "a")
    await pen.completed("s", "b")
    await pen.failed("s", "c")
    await say_what_is_owed(pen)
    await pen.compensation_failed("s", "b")
    found = await previewed(pen)
    assert [(one.step, one.why) for one in found.keeps] == [("b", "stuck")]
    assert found.undo == ()


@pytest.mark.parametrize("truncated", [False, True])
def test_without_a_start_there_is_nothing(truncated: bool) -> None:
    found = preview_cancel(LINE, SagaState("s", truncated=truncated))
    assert found.verdict == "nothing"


async def test_a_preview_leaves_the_state_as_it_was() -> None:
    pen = await pen_of(DIAMOND)
    await pen.completed("s", "a")
    trail = await trail_of(pen)
    assert trail.contract is not None
    before = trail.state.copy()
    preview_cancel(trail.contract, trail.state)
    assert trail.state == before
