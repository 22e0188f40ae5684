"""A moment in a log: an offset or a time, as people write it, and the state of a saga then."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time
from typing import Any

import msgspec

from choreo.audit.trail import Fact, Trail
from choreo.contract.policy import duration_ms
from choreo.core.status import SagaStatus, status_of
from choreo.errors import ConfigurationError, SagaNotFound

HOW = (
    "an offset (4711), a time (2026-11-22T14:02:11Z, or 14:02 for today, UTC where nothing is said), a time that ago "
    "(-5m), or 'now'"
)


class Moment(msgspec.Struct, frozen=True):
    """After the record at ``offset``, or after all that was appended up to ``at_ms``. Neither: now."""

    offset: int | None = None
    at_ms: int | None = None

    def includes(self, fact: Fact) -> bool:
        """Whether the record was there at that moment."""
        if self.offset is not None:
            return fact.entry.offset <= self.offset
        return self.at_ms is None or fact.entry.at_ms <= self.at_ms


def read_moment(text: str, *, now_ms: int) -> Moment:
    """The moment that a person means.

    Raises:
        ConfigurationError: it is none; the message says how to write one.
    """
    text = text.strip()
    if text in ("now", ""):
        return Moment()
    if text.isdecimal() and text.isascii():
        return Moment(offset=int(text))
    try:
        if text.startswith("-"):
            return Moment(at_ms=now_ms - duration_ms(text[1:]))
        if re.fullmatch(r"\d\d:\d\d(:\d\d(\.\d+)?)?", text):
            today = datetime.fromtimestamp(now_ms / 1_000, UTC).date()
            return Moment(at_ms=_ms(datetime.combine(today, time.fromisoformat(text), UTC)))
        return Moment(at_ms=_ms(datetime.fromisoformat(text)))
    except (ValueError, OverflowError):
        raise ConfigurationError(f"{text!r} is no moment; give {HOW}") from None


def _ms(when: datetime) -> int:
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    whole = int(when.timestamp() * 1_000)
    return whole + 999 if not when.microsecond else whole  # a second that is named is meant to its end


class StateAt(msgspec.Struct, frozen=True, kw_only=True):
    """A saga as it was.

    Attributes:
        offset, at_ms: of the last record that was there.
        owed: decisions that were implied and whose record was not in the log yet.
    """

    status: SagaStatus
    offset: int
    at_ms: int
    owed: tuple[str, ...]


class Change(msgspec.Struct, frozen=True):
    """A value that is not the same in two states; ``None`` where there is none.

    Attributes:
        path: where, as in ``steps.charge_card.phase``.
    """

    path: str
    before: Any
    after: Any


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """What happened between two moments.

    Attributes:
        offsets: of the records between them.
    """

    before: StateAt
    after: StateAt
    changes: tuple[Change, ...]
    offsets: tuple[int, ...]


def state_at(trail: Trail, moment: Moment) -> StateAt:
    """The saga at that moment.

    Raises:
        SagaNotFound: it had no record yet.
    """
    facts = [fact for fact in trail.facts if moment.includes(fact)]
    if not facts:
        first = f"; its first record is at offset {trail.facts[0].entry.offset}" if trail.facts else ""
        raise SagaNotFound(trail.saga_id, f"saga {trail.saga_id!r} has no record up to then{first}")
    last = facts[-1]
    return StateAt(
        status=status_of(last.contract, last.state),
        offset=last.entry.offset,
        at_ms=last.entry.at_ms,
        owed=tuple(f"{one.kind} {one.step}".rstrip() for one in last.state.owed),
    )


def difference(trail: Trail, earlier: Moment, later: Moment) -> Difference:
    """What changed from one moment to the other; either may be the earlier one.

    Raises:
        SagaNotFound: it had no record yet at one of them.
    """
    before, after = state_at(trail, earlier), state_at(trail, later)
    low, high = sorted((before.offset, after.offset))
    old, new = _flat(before), _flat(after)
    changes = tuple(
        Change(path, old.get(path), new.get(path))
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    )
    offsets = tuple(fact.entry.offset for fact in trail.facts if low < fact.entry.offset <= high)
    return Difference(before=before, after=after, changes=changes, offsets=offsets)


def _flat(state: StateAt) -> dict[str, Any]:
    """The status as paths and plain values; steps by their names, undone ones in order."""
    plain = msgspec.to_builtins(state.status)
    steps = {step.pop("step"): step for step in plain.pop("steps")}
    return dict(_leaves("", {**plain, "steps": steps, "owed": list(state.owed)}))


def _leaves(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(f"{path}.{key}" if path else str(key), inner)]
    return [(path, value)]
