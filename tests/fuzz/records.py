"""Malformed records, drawn from a seed, and of each what must become of it.

What is *bad* is said by how the record was made, not by the code under test: a value cut in half is bad, whatever
``decode`` thinks of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from choreo.broker.port import Headers
from choreo.contract import Saga, Step
from choreo.messages.codec import encode
from choreo.messages.headers import JSON, MISPLACED, MSGPACK, UNREADABLE, make_headers
from choreo.messages.records import (
    Compensate,
    CompensationFailed,
    Execute,
    Failure,
    Record,
    RoundStarted,
    SagaCompensated,
    SagaCompleted,
    SagaStarted,
    SagaStuck,
    StepCompensated,
    StepCompleted,
    StepFailed,
)

FUZZED = Saga(
    "fuzzed",
    Step("first", compensation="undo_first"),
    Step("left", compensation="undo_left", after="first"),
    Step("right", compensation="undo_right", after="first"),
    Step("last", compensation="undo_last", after=("left", "right")),
    deadline="1h",
)

FAR_MS = 2**50
STRICT_FIELDS = ("saga", "version", "saga_id", "start")  # an object in one of these is no record, of whatever kind
BYTES_MAX = 1_000_000  # a broker takes 1 MiB, headers included


class Fate(StrEnum):
    """What must become of a record."""

    BAD = "kept as a dead letter, once"
    PARKED = "kept until its contract is there"
    HARMLESS = "read, and without consequence for any other saga"
    EITHER = "kept as a dead letter once, or read"


class Fuzz(NamedTuple):
    """A record to append, and what must become of it."""

    kind: str
    fate: Fate
    key: str
    value: bytes
    headers: Headers


class Running(NamedTuple):
    """A saga that really runs."""

    saga_id: str
    start: str


class Source:
    """Draws malformed records: at sagas that really run, under their keys, or of sagas that never were."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._ghosts = 0
        self._bad: list[Callable[[str], tuple[bytes, Headers]]] = [
            self._cut,
            self._random_bytes,
            self._not_a_record,
            self._wrong_type,
            self._missing_field,
            self._unknown_tag,
            self._nested,
            self._huge_number,
            self._not_utf8,
            self._trailing,
            self._wrong_codec,
            self._unknown_codec,
            self._many_headers,
            self._large_headers,
            self._other_saga,
            self._bad_names,
            self._bad_counters,
            self._wrong_version_header,
            self._marked,
        ]

    def draw(self, running: list[Running]) -> Fuzz:
        """The next one; ``running`` are sagas at which it may be aimed."""
        chance = self._rng.random()
        if chance < 0.80 or not running:
            return self._draw_bad(running)
        if chance < 0.86:
            return self._parked()
        if chance < 0.93:
            return self._flipped()
        return self._forged(running)

    def _draw_bad(self, running: list[Running]) -> Fuzz:
        chance = self._rng.random()
        if chance < 0.05:
            return self._wrong_key(running)
        if chance < 0.052:
            return self._too_large()
        if chance < 0.06:
            return self._wrong_contract()
        key = self._rng.choice(running).saga_id if running and self._rng.random() < 0.3 else self._ghost()
        make = self._rng.choice(self._bad)
        value, headers = make(key)
        return Fuzz(make.__name__.strip("_"), Fate.BAD, key, value, headers)

    # Valid records, to be spoilt

    def _ghost(self) -> str:
        self._ghosts += 1
        return f"ghost-{self._ghosts}"

    def _about(self, saga_id: str, version: int = 1) -> dict[str, Any]:
        return {
            "saga": "fuzzed",
            "version": version,
            "saga_id": saga_id,
            "start": f"{self._rng.getrandbits(64):016x}",
        }

    def _record(self, saga_id: str, version: int = 1, content_type: str = JSON) -> Record:
        """A valid record of a random kind."""
        about = self._about(saga_id, version)
        raw = msgspec.Raw(b"1" if content_type == JSON else b"\x01")
        at = {**about, "step": self._rng.choice([step.name for step in FUZZED.steps])}
        context: dict[str, Any] = {"saga_due_ms": FAR_MS, "input": raw, "effects": {}}
        failure = Failure(kind="rejected", code="no")
        match self._rng.randrange(7):
            case 0:
                return self._started(saga_id, version, content_type)
            case 1:
                return StepFailed(**at, failure=failure, run="run", effect="none")
            case 2:
                return Execute(**at, **context)
            case 3:
                return Compensate(
                    **at, generation=1, deadline_ms=60_000, input=raw, effects={}, effect=raw, failure=failure
                )
            case 4:
                return StepCompensated(**at, generation=1, run="run", undone=True)
            case 5:
                return CompensationFailed(**at, generation=1, run="run", failure=failure)
        return StepCompleted(**at, **context, run="run", due_ms=FAR_MS, effect=raw)

    def _started(self, saga_id: str, version: int = 1, content_type: str = JSON, **changes: Any) -> SagaStarted:
        fields = {
            "contract_hash": FUZZED.content_hash,
            "request": "request",
            "saga_deadline_ms": FUZZED.deadline_ms,
            "input": msgspec.Raw(b"1" if content_type == JSON else b"\x01"),
        }
        return SagaStarted(**{**self._about(saga_id, version), **fields, **changes})

    def _written(
        self, record: Record, content_type: str = JSON, said: Mapping[str, bytes] = MappingProxyType({})
    ) -> tuple[bytes, Headers]:
        """Value and headers; ``said`` is what headers say otherwise."""
        headers = make_headers(record, source="/choreo/fuzz", content_type=content_type)
        changed = tuple((name, said.get(name, value)) for name, value in headers)
        return encode(record, content_type=content_type), changed

    def _fields(self, key: str) -> tuple[dict[str, Any], Headers]:
        value, headers = self._written(self._record(key))
        return json.loads(value), headers

    # Bad, each in its own way

    def _cut(self, key: str) -> tuple[bytes, Headers]:
        content_type = self._rng.choice((JSON, MSGPACK))
        value, headers = self._written(self._record(key, content_type=content_type), content_type)
        return value[: self._rng.randrange(len(value))], headers

    def _random_bytes(self, key: str) -> tuple[bytes, Headers]:
        _, headers = self._written(self._record(key))
        return b"\xc1" + self._rng.randbytes(self._rng.randrange(2_000)), self._rng.choice((headers, ()))

    def _not_a_record(self, key: str) -> tuple[bytes, Headers]:
        _, headers = self._written(self._record(key))
        return self._rng.choice((b"", b"null", b"[]", b"0", b'"x"', b"{}", b"\xef\xbb\xbf{}", b"NaN", b" ")), headers

    def _wrong_type(self, key: str) -> tuple[bytes, Headers]:
        fields, headers = self._fields(key)
        wrong: tuple[Any, ...] = ({"x": 1}, ["x"], None, True)
        fields[self._rng.choice(STRICT_FIELDS)] = self._rng.choice(wrong)
        return json.dumps(fields).encode(), headers

    def _missing_field(self, key: str) -> tuple[bytes, Headers]:
        fields, headers = self._fields(key)
        del fields[self._rng.choice(STRICT_FIELDS)]
        return json.dumps(fields).encode(), headers

    def _unknown_tag(self, key: str) -> tuple[bytes, Headers]:
        fields, headers = self._fields(key)
        fields["type"] = self._rng.choice(("step_exploded", "", 7, None))
        return json.dumps(fields).encode(), headers

    def _nested(self, key: str) -> tuple[bytes, Headers]:
        depth = self._rng.choice((2_000, 100_000))
        if self._rng.random() < 0.5:
            return b"[" * depth + b"]" * depth, self._written(self._record(key))[1]
        fields, headers = self._fields(key)
        value = json.dumps({**fields, "start": 0}).encode()
        return value.replace(b'"start": 0', b'"start": ' + b'{"a":' * depth + b"1" + b"}" * depth), headers

    def _huge_number(self, key: str) -> tuple[bytes, Headers]:
        fields, headers = self._fields(key)
        digits = self._rng.choice((20, 400, 10_000))
        number = self._rng.choice((b"9" * digits, b"-" + b"9" * digits, b"1e999", b"NaN", b"Infinity"))
        return json.dumps({**fields, "version": 0}).encode().replace(b'"version": 0', b'"version": ' + number), headers

    def _not_utf8(self, key: str) -> tuple[bytes, Headers]:
        value, headers = self._written(self._record(key))
        return value.replace(b'"fuzzed"', b'"fuz\xff\xfezed"'), headers

    def _trailing(self, key: str) -> tuple[bytes, Headers]:
        value, headers = self._written(self._record(key))
        return value + self._rng.choice((b"}", b"{}", b"\x00", b"x")), headers

    def _wrong_codec(self, key: str) -> tuple[bytes, Headers]:
        return self._written(self._record(key), said={"content-type": MSGPACK.encode()})

    def _unknown_codec(self, key: str) -> tuple[bytes, Headers]:
        unknown = self._rng.choice((b"text/html", b"\xff", b"pickle"))
        return self._written(self._record(key), said={"content-type": unknown})

    def _many_headers(self, key: str) -> tuple[bytes, Headers]:
        value, headers = self._written(self._record(key))
        return value, (*headers, *((f"x{number}", b"") for number in range(60)))

    def _large_headers(self, key: str) -> tuple[bytes, Headers]:
        value, headers = self._written(self._record(key))
        return value, (*headers, ("x", bytes(20_000)))

    def _other_saga(self, key: str) -> tuple[bytes, Headers]:
        value, headers = self._written(msgspec.structs.replace(self._record(key), saga="other"))
        return value, headers

    def _bad_names(self, key: str) -> tuple[bytes, Headers]:
        fields, headers = self._fields(key)
        field = self._rng.choice(("saga", "start", "saga_id"))
        fields[field] = self._rng.choice(("", "A B", "\u202e", "x" * 300, "..//..", "ß", "a\n"))
        return json.dumps(fields).encode(), headers

    def _bad_counters(self, key: str) -> tuple[bytes, Headers]:
        fields, headers = self._fields(key)
        fields["version"] = self._rng.choice((0, -1, 1.5, 2**31, 2**63, "1"))
        return json.dumps(fields).encode(), headers

    def _wrong_version_header(self, key: str) -> tuple[bytes, Headers]:
        return self._written(self._record(key), said={"choreo_version": self._rng.choice((b"7", b"", b"x", b"01"))})

    def _marked(self, key: str) -> tuple[bytes, Headers]:
        value, headers = self._written(self._record(key))
        return value, ((self._rng.choice((UNREADABLE, MISPLACED)), b"\xff"), *headers)

    def _wrong_key(self, running: list[Running]) -> Fuzz:
        value, headers = self._written(self._record(self._ghost()))
        keys = ("", " ", "\x00", "x" * 5_000, "\u202e", self._ghost(), *(each.saga_id for each in running[-1:]))
        return Fuzz("wrong_key", Fate.BAD, self._rng.choice(keys), value, headers)

    def _too_large(self) -> Fuzz:
        key = self._ghost()
        effect = msgspec.Raw(b'"' + b"x" * self._rng.randrange(900_001, BYTES_MAX) + b'"')
        record = StepCompleted(
            **self._about(key),
            step="first",
            run="run",
            due_ms=FAR_MS,
            saga_due_ms=FAR_MS,
            input=msgspec.Raw(b"1"),
            effects={},
            effect=effect,
        )
        headers = make_headers(record, source="/choreo/fuzz", content_type=JSON)
        return Fuzz("too_large", Fate.BAD, key, msgspec.json.encode(record), headers)

    def _wrong_contract(self) -> Fuzz:
        key = self._ghost()
        value, headers = self._written(self._started(key, contract_hash="f" * 32))
        return Fuzz("wrong_contract", Fate.BAD, key, value, headers)

    # Not bad, and yet not right

    def _parked(self) -> Fuzz:
        """Of a contract, or of rules, that nobody has."""
        key = self._ghost()
        if self._rng.random() < 0.1:
            value, headers = self._written(self._started(key, rules=99))
            return Fuzz("unknown_rules", Fate.PARKED, key, value, headers)
        value, headers = self._written(self._record(key, version=self._rng.choice((2, 99))))
        return Fuzz("unknown_version", Fate.PARKED, key, value, headers)

    def _flipped(self) -> Fuzz:
        """A valid record with a bit turned around: it may be one still."""
        key = self._ghost()
        content_type = self._rng.choice((JSON, MSGPACK))
        value, headers = self._written(self._record(key, content_type=content_type), content_type)
        flipped = bytearray(value)
        for _ in range(self._rng.choice((1, 1, 3))):
            flipped[self._rng.randrange(len(flipped))] ^= 1 << self._rng.randrange(8)
        return Fuzz("flipped", Fate.EITHER, key, bytes(flipped), headers)

    def _forged(self, running: list[Running]) -> Fuzz:
        """Well-formed, and said by nobody who may: an outcome, a round, a notice, or an answer out of nowhere."""
        key, start = self._rng.choice(running)
        about = {**self._about(key), "start": start}
        failure = Failure(kind="crashed", message="\x1b[31mforged\u202e")
        forged: list[Record] = [
            SagaCompleted(**about, effects={}, result=msgspec.Raw(b"null")),
            SagaCompensated(**about, cause="failed", compensations=(), step="first", failure=failure),
            SagaStuck(**about, step="first", failure=failure, generation=1, remaining=("first",)),
            RoundStarted(**about, round=2),
            StepCompensated(**about, step="first", generation=9, run="run", undone=True),
            StepFailed(**about, step="nobody", failure=failure, run="run", effect="none"),
        ]
        ghost = self._record(self._ghost())
        record = self._rng.choice([*forged, ghost])
        value, headers = self._written(record)
        return Fuzz("forged", Fate.HARMLESS, record.saga_id, value, headers)
