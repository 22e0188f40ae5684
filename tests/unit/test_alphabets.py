"""The letters of ids and names: whatever type a text is in, a record with other letters is neither read nor written."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo import ids
from choreo.errors import Undecodable, Unencodable
from choreo.messages import alphabets
from choreo.messages.codec import decode, encode
from choreo.messages.family import Parent, SagaUndone, UndoRequested
from choreo.messages.headers import CONTENT_TYPES
from choreo.messages.records import (
    Compensate,
    Execute,
    SagaCompensated,
    SagaCompleted,
    SagaStarted,
    SagaStuck,
    StartRefused,
    StepCompleted,
    Undone,
)
from tests.unit.wire_examples import ABOUT, wire_examples

PARENT = Parent(**ABOUT, step="a", round=1, due_ms=1)
PATTERNS = {
    "saga": ids.SAGA_NAME_PATTERN,
    "saga_id": ids.SAGA_ID_PATTERN,
    "start": ids.START_HASH_PATTERN,
    "standing_start": ids.START_HASH_PATTERN,
    "contract_hash": ids.CONTRACT_HASH_PATTERN,
    "step": ids.STEP_NAME_PATTERN,
}


def replace(record: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(record, **changes)


def written(record: Any, content_type: str) -> bytes:
    """What a careless sender would write."""
    module = msgspec.json if content_type == CONTENT_TYPES[0] else msgspec.msgpack
    value: bytes = module.encode(record)
    return value


NULL = msgspec.Raw(b"null")
PLACES: list[tuple[str, Any]] = [
    ("saga", lambda text: replace(wire_examples()[StepCompleted], saga=text)),
    ("saga_id", lambda text: replace(wire_examples()[StepCompleted], saga_id=text)),
    ("start", lambda text: replace(wire_examples()[StepCompleted], start=text)),
    ("step", lambda text: replace(wire_examples()[StepCompleted], step=text)),
    ("contract_hash", lambda text: replace(wire_examples()[SagaStarted], contract_hash=text)),
    ("standing_start", lambda text: replace(wire_examples()[StartRefused], standing_start=text)),
    ("step", lambda text: replace(wire_examples()[StepCompleted], effects={"fine": NULL, text: NULL})),
    ("step", lambda text: replace(wire_examples()[Execute], signals={text: NULL})),
    ("step", lambda text: replace(wire_examples()[Compensate], remaining=("fine", text))),
    ("step", lambda text: replace(wire_examples()[SagaStuck], remaining=(text,))),
    ("step", lambda text: replace(wire_examples()[SagaCompleted], skipped=(text,))),
    ("step", lambda text: replace(wire_examples()[SagaCompensated], step=text)),
    (
        "step",
        lambda text: replace(
            wire_examples()[SagaCompensated], compensations=(Undone(step=text, round=1, how="undone"),)
        ),
    ),
    (
        "step",
        lambda text: replace(wire_examples()[SagaUndone], compensations=(Undone(step=text, round=1, how="undone"),)),
    ),
    *(
        (name, lambda text, name=name: replace(wire_examples()[UndoRequested], parent=replace(PARENT, **{name: text})))
        for name in ("saga", "saga_id", "start", "step")
    ),
    ("step", lambda text: replace(wire_examples()[SagaStarted], parent=replace(PARENT, step=text))),
]


@pytest.mark.parametrize("place", range(len(PLACES)))
@given(text=st.text(st.sampled_from("a0-_/:.Z \n\0é"), max_size=20) | st.text(max_size=20))
def test_a_record_with_other_letters_is_neither_written_nor_read(place: int, text: str) -> None:
    field, make = PLACES[place]
    record = make(text)
    is_good = re.search(PATTERNS[field], text) is not None
    key = record.saga_id.encode("utf-8", "replace")
    if is_good:
        assert decode(key, encode(record), ()) == record
        return
    with pytest.raises(Unencodable):
        encode(record)
    value = written(record, CONTENT_TYPES[0])
    with pytest.raises(Undecodable):
        decode(key, value, ())


def test_the_place_of_a_wrong_text_is_named() -> None:
    with pytest.raises(Unencodable, match=r"matching regex .* - at `\$\.remaining\[\.\.\.\]`"):
        encode(replace(wire_examples()[SagaStuck], remaining=("fine", "Not fine")))
    with pytest.raises(Unencodable, match=r"at `key` in `\$\.effects`"):
        encode(replace(wire_examples()[StepCompleted], effects={"Not fine": NULL}))
    with pytest.raises(Unencodable, match=r"at `\$\.parent\.step`"):
        encode(replace(wire_examples()[UndoRequested], parent=replace(PARENT, step="")))


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alphabets, "KNOWN_MAX", 10)
    letters = alphabets._Alphabet(ids.SAGA_ID_PATTERN)
    for number in range(100):
        letters.look(f"s{number}", "$")
        assert len(letters.known) <= 10
