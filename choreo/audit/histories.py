"""The history of a saga for people: every record in order, who wrote it, what it answers, how long that took."""

from __future__ import annotations

from typing import Any

import msgspec

from choreo.audit.trail import Fact, Trail
from choreo.core.state import Decision, Note
from choreo.core.status import SagaStatus, status_of
from choreo.errors import SagaNotFound
from choreo.messages.codec import encode
from choreo.messages.headers import JSON

_PEOPLE = ("operator", "requested_by")


class HistoryLine(msgspec.Struct, frozen=True, kw_only=True):
    """A record. Times are milliseconds, by the broker's clock where not said otherwise.

    Attributes:
        after_ms: since the saga's first record.
        type: as on the wire, ``step_completed``.
        id: what it says, derived; said again it is the same.
        writer: who wrote it, as it says itself: ``payment`` for a service, ``saga-log``, ``client``, ``cli``.
        caused_by: offset of the record that it answers, or whose decision it says; ``None`` for what came from outside.
        waited_ms: from that record's append to this one's.
        worked_ms: what the handler took, all attempts, by the worker's clock; ``None`` if nobody says.
        note: what was remarkable about it; ``duplicate``, ``late`` and so on.
        about: the rest, in words: a failure, the attempts, a reason.
        decided: what it brought about.
        phase: of the saga from then on.
        record: all of it as plain values.
    """

    offset: int
    at_ms: int
    after_ms: int
    type: str
    id: str
    step: str | None
    round: int | None
    writer: str
    caused_by: int | None
    waited_ms: int | None
    worked_ms: int | None
    note: Note | None
    about: str
    decided: tuple[str, ...]
    phase: str
    record: Any


class History(msgspec.Struct, frozen=True, kw_only=True):
    """A saga's history and where it has led.

    Attributes:
        unfolded: records under its key that are no part of it: (offset, why).
    """

    saga: str
    saga_id: str
    partition: int
    status: SagaStatus
    lines: tuple[HistoryLine, ...]
    unfolded: tuple[tuple[int, str], ...] = ()


def history(trail: Trail) -> History:
    """The history that a trail tells.

    Raises:
        SagaNotFound: none of its records could be folded; the message says why.
    """
    contract = trail.contract
    unfolded = tuple((problem.offset, why_not(problem.why)) for problem in trail.problems)
    if contract is None:
        raise SagaNotFound(
            trail.saga_id, f"no record of saga {trail.saga_id!r} can be read: {unfolded[0][1] if unfolded else 'none'}"
        )
    times = {fact.entry.offset: fact.entry.at_ms for fact in trail.facts}
    first_ms = trail.facts[0].entry.at_ms
    return History(
        saga=trail.saga,
        saga_id=trail.saga_id,
        partition=trail.tp.partition,
        status=status_of(contract, trail.state),
        lines=tuple(_line(fact, first_ms, times) for fact in trail.facts),
        unfolded=unfolded,
    )


def why_not(why: Any) -> str:
    """Why a record was not folded, in words."""
    return str(getattr(why, "message", "")) or str(why)


def decision_text(decision: Decision) -> str:
    """A decision in few words: ``compensate charge_card (2)`` in its second generation."""
    again = f" ({decision.generation})" if decision.generation > 1 else ""
    return f"{decision.kind} {decision.step}".rstrip() + again


def _line(fact: Fact, first_ms: int, times: dict[int, int]) -> HistoryLine:
    record, entry = fact.entry.record, fact.entry
    caused_ms = None if fact.caused_by is None else times.get(fact.caused_by)
    return HistoryLine(
        offset=entry.offset,
        at_ms=entry.at_ms,
        after_ms=entry.at_ms - first_ms,
        type=str(type(record).__struct_config__.tag),
        id=record.id,
        step=getattr(record, "step", None),
        round=getattr(record, "round", None),
        writer=_writer(fact),
        caused_by=fact.caused_by,
        waited_ms=None if caused_ms is None else entry.at_ms - caused_ms,
        worked_ms=getattr(record, "duration_ms", None) if getattr(record, "run", "") else None,
        note=fact.note,
        about=about(record),
        decided=tuple(decision_text(one) for one in fact.owed),
        phase=fact.state.phase.value if fact.state.started else "unstarted",
        record=plain(record, entry.content_type),
    )


def _writer(fact: Fact) -> str:
    source = fact.message.header("ce_source")
    return "" if source is None else source.decode("utf-8", "replace").removeprefix("/choreo/")


def about(record: Any) -> str:
    """What a record says beside its kind, in words. For any kind of record, those of later releases included."""
    parts = []
    failure = getattr(record, "failure", None)
    if failure is not None:
        parts.append(" ".join(filter(None, (failure.kind, failure.code, failure.message))))
    if (attempts := getattr(record, "attempts", 1)) > 1:
        parts.append(f"{attempts} attempts")
    if hasattr(record, "undone"):
        parts.append("undone" if record.undone else "nothing to undo")
    if (verdict := getattr(record, "verdict", "proceed")) != "proceed":
        parts.append(f"asks to {verdict}")
    said = {name: getattr(record, name, "") for name in ("act", "name", "operator", "requested_by", "reason")}
    parts += [f"by {text}" if name in _PEOPLE else str(text) for name, text in said.items() if text]
    return ", ".join(parts)


def plain(record: Any, content_type: str) -> Any:
    """The record as plain values, the user's values in it too."""
    encoded = encode(record, content_type=content_type)
    return msgspec.json.decode(encoded) if content_type == JSON else msgspec.msgpack.decode(encoded)
