"""OCEL 2.0, the interchange format of object-centric process mining, as JSON (ocel-standard.org).

Each record is an event. Objects are sagas, their step instances, and the programs that wrote records; an event is
related to its saga, to the step instance that it is about, and to its writer, a step instance to its saga. Attribute
values are texts, as the standard's schema wants them; times are ISO 8601 in UTC.

Events are written as they come. Objects have to follow in one list, so they wait in a temporary file.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from choreo.audit.rows import Exported, Row
from choreo.core.state import Key
from choreo.messages.records import TYPE_BY_TAG

_EVENT_ATTRIBUTES = {
    "partition": "integer",
    "offset": "integer",
    "record_id": "string",
    "round": "integer",
    "generation": "integer",
    "note": "string",
    "decided": "string",
    "phase": "string",
    "failure_kind": "string",
    "failure_code": "string",
    "attempts": "integer",
    "worked_ms": "integer",
}
_OBJECT_ATTRIBUTES = {
    "saga": {"name": "string", "version": "integer", "contract_hash": "string"},
    "step": {"name": "string", "round": "integer"},
    "program": {"name": "string"},
}


class Ocel:
    """Writes one document. A context manager, complete only when it is left without an error."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._objects = tempfile.SpooledTemporaryFile(max_size=16 * 1_048_576)  # noqa: SIM115 -- closed at the exit
        self._programs: set[str] = set()
        self._events_written = self._objects_written = 0
        types = {
            "objectTypes": [{"name": name, "attributes": _types(known)} for name, known in _OBJECT_ATTRIBUTES.items()],
            "eventTypes": [{"name": tag, "attributes": _types(_EVENT_ATTRIBUTES)} for tag in TYPE_BY_TAG],
        }
        stream.write(msgspec.json.encode(types)[:-1] + b',"events":[')

    def write(self, batch: Iterable[Exported]) -> None:
        for row, is_first, begun, instance, contract_hash in batch:
            saga, at = _saga(row), _time(row.at_ms)
            if is_first:
                about = {"name": row.saga, "version": str(row.version), "contract_hash": contract_hash}
                self._object(saga, "saga", at, about)
            for step, saga_round in begun:
                about = {"name": step, "round": str(saga_round)}
                self._object(_step(row, step, saga_round), "step", at, about, ("part of", saga))
            if row.writer and row.writer not in self._programs:
                self._programs.add(row.writer)
                self._object(f"program:{row.writer}", "program", at, {"name": row.writer})
            self._event(row, saga, at, instance)

    def _event(self, row: Row, saga: str, at: str, instance: Key | None) -> None:
        values = {**msgspec.structs.asdict(row), "record_id": row.id}
        related = [("saga", saga)]
        if instance is not None:
            related.append(("step", _step(row, *instance)))
        if row.writer:
            related.append(("writer", f"program:{row.writer}"))
        event = {
            "id": f"{row.saga}:{row.partition}:{row.offset}",
            "type": row.type,
            "time": at,
            "attributes": [
                {"name": name, "value": str(values[name])}
                for name in _EVENT_ATTRIBUTES
                if values[name] or name in ("partition", "offset")
            ],
            "relationships": _related(related),
        }
        self._stream.write((b"," if self._events_written else b"") + msgspec.json.encode(event))
        self._events_written += 1

    def _object(self, name: str, kind: str, at: str, about: dict[str, str], *related: tuple[str, str]) -> None:
        one: dict[str, Any] = {
            "id": name,
            "type": kind,
            "attributes": [{"name": key, "value": value, "time": at} for key, value in about.items()],
            "relationships": _related(related),
        }
        self._objects.write((b"," if self._objects_written else b"") + msgspec.json.encode(one))
        self._objects_written += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._objects as objects:
            if kind is None:
                self._stream.write(b'],"objects":[')
                objects.seek(0)
                shutil.copyfileobj(objects, self._stream)
                self._stream.write(b"]}\n")
                self._stream.flush()


def _types(known: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "type": kind} for name, kind in known.items()]


def _related(pairs: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"objectId": name, "qualifier": qualifier} for qualifier, name in pairs]


def _saga(row: Row) -> str:
    return f"saga:{row.saga}:{row.saga_id}"


def _step(row: Row, step: str, saga_round: int) -> str:
    return f"step:{row.saga}:{row.saga_id}:{step}:{saga_round}"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
