"""The schemas beside the code say what the code does, and a change that breaks a reader is found."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from choreo.contract import Saga, Step
from choreo.contract.document import to_json
from choreo.messages.codec import decode, encode
from choreo.messages.examples import examples
from choreo.messages.headers import CE_TYPE, JSON, make_headers
from choreo.messages.records import RECORD_TYPES, Record, StepCompleted
from choreo.messages.schema import asyncapi, incompatibilities, json_schemas
from schemas import generate
from tests.unit.wire_examples import wire_examples

SCHEMAS = json_schemas()
TAGS = {kind: str(kind.__struct_config__.tag) for kind in RECORD_TYPES}
ORDER = Saga(
    "order",
    Step("reserve_stock", compensation="release_stock"),
    Step("charge_card", compensation="refund_card"),
    Step("weigh", after="reserve_stock"),
    Step("ship", after=("charge_card", "weigh")),
    version=4,
    description="Sells things.",
)


# The files


def test_the_files_say_what_the_code_says() -> None:
    assert generate.drifted() == [], "run python -m schemas.generate"


def test_every_record_the_union_and_the_contract_have_a_file() -> None:
    names = {path.name.removesuffix(".schema.json") for path in generate.FOLDER.glob("*.schema.json")}
    assert names == {*TAGS.values(), "record", "contract"}


def test_files_are_readable_and_end_with_a_line_break() -> None:
    for text in generate.generated().values():
        assert text.endswith("}\n")
        assert max(len(line) for line in text.splitlines()) < 400


def test_a_check_lists_what_differs_and_mends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "execute.schema.json").write_text("{}")
    (tmp_path / "record.schema.json").unlink()
    (tmp_path / "left_over.schema.json").write_text("{}")
    assert generate.main(["--check"]) == 1
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()] == [
        "schemas/execute.schema.json",
        "schemas/left_over.schema.json",
        "schemas/record.schema.json",
    ]
    assert (tmp_path / "execute.schema.json").read_text() == "{}"
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0


# What a schema says


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_a_json_schema_with_a_title_and_a_description_of_every_field(name: str) -> None:
    document = SCHEMAS[name]
    Draft202012Validator.check_schema(document)
    for part in (document, *document.get("$defs", {}).values()):
        assert part["title"]
        assert part["description"]
        assert "Attributes:" not in part["description"]
        for field, schema in part.get("properties", {}).items():
            assert schema.get("description"), f"{part['title']}.{field} has no description"


def test_patterns_are_written_for_every_dialect() -> None:
    assert r"\Z" not in json.dumps(json_schemas(), ensure_ascii=False)
    assert SCHEMAS["execute"]["properties"]["step"]["pattern"] == "^[a-z][a-z0-9_]{0,63}$"


@pytest.mark.parametrize("kind", RECORD_TYPES)
@pytest.mark.parametrize("name", ["its own", "record"])
def test_every_record_in_json_is_valid_under_its_schema_and_the_union(kind: type[Record], name: str) -> None:
    validator = Draft202012Validator(SCHEMAS[TAGS[kind] if name == "its own" else name])
    for record in (wire_examples()[kind], examples(ORDER)[kind]):
        validator.validate(msgspec.json.decode(encode(record)))


@pytest.mark.parametrize("kind", RECORD_TYPES)
def test_a_schema_refuses_every_other_record(kind: type[Record]) -> None:
    taken = {
        other
        for other in RECORD_TYPES
        if Draft202012Validator(SCHEMAS[TAGS[kind]]).is_valid(msgspec.json.decode(encode(wire_examples()[other])))
    }
    assert taken == {kind}


@pytest.mark.parametrize(
    "change",
    [{"step": "Charge"}, {"round": 0}, {"run": ""}, {"due_ms": -1}, {"effects": {"Bad name": 1}}, {"start": "x"}],
    ids=str,
)
def test_a_schema_refuses_what_the_codec_refuses(change: dict[str, Any]) -> None:
    value = msgspec.json.decode(encode(wire_examples()[StepCompleted])) | change
    assert not Draft202012Validator(SCHEMAS["step_completed"]).is_valid(value)
    assert not Draft202012Validator(SCHEMAS["record"]).is_valid(value)


def test_a_contracts_document_is_valid_under_its_schema() -> None:
    Draft202012Validator(SCHEMAS["contract"]).validate(json.loads(to_json(ORDER)))


# AsyncAPI


def references(part: Any) -> list[str]:
    if isinstance(part, dict):
        found = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return found + [reference for inner in part.values() for reference in references(inner)]
    return [reference for inner in part for reference in references(inner)] if isinstance(part, list) else []


def look_up(document: dict[str, Any], reference: str) -> Any:
    place: Any = document
    for name in reference.removeprefix("#/").split("/"):
        place = place[name]
    return place


def messages_of(document: dict[str, Any], operation: str) -> list[str]:
    return [message["$ref"].rpartition("/")[2] for message in document["operations"][operation]["messages"]]


def test_the_asyncapi_document_names_the_saga_and_its_three_topics() -> None:
    document = asyncapi(ORDER)
    assert document["asyncapi"] == "3.1.0"
    assert document["info"] == {"title": "Saga order", "version": "4", "description": "Sells things."}
    assert {name: channel["address"] for name, channel in document["channels"].items()} == {
        "saga": "choreo.order",
        "deadLetters": "choreo.order.dead-letters",
        "contracts": "choreo.contracts",
    }
    assert document["x-choreo-saga"]["content-hash"] == ORDER.content_hash


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = asyncapi(ORDER)
    found = references(document)
    assert len(set(found)) > 2 * len(RECORD_TYPES)
    for reference in found:
        assert look_up(document, reference)


def test_each_step_receives_what_triggers_it_and_sends_its_answers() -> None:
    document = asyncapi(ORDER)
    assert messages_of(document, "reserve_stock.run") == ["SagaStarted", "Execute"]
    assert messages_of(document, "weigh.run") == ["StepCompleted", "Execute"]
    assert messages_of(document, "ship.run") == ["Execute"]
    assert messages_of(document, "ship.answer") == ["StepCompleted", "StepFailed"]
    assert messages_of(document, "charge_card.compensate") == ["Compensate"]
    assert document["operations"]["charge_card.compensate"]["x-choreo-compensates"] == "refund_card"
    assert "ship.compensate" not in document["operations"]


def test_every_record_is_sent_by_somebody_and_operations_only_receive_or_send() -> None:
    document = asyncapi(ORDER)
    sent = {
        message
        for name, operation in document["operations"].items()
        if operation["action"] == "send"
        for message in messages_of(document, name)
    }
    assert {operation["action"] for operation in document["operations"].values()} == {"send", "receive"}
    assert sent == {kind.__name__ for kind in RECORD_TYPES}


@pytest.mark.parametrize("kind", RECORD_TYPES)
def test_each_message_has_an_example_that_fits_its_schema_and_its_headers(kind: type[Record]) -> None:
    document = asyncapi(ORDER)
    message = document["components"]["messages"][kind.__name__]
    (example,) = message["examples"]
    assert message["name"] == CE_TYPE[kind].decode() == example["headers"]["ce_type"]
    schema = {"$ref": message["payload"]["$ref"], "components": document["components"]}
    Draft202012Validator(schema).validate(example["payload"])
    for part in (message["headers"], document["components"]["messageTraits"]["cloudEvents"]["headers"]):
        Draft202012Validator(part).validate(example["headers"])


@pytest.mark.parametrize("kind", RECORD_TYPES)
def test_each_example_is_a_record_that_the_codec_takes(kind: type[Record]) -> None:
    record = examples(ORDER)[kind]
    headers = make_headers(record, source="/choreo/test", content_type=JSON)
    assert decode(record.saga_id.encode(), encode(record), headers) == record


# Compatibility

Schema = dict[str, Any]
STEP_FAILED = SCHEMAS["step_failed"]


def changed(change: Callable[[Schema], object], schema: Schema = STEP_FAILED) -> Schema:
    changed = copy.deepcopy(schema)
    change(changed)
    return changed


def test_nothing_that_was_released_is_broken() -> None:
    assert list(generate.RELEASED.glob(f"*/{generate.RECORD}")), "each release leaves its schema here"
    assert generate.broken() == []


def test_a_release_that_would_break_an_earlier_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "RELEASED", tmp_path)
    assert generate.main(["--release", "1.0.0"]) == 0
    kept = tmp_path / "1.0.0" / generate.RECORD
    assert kept.read_text() == (generate.FOLDER / generate.RECORD).read_text()
    older = json.loads(kept.read_text())
    older["$defs"]["StepFailed"]["properties"]["gone"] = {"type": "string"}
    older["$defs"]["StepFailed"]["required"].append("gone")
    kept.write_text(json.dumps(older))
    assert generate.main(["--release", "1.1.0"]) == 1
    assert "since 1.0.0: StepFailed.gone" in capsys.readouterr().out


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_stays_breaks_nobody(name: str) -> None:
    assert incompatibilities(SCHEMAS[name], json_schemas()[name]) == []


BREAKS: dict[str, tuple[Callable[[Schema], object], str]] = {
    "a required field removed": (
        lambda new: (new["properties"].pop("step"), new["required"].remove("step")),
        (
            "StepFailed.step: a required field is gone; readers of the old release refuse records without it. "
            "Remedy: make it optional in one release, remove it in a later one"
        ),
    ),
    "a required field added": (
        lambda new: (new["properties"].update(cost={"type": "integer"}), new["required"].append("cost")),
        "StepFailed.cost: a new field is required; records in logs lack it. Remedy: give it a default",
    ),
    "an optional field made required": (
        lambda new: new["required"].append("run"),
        "StepFailed.run: an optional field is required now; records in logs lack it. Remedy: give it a default",
    ),
    "another type": (
        lambda new: new["properties"]["abort"].update(type="integer"),
        "StepFailed.abort: narrowed from boolean to integer. Remedy: take both, or add a field beside it",
    ),
    "a type where anything went": (
        lambda new: new["properties"]["abort"].update(type=["boolean"], const=True),
        "StepFailed.abort: other values no longer allowed, but stand in logs. Remedy: keep them, even if unused",
    ),
    "an enum narrowed": (
        lambda new: new["properties"]["effect"]["enum"].remove("unknown"),
        "StepFailed.effect: 'unknown' no longer allowed, but stand in logs. Remedy: keep them, even if unused",
    ),
    "an enum narrowed in a part": (
        lambda new: new["$defs"]["Failure"]["properties"]["kind"]["enum"].remove("crashed"),
        "StepFailed.failure.kind: 'crashed' no longer allowed, but stand in logs. Remedy: keep them, even if unused",
    ),
    "another pattern": (
        lambda new: new["properties"]["start"].update(pattern="^[0-9a-f]{32}$"),
        (
            "StepFailed.start: pattern ^[0-9a-f]{32}$ may refuse what ^[0-9a-f]{16}$ took. "
            "Remedy: keep the old one, or add a record type of its own"
        ),
    ),
    "a pattern where there was none": (
        lambda new: new["properties"]["run"].update(pattern="^x"),
        (
            "StepFailed.run: pattern ^x may refuse what no pattern took. "
            "Remedy: keep the old one, or add a record type of its own"
        ),
    ),
    "a shorter text": (
        lambda new: new["properties"]["run"].update(maxLength=32),
        "StepFailed.run: maxLength narrowed from 64 to 32; logs may hold more. Remedy: keep the old limit for reading",
    ),
    "a limit where there was none": (
        lambda new: new["properties"]["run"].update(minLength=1),
        "StepFailed.run: minLength narrowed from none to 1; logs may hold more. Remedy: keep the old limit for reading",
    ),
    "a higher minimum": (
        lambda new: new["properties"]["round"].update(minimum=2),
        "StepFailed.round: minimum narrowed from 1 to 2; logs may hold more. Remedy: keep the old limit for reading",
    ),
    "another default": (
        lambda new: new["properties"]["round"].update(default=2),
        (
            "StepFailed.round: default changed from 1 to 2; records that leave it out would change their meaning. "
            "Remedy: keep the default, or add a field beside it"
        ),
    ),
    "another tag": (
        lambda new: new["properties"]["type"].update(const="step_broke"),
        (
            "StepFailed: tag changed from 'step_failed' to 'step_broke'; no reader knows the other. "
            "Remedy: keep the tag, or add a record type of its own"
        ),
    ),
    "null refused": (
        lambda new: new["$defs"]["Failure"]["properties"].update(traceback={"type": "string", "default": None}),
        "StepFailed.failure.traceback: 'null' is no longer taken, but stands in logs. Remedy: keep it, even if unused",
    ),
    "unknown fields refused": (
        lambda new: new.update(additionalProperties=False),
        "StepFailed.*: nothing is taken here any more. Remedy: take what was taken before",
    ),
    "a keyword that the check does not know": (
        lambda new: new["properties"]["start"].update(format="uuid"),
        (
            "StepFailed.start: 'format' has changed, which this check cannot judge. "
            "Remedy: keep it, or add a record type of its own"
        ),
    ),
}


@pytest.mark.parametrize(("change", "sentence"), BREAKS.values(), ids=BREAKS)
def test_a_change_that_breaks_a_reader_is_told_with_its_remedy(
    change: Callable[[Schema], object], sentence: str
) -> None:
    assert incompatibilities(STEP_FAILED, changed(change)) == [sentence]


def test_names_and_values_of_a_map_are_compared_too() -> None:
    def narrow(new: Schema) -> None:
        new["properties"]["effects"]["propertyNames"]["pattern"] = "^x"
        new["properties"]["effects"]["additionalProperties"] = {"type": "object"}

    assert incompatibilities(SCHEMAS["execute"], changed(narrow, SCHEMAS["execute"])) == [
        "Execute.effects.*: narrowed from any type to object. Remedy: take both, or add a field beside it",
        (
            "Execute.effects (names): pattern ^x may refuse what ^[a-z][a-z0-9_]{0,63}$ took. "
            "Remedy: keep the old one, or add a record type of its own"
        ),
    ]


def test_items_of_a_list_are_compared_too() -> None:
    new = changed(lambda new: new["properties"]["remaining"].update(items={"type": "integer"}), SCHEMAS["saga_stuck"])
    assert incompatibilities(SCHEMAS["saga_stuck"], new) == [
        "SagaStuck.remaining[]: narrowed from string to integer. Remedy: take both, or add a field beside it"
    ]


def test_a_record_removed_from_the_union_is_told() -> None:
    def remove(new: Schema) -> None:
        new["anyOf"].remove({"$ref": "#/$defs/CancelRefused"})

    assert incompatibilities(SCHEMAS["record"], changed(remove, SCHEMAS["record"])) == [
        "Record: 'cancel_refused' is no longer taken, but stands in logs. Remedy: keep it, even if unused"
    ]


def test_a_tag_changed_in_the_union_is_told_as_that() -> None:
    def rename(new: Schema) -> None:
        new["$defs"]["CancelRefused"]["properties"]["type"]["const"] = "cancel_denied"

    assert incompatibilities(SCHEMAS["record"], changed(rename, SCHEMAS["record"])) == [
        (
            "CancelRefused: tag changed from 'cancel_refused' to 'cancel_denied'; no reader knows the other. "
            "Remedy: keep the tag, or add a record type of its own"
        )
    ]


def test_all_breaks_are_told_at_once() -> None:
    def spoil(new: Schema) -> None:
        for change, _ in BREAKS.values():
            change(new)

    assert len(incompatibilities(STEP_FAILED, changed(spoil))) >= 10


WIDENINGS: dict[str, Callable[[Schema], object]] = {
    "an optional field added": lambda new: new["properties"].update(cost={"type": "integer", "default": 0}),
    "an optional field removed": lambda new: new["properties"].pop("abort"),
    "a required field made optional": lambda new: new["required"].remove("step"),
    "an enum widened": lambda new: new["properties"]["effect"]["enum"].append("some"),
    "a limit widened": lambda new: new["properties"]["run"].update(maxLength=128),
    "a limit dropped": lambda new: new["properties"]["run"].pop("maxLength"),
    "a pattern dropped": lambda new: new["properties"]["start"].pop("pattern"),
    "a type dropped": lambda new: new["properties"]["abort"].pop("type"),
    "an integer made a number": lambda new: new["properties"]["round"].update(type="number"),
    "null taken too": lambda new: new["properties"].update(
        run={"anyOf": [{"type": "string", "maxLength": 64}, {"type": "null"}], "default": ""}
    ),
    "other words": lambda new: new["properties"]["run"].update(description="changed"),
}


@pytest.mark.parametrize("change", WIDENINGS.values(), ids=WIDENINGS)
def test_widening_breaks_nobody(change: Callable[[Schema], object]) -> None:
    new = changed(change)
    assert new != STEP_FAILED
    assert incompatibilities(STEP_FAILED, new) == []


def test_a_new_record_in_the_union_breaks_nobody() -> None:
    def add(new: Schema) -> None:
        new["anyOf"].append({"$ref": "#/$defs/StepPaused"})
        new["$defs"]["StepPaused"] = {"title": "StepPaused", "properties": {"type": {"const": "step_paused"}}}

    assert incompatibilities(SCHEMAS["record"], changed(add, SCHEMAS["record"])) == []
