"""Recorded history under another contract: what would break, and what would only change."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from choreo.audit.candidate import WhatIf, what_if
from choreo.cli.app import run_command
from choreo.cli.exits import Exit
from choreo.contract import Saga, Step
from tests.unit.audit.recorded import DIAMOND, HISTORIES, LINE, T0, Recorder, back, happy, joined, log_of

NOW = T0 + 60_000


def line(*steps: Step, **options: str) -> Saga:
    return Saga("order", *steps, version=2, **options)  # type: ignore[arg-type]


A, B, C = (Step(step, compensation=f"undo_{step}") for step in "abc")


def in_flight(steps: str = "a", contract: Saga = LINE) -> Recorder:
    told = Recorder(contract)
    told.start("s")
    for step in steps:
        told.completed("s", step)
    return told


async def under(candidate: Saga, told: Recorder, *, now_ms: int = NOW, versions: tuple[int, ...] = ()) -> WhatIf:
    broker, registry = await log_of(told.contract, told.messages)
    found = await what_if(broker, candidate, registry=registry, now_ms=now_ms, versions=versions)
    assert msgspec.json.decode(msgspec.json.encode(found))["saga"] == candidate.name
    return found


@pytest.mark.parametrize("name", HISTORIES)
async def test_under_its_own_contract_nothing_differs(name: str) -> None:
    told = HISTORIES[name]()
    found = await under(told.contract, told)
    assert found.safe
    assert found.totals == {}
    assert (found.sagas, found.in_flight, found.records) == (1, 0, len(told.messages))


@pytest.mark.parametrize(
    ("candidate", "done", "kind"),
    [
        (line(B, C), "a", "lost_step"),
        (line(A, C), "a", "lost_step"),  # b is in flight
        (line(Step("a"), B, C), "a", "lost_compensation"),
        (line(A, Step("new", compensation="undo_new"), B, C), "ab", "unwanted"),
        (line(A, Step("b", compensation="undo_b", pivot=True), C), "ab", "no_way_back"),
        (line(A, Step("b", compensation="undo_b", timeout="1s", deadline="2s"), C), "a", "times_out"),
    ],
)
async def test_what_breaks_a_saga_in_flight(candidate: Saga, done: str, kind: str) -> None:
    found = await under(candidate, in_flight(done))
    assert kind in found.totals, found.consequences
    assert (found.in_flight, found.broken, found.safe) == (1, 1, False)
    assert found.consequences[0].breaks


async def test_a_saga_that_had_a_substitute_would_turn_back_without_one() -> None:
    breaker = Saga("order", A, Step("b", compensation="undo_b", recover_from="rejected"), C)
    told = in_flight("a", breaker)
    told.failed("s", "b")
    told.compensated("s", "b", undone=False, verdict="continue", effect=msgspec.Raw(b'"stand-in"'))
    assert (await under(breaker, told)).totals == {}
    found = await under(line(A, B, C), told)
    assert "turns_back" in found.totals
    assert not found.safe


@pytest.mark.parametrize(
    "candidate",
    [
        line(A, B, C, Step("d", compensation="undo_d")),
        line(A, B, Step("c", compensation="undo_c", retries=5)),
        line(A, B, Step("c", compensation="undo_c", compensation_deadline="1h")),
    ],
)
async def test_what_only_adds_is_safe(candidate: Saga) -> None:
    found = await under(candidate, in_flight("a"))
    assert found.safe, found.consequences


async def test_another_compensation_or_order_is_a_change() -> None:
    found = await under(line(Step("a", compensation="other"), B, C), in_flight("a"))
    assert found.safe
    assert set(found.totals) == {"undoes_otherwise"}
    assert "other of a" in found.consequences[0].text
    parallel = Saga("diamond", *(Step(s, compensation=f"undo_{s}", after=()) for s in "abcd"), version=2)
    found = await under(parallel, in_flight("abc", DIAMOND))
    assert "undoes_otherwise" in found.totals or "decides_otherwise" in found.totals


async def test_another_time_out_is_a_change() -> None:
    found = await under(line(A, Step("b", compensation="undo_b", deadline="10m"), C), in_flight("a"))
    assert set(found.totals) == {"times_otherwise"}
    assert "a time-out in 9m" in found.consequences[0].text


async def test_finished_sagas_are_compared_and_break_nothing() -> None:
    found = await under(line(A, B, C, Step("d")), happy())
    assert found.safe
    assert set(found.totals) == {"decides_otherwise", "ends_otherwise"}
    texts = {one.kind: one.text for one in found.consequences}
    assert texts["decides_otherwise"] == "StepCompleted would lead to nothing instead of complete"
    assert texts["ends_otherwise"] == "it has completed; under the candidate: no outcome"
    found = await under(line(A, Step("b"), C), back())
    assert "decides_otherwise" in found.totals
    assert next(one.offset for one in found.consequences if one.kind == "decides_otherwise") == 3


async def test_only_sagas_of_the_versions_that_are_asked_for() -> None:
    told = in_flight("a")
    assert (await under(line(B, C), told, versions=(1,))).broken == 1
    assert (await under(line(B, C), told, versions=(7,))).sagas == 0


async def test_sagas_that_are_let_go_and_revived_are_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.saga_log.window.SETTLED_KEPT", 0)
    monkeypatch.setattr("choreo.saga_log.replay._RECORDS_PER_POLL", 1)
    told = joined()
    told.start("t")
    told.completed("s", "a", run="late", effect=msgspec.Raw(b'"late"'))
    candidate = Saga("diamond", *DIAMOND.steps, version=2)
    found = await under(candidate, told)
    assert found.totals == {}
    assert found.in_flight == 2


def test_the_command_is_a_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import asyncio

    from choreo.broker import open_broker
    from choreo.broker.registry import ensure_saga_topics, register
    from tests.unit.by_hand import LINE as HAND
    from tests.unit.by_hand import Pen

    url = f"sqlite:///{tmp_path}/log.db"

    async def fill() -> None:
        broker = await open_broker(url)
        await ensure_saga_topics(broker, [HAND], partitions=1)
        await register(broker, [HAND])
        pen = Pen(broker, await broker.producer(), HAND)  # type: ignore[arg-type]
        await pen.start("s")
        await pen.completed("s", "a")
        await broker.close()

    asyncio.run(fill())
    command = ["audit", "what-if", "--broker", url, "--contract"]
    assert run_command([*command, "tests.unit.by_hand:LINE"]) == Exit.DONE
    assert "safe" in capsys.readouterr().err
    assert run_command([*command, "tests.unit.audit.test_what_if:BREAKING"]) == Exit.NO
    said = capsys.readouterr()
    assert "BREAKS  lost_step" in said.out
    assert "1 sagas in flight BREAK" in said.err
    assert run_command([*command, "tests.unit.audit.test_what_if:BREAKING", "--json"]) == Exit.NO
    assert json.loads(capsys.readouterr().out)["broken"] == 1
    assert run_command([*command, "tests.unit.audit.test_what_if:CHANGING"]) == Exit.DONE
    assert run_command([*command, "tests.unit.audit.test_what_if:CHANGING", "--strict"]) == Exit.NO


BREAKING = line(B, C)
CHANGING = line(Step("a", compensation="other"), B, Step("c", compensation="undo_c", deadline="1m"))
