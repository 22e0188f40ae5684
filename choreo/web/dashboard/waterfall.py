"""A saga's history as bars over time: a row for each step, with what was waited for and what was worked. Pure.

A bar reaches from the append of what triggered it to the append of its answer, both by the broker's clock. The worker's
own account of its work is at the bar's end: before it the record waited, in the log or for another attempt of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from choreo.audit import HistoryLine, Trail
from choreo.core import SagaState

WIDTH = 1_000
LABEL_WIDTH = 190
ROW_HEIGHT = 30
HEAD_HEIGHT = 26
BAR_HEIGHT = 14
LEAST_WIDTH = 3.0
TICKS = 6

Kind = Literal["done", "failed", "running", "undo", "undone", "undo-failed", "pause"]

_STEPS_MS = (
    1,
    2,
    5,
    10,
    20,
    50,
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    30_000,
    60_000,
    300_000,
    600_000,
    1_800_000,
)
_HOUR_MS = 3_600_000

_KINDS: dict[str, Kind] = {
    "step_completed": "done",
    "step_failed": "failed",
    "step_compensated": "undone",
    "compensation_failed": "undo-failed",
}


class Bar(NamedTuple):
    """Something that took time.

    Attributes:
        work_x, work_width: the part in which a handler ran; no width where nobody says.
        title: all about it, in words.
    """

    kind: Kind
    x: float
    width: float
    work_x: float
    work_width: float
    title: str


class Row(NamedTuple):
    """A step, or the saga as a whole, and what happened there."""

    label: str
    y: int
    bars: tuple[Bar, ...]


class Waterfall(NamedTuple):
    """Bars ready to be drawn; ``ticks`` are places and what is written there."""

    width: int
    height: int
    rows: tuple[Row, ...]
    ticks: tuple[tuple[float, str], ...]
    summary: str


def draw(trail: Trail, lines: Sequence[HistoryLine], steps: Sequence[str], now_ms: int) -> Waterfall:
    """Lay out a history.

    Args:
        steps: the contract's, in order.
        now_ms: up to where the bars of what is not over reach.
    """
    state = trail.state
    first_ms = lines[0].at_ms
    unanswered = _unanswered(trail, state)
    last_ms = max(lines[-1].at_ms, now_ms if unanswered else 0, first_ms + 1)
    scale = (WIDTH - LABEL_WIDTH) / (last_ms - first_ms)

    def place(at_ms: int) -> float:
        return round(LABEL_WIDTH + (min(max(at_ms, first_ms), last_ms) - first_ms) * scale, 1)

    def bar(kind: Kind, start_ms: int, end_ms: int, worked_ms: int, title: str) -> Bar:
        x, end = place(start_ms), place(end_ms)
        width = max(end - x, LEAST_WIDTH)
        work_width = min(max(worked_ms * scale, 0.0), width)
        return Bar(kind, x, round(width, 1), round(x + width - work_width, 1), round(work_width, 1), title)

    times = {line.offset: line.at_ms for line in lines}
    bars: dict[str, list[Bar]] = {step: [] for step in steps}
    for line in lines:
        kind = _KINDS.get(line.type)
        if kind is None or line.step is None:
            continue
        start_ms = times.get(line.caused_by, line.at_ms) if line.caused_by is not None else line.at_ms
        worked_ms = line.worked_ms or 0
        bars.setdefault(line.step, []).append(bar(kind, start_ms, line.at_ms, worked_ms, _title(line, start_ms)))
    for step, title, kind, since_ms in unanswered:
        bars.setdefault(step, []).append(
            bar(kind, since_ms, last_ms, 0, f"{title}, for {length_text(last_ms - since_ms)}")
        )
    rows = tuple(
        Row(step, HEAD_HEIGHT + number * ROW_HEIGHT, tuple(found)) for number, (step, found) in enumerate(bars.items())
    )
    height = HEAD_HEIGHT + len(rows) * ROW_HEIGHT
    summary = (
        f"{sum(len(row.bars) for row in rows)} runs of steps and compensations in {length_text(last_ms - first_ms)}"
    )
    return Waterfall(WIDTH, height, rows, tuple(_ticks(first_ms, last_ms, place)), summary)


def length_text(milliseconds: int) -> str:
    """A length of time for people: two units at most."""
    if milliseconds < 1_000:
        return f"{milliseconds} ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1_000:.1f} s"
    minutes = milliseconds // 60_000
    if minutes < 60:
        return f"{minutes} min {milliseconds // 1_000 % 60} s"
    if minutes < 60 * 24:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (60 * 24)} d {minutes // 60 % 24} h"


def _unanswered(trail: Trail, state: SagaState) -> list[tuple[str, str, Kind, int]]:
    found: list[tuple[str, str, Kind, int]] = []
    asked = {
        (decision.step, decision.round): at_ms
        for decision, (_, at_ms) in trail.decided.items()
        if decision.kind == "compensate"
    }
    for key, instance in state.instances.items():
        if instance.in_flight and key in trail.triggered:
            found.append((key[0], f"{key[0]}: running", "running", trail.triggered[key][1]))
        elif instance.awaits_answer and key in asked:
            found.append((key[0], f"{key[0]}: being undone", "undo", asked[key]))
    return found


def _title(line: HistoryLine, start_ms: int) -> str:
    words = {"done": "completed", "failed": "failed", "undone": "undone", "undo-failed": "undoing failed"}
    took = length_text(line.at_ms - start_ms)
    worked = "" if line.worked_ms is None else f", {length_text(line.worked_ms)} of it at work"
    again = f", round {line.round}" if line.round and line.round > 1 else ""
    return (
        f"{line.step}: {words[_KINDS[line.type]]} after {took}{worked}{again}{f' ({line.about})' if line.about else ''}"
    )


def _ticks(first_ms: int, last_ms: int, place: object) -> list[tuple[float, str]]:
    length_ms = last_ms - first_ms
    step_ms = next((each for each in _STEPS_MS if length_ms / each <= TICKS), 0)
    if not step_ms:
        step_ms = _HOUR_MS * max(1, -(-length_ms // (_HOUR_MS * TICKS)))
    assert callable(place), "it gives the place of a time"
    return [(place(first_ms + at), _tick_text(at)) for at in range(0, length_ms + 1, step_ms)]


def _tick_text(at_ms: int) -> str:
    if at_ms < 1_000:
        return f"{at_ms} ms" if at_ms else "0"
    if at_ms < 60_000:
        return f"{at_ms / 1_000:g} s"
    return f"{at_ms // 60_000} min" if at_ms < _HOUR_MS else f"{at_ms // _HOUR_MS} h"
