"""A saga's history, its state at a moment, and what changed between two."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from choreo.audit import Moment, Trail, difference, history, read_moment, read_trail, state_at
from choreo.broker.registry import Registry
from choreo.core import record_of
from choreo.errors import ConfigurationError, SagaNotFound
from tests.unit.by_hand import DIAMOND, LINE, T0, FakeClock, Pen, a_broker, a_pen


async def trail_of(pen: Pen, saga_id: str = "s") -> Trail:
    return await read_trail(pen.broker, pen.contract.name, saga_id, registry=Registry(pen.broker))


async def say_what_is_owed(pen: Pen, saga_id: str = "s") -> None:
    """Append what the saga-log would."""
    trail = await trail_of(pen, saga_id)
    assert trail.contract is not None
    for decision in trail.state.owed:
        await pen.write(record_of(trail.contract, trail.state, decision))


async def a_way_back(clock: FakeClock) -> Pen:
    """order: a and b completed, c failed, b undone; a's compensation is asked for. A second passes each time."""
    pen = await a_pen(await a_broker(LINE, now_ms=clock.now_ms), LINE)
    await pen.start("s")
    await pen.start("other")
    for write in (
        lambda: pen.completed("s", "a", attempts=2, duration_ms=40),
        lambda: pen.completed("s", "b"),
        lambda: pen.failed("s", "c"),
        lambda: say_what_is_owed(pen),
        lambda: pen.compensated("s", "b"),
        lambda: say_what_is_owed(pen),
    ):
        clock.ms += 1_000
        await write()
    return pen


async def test_history_tells_who_answers_whom_and_how_long_that_took() -> None:
    told = history(await trail_of(await a_way_back(FakeClock())))
    lines = told.lines
    assert [line.type for line in lines] == [
        "saga_started",
        "step_completed",
        "step_completed",
        "step_failed",
        "compensate",
        "step_compensated",
        "compensate",
    ]
    offsets = [line.offset for line in lines]
    started, a, b, c, undo_b, undone_b, _ = offsets
    assert [line.caused_by for line in lines] == [None, started, a, b, c, undo_b, undone_b]
    assert [line.after_ms for line in lines] == [0, 1_000, 2_000, 3_000, 4_000, 5_000, 6_000]
    assert [line.waited_ms for line in lines] == [None, *[1_000] * 6]
    assert (lines[1].worked_ms, lines[1].about) == (40, "2 attempts")
    assert lines[3].about == "rejected no no"
    assert lines[3].decided == ("compensate b",)
    assert lines[5].decided == ("compensate a",)
    assert [line.writer for line in lines] == ["/test"] * 7
    assert [line.phase for line in lines] == ["forward"] * 3 + ["compensating"] * 4
    assert lines[1].record["effect"] == "a-done"
    assert told.status.phase == "compensating"
    assert msgspec.json.decode(msgspec.json.encode(told))["lines"][0]["offset"] == started


async def test_a_join_answers_the_command_and_that_the_last_predecessor() -> None:
    pen = await a_pen(await a_broker(DIAMOND), DIAMOND)
    await pen.start("s")
    for step in ("a", "b", "c"):
        await pen.completed("s", step)
    await say_what_is_owed(pen)
    await pen.completed("s", "d")
    lines = history(await trail_of(pen)).lines
    execute = next(line for line in lines if line.type == "execute")
    assert execute.caused_by == lines[3].offset
    assert lines[-1].caused_by == execute.offset


async def test_a_record_that_is_none_is_shown_beside_the_history() -> None:
    pen = await a_pen(await a_broker(LINE), LINE)
    await pen.start("s")
    await pen.raw("s", b"{}")
    told = history(await trail_of(pen))
    assert len(told.lines) == 1
    [(offset, why)] = told.unfolded
    assert offset == 1
    assert "not a record of choreo" in why


async def test_a_saga_that_is_not_there_is_not_found() -> None:
    pen = await a_pen(await a_broker(LINE), LINE)
    with pytest.raises(SagaNotFound):
        await trail_of(pen)
    await pen.raw("s", b"{}")
    with pytest.raises(SagaNotFound, match="can be read"):
        history(await trail_of(pen))


async def test_state_at_an_offset_and_at_a_time_is_the_fold_up_to_there() -> None:
    trail = await trail_of(await a_way_back(FakeClock()))
    for fact in trail.facts:
        by_offset = state_at(trail, Moment(offset=fact.entry.offset))
        assert by_offset == state_at(trail, Moment(at_ms=fact.entry.at_ms))
        assert by_offset.status.updated_ms == fact.entry.at_ms
    assert state_at(trail, Moment(offset=4)).owed == ("compensate b",)
    assert state_at(trail, Moment()).status.phase == "compensating"
    assert state_at(trail, Moment(at_ms=T0 + 2_500)).status.phase == "forward"
    with pytest.raises(SagaNotFound, match="no record up to then; its first record is at offset 0"):
        state_at(trail, Moment(at_ms=T0 - 1))


async def test_a_difference_names_each_value_that_changed() -> None:
    trail = await trail_of(await a_way_back(FakeClock()))
    found = difference(trail, Moment(at_ms=T0 + 2_000), Moment())
    changes = {change.path: (change.before, change.after) for change in found.changes}
    assert changes["phase"] == ("forward", "compensating")
    assert changes["steps.b.phase"] == ("completed", "undone")
    assert changes["steps.c.phase"] == ("running", "failed")
    assert changes["steps.a.phase"] == ("completed", "compensating")
    assert "steps.a.effect" not in changes
    assert len(found.offsets) == 4
    back = difference(trail, Moment(), Moment(at_ms=T0 + 2_000))
    assert {(one.path, one.after, one.before) for one in back.changes if one.path == "phase"} == {
        ("phase", "forward", "compensating")
    }
    assert difference(trail, Moment(), Moment()).changes == ()


NOW = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp() * 1_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", Moment()),
        ("4711", Moment(offset=4711)),
        ("-5m", Moment(at_ms=NOW - 300_000)),
        ("11:59", Moment(at_ms=NOW - 60_000 + 999)),
        ("2026-03-01T11:59:59.500Z", Moment(at_ms=NOW - 500)),
        ("2026-03-01T12:59:59+01:00", Moment(at_ms=NOW - 1_000 + 999)),
        ("2026-03-01 11:59:59", Moment(at_ms=NOW - 1_000 + 999)),
    ],
)
def test_a_moment_is_read_as_people_write_it(text: str, expected: Moment) -> None:
    assert read_moment(text, now_ms=NOW) == expected


@pytest.mark.parametrize("text", ["yesterday", "-5", "25:00", "12:61", "-", "2026-13-01", "9" * 5 + "x"])
def test_what_is_no_moment_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no moment; give an offset"):
        read_moment(text, now_ms=NOW)


async def test_a_refusal_answers_the_start_that_is_refused() -> None:
    pen = await a_pen(await a_broker(LINE), LINE)
    await pen.start("s", 1)
    await pen.start("s", 2, request="r2")
    await say_what_is_owed(pen)
    lines = history(await trail_of(pen)).lines
    refused = next(line for line in lines if line.type == "start_refused")
    assert refused.caused_by == 1
