"""The commands that ask the log."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest

from choreo.broker import open_broker
from choreo.broker.registry import ensure_saga_topics, register
from choreo.cli.app import run_command
from choreo.cli.exits import Exit
from choreo.store import open_store
from tests.unit.by_hand import LINE, Pen
from tests.unit.test_saga_log import running, until


@pytest.fixture
def where(tmp_path: Path) -> list[str]:
    """A log in a file: s has completed, t is at its second step; and the store of the saga-log that was there."""
    broker_url, store_url = f"sqlite:///{tmp_path}/log.db", f"sqlite:///{tmp_path}/store.db"

    async def work() -> None:
        broker = await open_broker(broker_url)
        await ensure_saga_topics(broker, [LINE], partitions=2)
        await register(broker, [LINE])
        pen = Pen(broker, await broker.producer(), LINE)  # type: ignore[arg-type]
        await pen.whole_line("s")
        await pen.start("t")
        await pen.completed("t", "a")
        store = await open_store(store_url)
        async with running(broker, LINE, store=store) as log:
            await until(lambda: "s" in log.states() and log.states()["s"].finished_ms > 0 and "t" in log.states())
        await store.close()
        await broker.close()

    asyncio.run(work())
    return ["--broker", broker_url]


def test_history_for_people_and_for_programs(where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["audit", "history", "order", "s", *where]) == Exit.DONE
    assert "history of order s" in capsys.readouterr().out
    assert run_command(["audit", "history", "order", "s", "--json", *where]) == Exit.DONE
    document = json.loads(capsys.readouterr().out)
    assert [line["type"] for line in document["lines"]][-1] == "saga_completed"
    assert document["lines"][-1]["writer"] == "saga-log"
    assert run_command(["audit", "history", "order", "nobody", *where]) == Exit.NOT_FOUND


def test_state_at_a_moment_and_the_difference_between_two(where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["audit", "history", "order", "s", "--json", *where]) == Exit.DONE
    offsets = [line["offset"] for line in json.loads(capsys.readouterr().out)["lines"]]
    assert run_command(["audit", "state", "order", "s", "--at", str(offsets[1]), "--json", *where]) == Exit.DONE
    state = json.loads(capsys.readouterr().out)
    assert [step["phase"] for step in state["status"]["steps"]] == ["completed", "running", "waiting"]
    assert run_command(["audit", "state", "order", "s", "--at", "-1h", *where]) == Exit.NOT_FOUND
    assert run_command(["audit", "state", "order", "s", "--at", "soon", *where]) == Exit.CONFIGURATION
    assert "is no moment" in capsys.readouterr().err
    assert run_command(["audit", "diff", "order", "s", str(offsets[1]), "now", *where]) == Exit.DONE
    assert 'phase: "forward" -> "completed"' in capsys.readouterr().out
    assert run_command(["audit", "diff", "order", "s", str(offsets[0]), *where, "--json"]) == Exit.DONE
    assert len(json.loads(capsys.readouterr().out)["offsets"]) == len(offsets) - 1


def test_verify_says_that_a_log_is_sound_and_what_ails_one(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The pen is no service of choreo: what it says of dues is its own.
    accepted = ["--accept", "altered", *where]
    assert run_command(["audit", "verify", "order", *accepted]) == Exit.DONE
    capsys.readouterr()
    store = ["--store", f"sqlite:///{tmp_path}/store.db"]
    assert run_command(["audit", "verify", "order", "--json", *accepted, *store]) == Exit.DONE
    verified, checked = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (verified["sound"], checked["agrees"]) == (True, True)
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE sagas SET phase = 'stuck'")
    connection.close()
    assert run_command(["audit", "verify", "order", *accepted, *store]) == Exit.NO
    with sqlite3.connect(tmp_path / "log.db") as connection:
        connection.execute("DELETE FROM records WHERE offset = 2")
    connection.close()
    assert run_command(["audit", "verify", "order", *accepted]) == Exit.NO
    said = capsys.readouterr()
    assert "FAULT   gap" in said.out
    assert "order: NOT SOUND" in said.err
    assert run_command(["audit", "verify", "order", "--patience", "ever", *where]) == Exit.CONFIGURATION


def test_explain_and_preview(where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["explain", "order", "t", *where]) == Exit.DONE
    said = capsys.readouterr().out
    assert said.startswith("waits for b since")
    assert "  try: start a service" in said
    assert run_command(["explain", "order", "s", "--json", *where]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["reasons"][0]["kind"] == "finished"
    assert run_command(["explain", "order", "nobody", *where]) == Exit.NOT_FOUND
    capsys.readouterr()
    assert run_command(["preview", "cancel", "order", "t", *where]) == Exit.DONE
    assert "undo_a undoes a" in capsys.readouterr().out
    assert run_command(["preview", "cancel", "order", "s", "--json", *where]) == Exit.NO
    assert json.loads(capsys.readouterr().out)["verdict"] == "refused"


def test_the_doctor_finds_what_is_wrong(where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", *where]) == Exit.NO
    said = capsys.readouterr()
    assert "error   order@1/a: no service has said that it runs step a" in said.out
    assert "fix: start a service" in said.out
    store = f"sqlite:///{tmp_path}/store.db"
    assert run_command(["doctor", "tests.unit.by_hand:LINE", "--store", store, "--json", *where]) == Exit.NO
    document = json.loads(capsys.readouterr().out)
    assert {finding["check"] for finding in document["findings"]} == {"step_without_service", "group_without_members"}
    assert document["sagas"] == ["order"]
