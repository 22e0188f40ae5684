"""What a query asks of a row: as SQL for databases, as a predicate for rows in memory. Pure.

Both dialects of SQL get the same text but for the marks of values and the name of one function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from choreo.store.port import Activity, Place, Query, Row

LISTED = tuple(field for field in Row.__struct_fields__ if field != "blob")

FLAGS = ("resting", "paused")
"""The columns that SQLite has as numbers."""

Position = Literal["instr", "strpos"]
"""The function that finds a text in a text, of SQLite and of PostgreSQL."""

ACTIVITY = (
    "SELECT saga, 'started', (started_ms - {0}) / {1} AS stretch, count(*) FROM sagas "
    "WHERE started_ms >= {0} AND started_ms > 0 GROUP BY saga, stretch UNION ALL "
    "SELECT saga, phase, (finished_ms - {0}) / {1} AS stretch, count(*) FROM sagas "
    "WHERE finished_ms >= {0} AND finished_ms > 0 GROUP BY saga, phase, stretch"
)
"""To be formatted with two integers: since when, and the length of a stretch."""

_CAPITALS = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


def place_of(row: Row) -> Place:
    """Where a row is in the order of lists."""
    return Place(row.started_ms, row.saga_id, row.saga)


def is_asked_for(row: Row, query: Query) -> bool:
    """Whether the query asks for the row; its order and its limit are another matter."""
    if query.after is not None:
        behind = place_of(row) < query.after if query.newest_first else place_of(row) > query.after
        if not behind:
            return False
    return (
        query.saga in (None, row.saga)
        and query.version in (None, row.version)
        and (not query.phases or row.phase in query.phases)
        and (query.step is None or query.step == row.step or query.step in row.busy.split())
        and query.code in (None, row.code)
        and query.paused in (None, row.paused)
        and (not query.text or _small(query.text) in _small(row.message) or row.saga_id.startswith(query.text))
        and (query.started_before_ms is None or row.started_ms < query.started_before_ms)
        and (query.started_from_ms is None or row.started_ms >= query.started_from_ms)
        and (query.updated_before_ms is None or row.updated_ms < query.updated_before_ms)
    )


def select(query: Query, mark: Callable[[int], str], position: Position) -> tuple[str, list[Any]]:
    """The statement that a query is, and the values of its marks.

    Args:
        mark: how the value of that number, counted from 1, is marked in the text.
    """
    conditions, values = ["1 = 1"], list[Any]()

    def ask(condition: str, *given: object) -> None:
        marks = []
        for value in given:
            values.append(value)
            marks.append(mark(len(values)))
        conditions.append(condition.format(*marks))

    simple = (
        ("saga = {}", query.saga),
        ("version = {}", query.version),
        ("code = {}", query.code),
        ("paused = {}", query.paused),
        ("code <> ''", query.code or None),  # or the index of the failed would not be used
        ("started_ms < {}", query.started_before_ms),
        ("started_ms >= {}", query.started_from_ms),
        ("updated_ms < {}", query.updated_before_ms),
    )
    for condition, value in simple:
        if value is not None:
            ask(condition, *[value] * condition.count("{}"))
    if query.phases:
        ask(f"phase IN ({', '.join(['{}'] * len(query.phases))})", *query.phases)
    if query.step is not None:
        ask(f"(step = {{}} OR {position}(' ' || busy || ' ', {{}}) > 0)", query.step, f" {query.step} ")
    if query.text:
        begins = f"substr(saga_id, 1, {len(query.text):d}) = {{}}"
        ask(f"({position}(lower(message), {{}}) > 0 OR {begins})", _small(query.text), query.text)
    if query.after is not None:
        ask(f"(started_ms, saga_id, saga) {'<' if query.newest_first else '>'} ({{}}, {{}}, {{}})", *query.after)
    way = "DESC" if query.newest_first else "ASC"
    text = (
        f"SELECT {', '.join(LISTED)} FROM sagas WHERE {' AND '.join(conditions)} "  # noqa: S608 -- no value of anybody's
        f"ORDER BY started_ms {way}, saga_id {way}, saga {way} LIMIT {query.limit:d}"
    )
    return text, values


def activities(rows: Sequence[Sequence[Any]]) -> list[Activity]:
    """The answer to ``ACTIVITY``."""
    return [Activity(saga, what, stretch, number) for saga, what, stretch, number in rows]


def _small(text: str) -> str:
    """As ``lower`` has it in both databases: letters of ASCII alone."""
    return text.translate(_CAPITALS)
