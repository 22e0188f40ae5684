"""History as files of other trades: rows that are complete, and documents that hold to their standards."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as parquet
import pytest

from choreo.audit.ocel import Ocel
from choreo.audit.rows import Exported, exported
from choreo.audit.tables import COLUMNS, Csv, JsonLines, Parquet
from choreo.cli.app import run_command
from choreo.cli.exits import Exit
from tests.unit.audit.recorded import HISTORIES, T0, Recorder, back, happy, log_of
from tests.unit.audit.test_proof import written

TEXT = {"type": "string"}


def named(kinds: list[str]) -> dict[str, Any]:
    attribute = {"type": "object", "properties": {"name": TEXT, "type": {"enum": kinds}}, "required": ["name", "type"]}
    properties = {"name": TEXT, "attributes": {"type": "array", "items": attribute}}
    return {"type": "array", "items": {"type": "object", "properties": properties, "required": ["name", "attributes"]}}


def things(*needs: str, timed: bool) -> dict[str, Any]:
    value = {"name": TEXT, "value": TEXT} | ({"time": {"type": "string", "format": "date-time"}} if timed else {})
    relation = {
        "type": "object",
        "properties": {"objectId": TEXT, "qualifier": TEXT},
        "required": ["objectId", "qualifier"],
    }
    properties = {
        "id": TEXT,
        "type": TEXT,
        "time": {"type": "string", "format": "date-time"},
        "attributes": {
            "type": "array",
            "items": {"type": "object", "properties": value, "required": list(value), "additionalProperties": False},
        },
        "relationships": {"type": "array", "items": relation},
    }
    return {"type": "array", "items": {"type": "object", "properties": properties, "required": list(needs)}}


OCEL_SCHEMA = {
    "type": "object",
    "properties": {
        "objectTypes": named(["string", "time", "integer", "float", "boolean"]),
        "eventTypes": named(["string", "time", "integer", "float", "boolean"]),
        "events": things("id", "type", "time", timed=False),
        "objects": things("id", "type", timed=True),
    },
    "required": ["eventTypes", "objectTypes", "events", "objects"],
    "additionalProperties": False,
}
"""What the standard's JSON schema demands, stricter where the specification's text is."""


async def rows_of(told: Recorder, **options: Any) -> list[Exported]:
    broker, registry = await log_of(told.contract, told.messages)
    found = exported(broker, told.contract.name, registry=registry, **options)
    return [each async for batch in found for each in batch]


async def test_a_row_says_what_its_record_says() -> None:
    rows = [each.row for each in await rows_of(back())]
    assert [row.offset for row in rows] == list(range(9))
    failed = rows[3]
    assert (failed.type, failed.step, failed.round, failed.failure_kind, failed.failure_code) == (
        "step_failed",
        "c",
        1,
        "rejected",
        "no",
    )
    assert (failed.at_ms, failed.writer, failed.decided, failed.phase) == (
        T0 + 3_000,
        "service",
        "compensate b",
        "compensating",
    )
    assert json.loads(failed.record)["failure"]["code"] == "no"
    assert rows[4].writer == "saga-log"
    assert rows[-1].phase == "compensated"


async def test_only_records_of_the_times_that_are_asked_for_and_no_values_where_they_are_not_wanted() -> None:
    rows = await rows_of(back(), since_ms=T0 + 2_000, until_ms=T0 + 4_000, with_values=False)
    assert [each.row.offset for each in rows] == [2, 3, 4]
    assert {each.row.record for each in rows} == {""}


async def test_each_record_is_there_once_whatever_was_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.saga_log.window.SETTLED_KEPT", 0)
    monkeypatch.setattr("choreo.saga_log.replay._RECORDS_PER_POLL", 1)
    told = written("s", "t", "u")
    told.completed("s", "a", run="late")
    rows = await rows_of(told)
    assert sorted(each.row.offset for each in rows) == list(range(len(told.messages)))
    assert Counter(each.row.saga_id for each in rows if each.is_first) == {"s": 1, "t": 1, "u": 1}


def test_json_lines_and_csv_have_the_same_rows(tmp_path: Path) -> None:
    import asyncio

    batch = asyncio.run(rows_of(back()))
    lines, table = io.BytesIO(), io.BytesIO()
    with JsonLines(lines) as writer:
        writer.write(batch[:3])
        writer.write(batch[3:])
    with Csv(table) as csv_writer:
        csv_writer.write(batch)
    documents = [json.loads(line) for line in lines.getvalue().splitlines()]
    cells = list(csv.DictReader(io.StringIO(table.getvalue().decode())))
    assert len(documents) == len(cells) == 9
    assert tuple(documents[0]) == COLUMNS
    for document, row in zip(documents, cells, strict=True):
        assert json.loads(row.pop("record")) == document.pop("record")
        assert row == {name: str(value) for name, value in document.items()}


async def test_parquet_has_types_and_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.audit.tables._ROW_GROUP", 3)
    batch = await rows_of(back())
    with Parquet(tmp_path / "rows.parquet") as writer:
        writer.write(batch[:4])
        writer.write(batch[4:])
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.num_rows == 9
    assert table.column_names == [*COLUMNS, "at"]
    assert table["offset"].to_pylist() == list(range(9))
    assert table["at"][0].as_py() == datetime.fromtimestamp(T0 / 1_000, UTC)
    assert json.loads(table["record"][0].as_py())["type"] == "saga_started"


def ocel_of(batch: list[Exported]) -> dict[str, Any]:
    stream = io.BytesIO()
    with Ocel(stream) as writer:
        writer.write(batch[:2])
        writer.write(batch[2:])
    document: dict[str, Any] = json.loads(stream.getvalue())
    jsonschema.validate(document, OCEL_SCHEMA, format_checker=jsonschema.FormatChecker())
    return document


@pytest.mark.parametrize("name", HISTORIES)
async def test_ocel_holds_to_its_schema_and_refers_to_nothing_that_is_not_there(name: str) -> None:
    told = HISTORIES[name]()
    document = ocel_of(await rows_of(told))
    assert len(document["events"]) == len(told.messages)
    objects = [each["id"] for each in document["objects"]]
    assert len(objects) == len(set(objects)), "an object is there once"
    assert len({each["id"] for each in document["events"]}) == len(document["events"])
    for each in (*document["events"], *document["objects"]):
        assert {one["objectId"] for one in each["relationships"]} <= set(objects)
    types = {each["name"]: {one["name"] for one in each["attributes"]} for each in document["eventTypes"]}
    for event in document["events"]:
        assert {one["name"] for one in event["attributes"]} <= types[event["type"]]


async def test_ocel_tells_what_an_event_is_about() -> None:
    document = ocel_of(await rows_of(happy()))
    event = document["events"][1]
    assert (event["type"], event["time"]) == ("step_completed", "2023-11-14T22:13:21.000Z")
    assert {one["qualifier"]: one["objectId"] for one in event["relationships"]} == {
        "saga": "saga:order:s",
        "step": "step:order:s:a:1",
        "writer": "program:service",
    }
    assert Counter(each["type"] for each in document["objects"]) == {"saga": 1, "step": 3, "program": 3}


async def test_a_document_without_events_is_one_too() -> None:
    assert ocel_of([])["events"] == []


def test_the_command_writes_each_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import asyncio

    from choreo.broker import open_broker
    from choreo.broker.registry import ensure_saga_topics, register
    from tests.unit.by_hand import LINE as HAND
    from tests.unit.by_hand import Pen

    url = f"sqlite:///{tmp_path}/log.db"

    async def fill() -> None:
        broker = await open_broker(url)
        await ensure_saga_topics(broker, [HAND], partitions=2)
        await register(broker, [HAND])
        pen = Pen(broker, await broker.producer(), HAND)  # type: ignore[arg-type]
        for saga_id in ("s", "t"):
            await pen.whole_line(saga_id)
        await broker.close()

    asyncio.run(fill())
    command = ["audit", "export", "order", "--broker", url]
    for kind in ("jsonl", "csv", "parquet", "ocel"):
        file = tmp_path / f"out.{kind}"
        assert run_command([*command, "--format", kind, "--output", str(file)]) == Exit.DONE
        assert file.stat().st_size > 1_000
        assert "8 records exported" in capsys.readouterr().err
    assert run_command([*command, "--since", "-1h", "--no-values"]) == Exit.DONE
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert run_command([*command, "--until", "-1h"]) == Exit.DONE
    assert capsys.readouterr().out == ""
    assert run_command([*command, "--format", "parquet"]) == Exit.CONFIGURATION
    assert run_command([*command, "--since", "17"]) == Exit.CONFIGURATION
    assert run_command([*command, "--output", str(tmp_path / "no" / "where")]) == Exit.CONFIGURATION
