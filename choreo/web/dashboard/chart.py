"""The last hour as columns: outcomes of each minute, one on the other, and starts as a line. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from choreo.web.shapes import Stretch

WIDTH, HEIGHT = 960, 150
LEFT, BOTTOM, TOP = 34, 20, 8


class Column(NamedTuple):
    """A stretch of time: heights of its two parts, and all about it in words."""

    x: float
    width: float
    completed_y: float
    completed_height: float
    compensated_y: float
    compensated_height: float
    title: str


class Chart(NamedTuple):
    """Columns ready to be drawn; ``line`` is the path of the starts."""

    width: int
    height: int
    columns: tuple[Column, ...]
    line: str
    levels: tuple[tuple[float, int], ...]
    marks: tuple[tuple[float, str], ...]
    summary: str


def draw(activity: Sequence[Stretch]) -> Chart:
    """Lay out what happened."""
    most = max((max(each.started, each.completed + each.compensated) for each in activity), default=0)
    top = _round_up(max(most, 4))
    room = HEIGHT - BOTTOM - TOP
    width = (WIDTH - LEFT) / max(len(activity), 1)
    columns, points = [], []
    for number, each in enumerate(activity):
        done, undone = each.completed * room / top, each.compensated * room / top
        x = LEFT + number * width
        title = (
            f"{clock_text(each.from_ms)}: {each.started} started, {each.completed} completed, "
            f"{each.compensated} compensated"
        )
        floor = HEIGHT - BOTTOM
        columns.append(
            Column(
                round(x + 1, 1),
                round(max(width - 2, 1), 1),
                round(floor - done, 1),
                round(done, 1),
                round(floor - done - undone, 1),
                round(undone, 1),
                title,
            )
        )
        points.append(f"{x + width / 2:.1f} {floor - each.started * room / top:.1f}")
    levels = tuple((round(HEIGHT - BOTTOM - part * room / 2, 1), round(top * part / 2)) for part in (1, 2))
    marks = tuple(
        (round(LEFT + number * width, 1), clock_text(each.from_ms))
        for number, each in enumerate(activity)
        if each.from_ms % 600_000 == 0
    )
    started, completed, compensated = (
        sum(getattr(each, name) for each in activity) for name in ("started", "completed", "compensated")
    )
    summary = f"In the last hour {started} sagas started, {completed} completed, {compensated} were compensated"
    return Chart(WIDTH, HEIGHT, tuple(columns), "M" + " L".join(points) if points else "", levels, marks, summary)


def clock_text(at_ms: int) -> str:
    """The time of day, UTC."""
    minutes = at_ms // 60_000
    return f"{minutes // 60 % 24:02}:{minutes % 60:02}"


def _round_up(number: int) -> int:
    """The next number whose half is round too."""
    power = 1
    while True:
        for digit in (2, 4, 6, 8, 10):
            if digit * power >= number:
                return digit * power
        power *= 10
