"""The pause of a saga's type, as one partition has it (rule 24): a record that is of no saga and concerns them all.

Whoever folds a partition keeps one of these. A pause, and its end, are folded into every saga that has begun and is not
over; a saga that starts while the pause is in force is told of it first. So each saga's state stays a fold of records.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from choreo.core import Entry, SagaState
from choreo.messages.records import AnyRecord, SagaStarted, TypePaused, TypeResumed

OF_THE_TYPE = (TypePaused, TypeResumed)


class _InForce(msgspec.Struct, frozen=True):
    offset: int
    at_ms: int
    record: TypePaused


_decoder = msgspec.json.Decoder(_InForce)


class TypePause:
    """Whether the type of a partition's sagas is paused."""

    __slots__ = ("_in_force",)

    def __init__(self, stored: str = "") -> None:
        """Begin with what ``stored`` gave; with no pause, if that is empty."""
        self._in_force = _decoder.decode(stored) if stored else None

    @property
    def stored(self) -> str:
        """The pause as it stands in a checkpoint; empty for none."""
        return "" if self._in_force is None else msgspec.json.encode(self._in_force).decode()

    def see(self, entry: Entry) -> bool:
        """Whether the record is about the type; then it is for all of ``concerned``, and for no saga of its own."""
        record = entry.record
        if not isinstance(record, OF_THE_TYPE):
            return False
        if isinstance(record, TypePaused):
            self._in_force = self._in_force or _InForce(entry.offset, entry.at_ms, record)
        else:
            self._in_force = None
        return True

    def before(self, state: SagaState, record: AnyRecord) -> Entry | None:
        """What a saga has to be told before this record: it starts while its type is paused."""
        if self._in_force is None or state.started or not isinstance(record, SagaStarted):
            return None
        return Entry(self._in_force.record, self._in_force.offset, self._in_force.at_ms)


def concerned(states: Iterable[SagaState]) -> list[SagaState]:
    """The sagas that a record about their type is for: begun, and not over."""
    return [state for state in states if state.started and not state.is_settled]
