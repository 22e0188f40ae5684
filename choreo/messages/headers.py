"""CloudEvents 1.0, Kafka protocol binding, binary mode: attributes in headers, the record in the value.

Beside the standard's own, ``choreo_version``, ``choreo_step``, ``choreo_round``, ``choreo_start`` and
``choreo_generation`` repeat routing fields, so that a reader drops what is not for it, and finds its own earlier
answers, without decoding a value. Records of releases before ``choreo_version`` lack it.
``traceparent`` (W3C Trace Context) is carried from each record to those it causes, unchanged.
"""

from __future__ import annotations

import msgspec

from choreo.messages.records import TYPE_BY_TAG, Record, RoundStarted, StepRecord

Headers = tuple[tuple[str, bytes], ...]

VERSION = "choreo_version"

UNREADABLE = "choreo_unreadable"
"""The first header of a message that a broker's adapter could not take apart without loss; its value says why."""

MISPLACED = "choreo_misplaced"
"""The first header of a message in a partition that is not its key's: the saga is elsewhere, so nobody answers it."""

UNBELIEVED = "choreo_unbelieved"
"""The first header of a message that was not signed by who may write it; its other headers are ``SET_ASIDE``."""

SET_ASIDE = "unbelieved_"
"""Before the names of headers that nobody may act on."""

JSON = "application/json"
MSGPACK = "application/msgpack"
CONTENT_TYPES = (JSON, MSGPACK)

LEADING = (
    "ce_specversion",
    "ce_id",
    "ce_type",
    "ce_source",
    "ce_subject",
    "content-type",
    "choreo_start",
    VERSION,
)
"""The names with which the headers of every record that ``make_headers`` is asked for begin, in this order."""

_TYPE_PREFIX = b"choreo."
_TYPE_SUFFIX = b".v1"
_WITH_ROUND = (StepRecord, RoundStarted)

CE_TYPE: dict[type[Record], bytes] = {
    kind: _TYPE_PREFIX + tag.encode() + _TYPE_SUFFIX for tag, kind in TYPE_BY_TAG.items()
}
"""The ``ce_type`` of each record."""

TYPE_BY_CE: dict[bytes, type[Record]] = {ce_type: kind for kind, ce_type in CE_TYPE.items()}


class Route(msgspec.Struct, frozen=True, gc=False):
    """What the headers say, unchecked: enough to drop a record, never enough to believe it.

    Attributes:
        kind: the record's type; ``None`` where the header is missing or unknown.
        step: the step that the record is about; empty for records about the saga, an outcome's failed step included.
        version, round, start, generation: as in the record; zero where it has none.
        traceparent: W3C trace context of what caused the record.
        content_type: of the value; JSON where nothing is said.
    """

    kind: type[Record] | None
    version: int
    step: str
    round: int
    start: str
    generation: int
    traceparent: bytes | None
    content_type: str


def make_headers(record: Record, *, source: str, content_type: str, traceparent: bytes | None = None) -> Headers:
    """The headers of a record that ``source`` ("/choreo/payment") writes."""
    step = record.step if isinstance(record, StepRecord) else ""
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", record.id.encode()),
        ("ce_type", CE_TYPE[type(record)]),
        ("ce_source", source.encode()),
        ("ce_subject", f"{record.saga}/{record.saga_id}/{step}".encode()),
        ("content-type", content_type.encode()),
        ("choreo_start", record.start.encode()),
        (VERSION, b"%d" % record.version),
    ]
    if isinstance(record, StepRecord):
        headers.append(("choreo_step", step.encode()))
    if isinstance(record, _WITH_ROUND):
        headers.append(("choreo_round", b"%d" % record.round))
    if generation := getattr(record, "generation", 0):
        headers.append(("choreo_generation", b"%d" % generation))
    if traceparent is not None:
        headers.append(("traceparent", traceparent))
    return tuple(headers)


def read_route(headers: Headers) -> Route:
    """What the headers say. Total: foreign, missing and malformed headers give empty fields."""
    found = dict(reversed(headers))  # of a repeated name the first counts
    return Route(
        kind=TYPE_BY_CE.get(found.get("ce_type", b"")),
        version=_number(found.get(VERSION)),
        step=_text(found.get("choreo_step")),
        round=_number(found.get("choreo_round")),
        start=_text(found.get("choreo_start")),
        generation=_number(found.get("choreo_generation")),
        traceparent=found.get("traceparent"),
        content_type=_text(found.get("content-type")) or JSON,
    )


def _text(value: bytes | None) -> str:
    return value.decode("utf-8", "replace") if value else ""


def _number(value: bytes | None) -> int:
    return int(value) if value and len(value) <= 9 and value.isdigit() else 0
