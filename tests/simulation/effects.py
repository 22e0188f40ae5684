"""What the services have done to the world, in databases of their own that no crash touches.

An effect is kept under the idempotency key of its step, and every change is conditional on that key, as in the
services of this repository: made once, undone once, and barred for good where the undoing came first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

State = Literal["standing", "undone", "barred"]


class Refused(Exception):  # noqa: N818  # says what has happened
    """The step was undone before it came."""


class Row(NamedTuple):
    """An effect.

    Attributes:
        saga_id, start, step, round: whose it is.
        builds_on: keys of the effects that it was made upon.
    """

    saga_id: str
    start: str
    step: str
    round: int
    state: State
    builds_on: frozenset[str] = frozenset()


class Effects:
    """All services' effects, by key."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self._of_saga: dict[str, list[str]] = {}
        self._upon: dict[str, list[str]] = {}  # also effects of a parent upon those of its sub-saga

    def make(self, key: str, builds_on: Iterable[str]) -> bool:
        """Make an effect; the same again changes nothing. Returns whether it is new.

        Raises:
            Refused: it has been undone.
        """
        row = self.rows.get(key)
        if row is None:
            self._put(key, row_of(key, "standing", frozenset(builds_on)))
            return True
        if row.state != "standing":
            raise Refused(row.state)
        return False

    def undo(self, key: str) -> tuple[bool, list[str]]:
        """Undo an effect, or bar it. Returns whether it is undone now, and the keys of what still stands upon it."""
        row = self.rows.get(key)
        if row is None:
            self._put(key, row_of(key, "barred"))
            return False, []
        if row.state == "standing":
            self.rows[key] = row._replace(state="undone")
            return True, [other for other in self._upon.get(key, ()) if self.rows[other].state == "standing"]
        return row.state == "undone", []

    def standing(self, saga_id: str) -> list[str]:
        """Keys of the effects of a saga that stand."""
        return [key for key in self._of_saga.get(saga_id, ()) if self.rows[key].state == "standing"]

    def _put(self, key: str, row: Row) -> None:
        self.rows[key] = row
        self._of_saga.setdefault(row.saga_id, []).append(key)
        for below in row.builds_on:
            self._upon.setdefault(below, []).append(key)


def row_of(key: str, state: State, builds_on: frozenset[str] = frozenset()) -> Row:
    """The row of a key that ``ids.idempotency_key`` has made."""
    saga_id, start, step, saga_round = key.rsplit("/", 3)
    return Row(saga_id, start, step, int(saga_round), state, builds_on)
