"""The command line: one line for each error, a code that a program can read, data on standard output."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from choreo.cli.app import app, run_command
from choreo.cli.exits import Exit
from choreo.cli.names import load, load_object
from choreo.contract import Saga, Step
from choreo.errors import ConfigurationError

TEA = Saga("tea", Step("boil", compensation="pour_away"), Step("brew"), deadline="10m")


def test_describe_draws_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["describe", f"{__name__}:TEA"]) == Exit.DONE
    assert "-> boil" in capsys.readouterr().out


def test_describe_writes_mermaid_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["describe", f"{__name__}:TEA", "--mermaid"]) == Exit.DONE
    assert capsys.readouterr().out.startswith("flowchart LR")
    assert run_command(["describe", f"{__name__}:TEA", "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["name"] == "tea"


def test_topics_lists_what_the_saga_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["topics", f"{__name__}:TEA", "--partitions", "3", "--json"]) == Exit.DONE
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["name"]: line["partitions"] for line in lines} == {
        "choreo.tea": 3,
        "choreo.tea.dead-letters": 3,
        "choreo.contracts": 1,
    }


def test_topics_are_created_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = f"sqlite:///{tmp_path}/log.db"
    create = ["topics", f"{__name__}:TEA", "--create", "--broker", broker, "--partitions"]
    assert run_command([*create, "2"]) == Exit.DONE
    assert run_command([*create, "3"]) == Exit.BROKER
    complaint = capsys.readouterr().err
    assert "2" in complaint
    assert "3" in complaint


def test_a_retention_shorter_than_the_deadline_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = f"sqlite:///{tmp_path}/log.db"
    command = ["topics", f"{__name__}:TEA", "--create", "--broker", broker, "--retention", "5m"]
    assert run_command(command) == Exit.CONFIGURATION
    assert "retention 5m is not longer than the deadline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "code", "complaint"),
    [
        (["describe", "no_such_module:TEA"], Exit.CONFIGURATION, "there is no module 'no_such_module'"),
        (["describe", "TEA"], Exit.CONFIGURATION, "must be MODULE:NAME"),
        (["describe", "json:dumps"], Exit.CONFIGURATION, "a Saga is needed"),
        (["status", "tea", "x", "--broker", "redis://here"], Exit.CONFIGURATION, "has no known scheme"),
        (["status", "tea", "x"], Exit.CONFIGURATION, "no broker given"),
        (["start", "tea", "--broker", "memory://cli"], Exit.CONFIGURATION, "give either an input, or --file"),
        (["start", "tea", "{}", "--id-field", "a", "--broker", "memory://cli"], Exit.CONFIGURATION, "goes with --file"),
        (["status", "tea", "x", "--broker", "memory://cli"], Exit.CONFIGURATION, "registered are: none"),
    ],
)
def test_an_error_is_one_line_that_names_the_input_and_a_code(
    command: list[str],
    code: Exit,
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CHOREO_BROKER", raising=False)
    assert run_command(command) == code
    said = capsys.readouterr().err
    assert said.startswith("choreo: ")
    assert complaint in said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


class Shout:
    """A tracer of whole sagas."""

    def saga_completed(self, event: object) -> None: ...


SHOUT = Shout()


@pytest.mark.parametrize(
    ("tracer", "complaint"),
    [
        (f"{__name__}:Shout", "is a class; make an object of it in its module, and name that"),
        (f"{__name__}:TEA", "has none of the methods saga_started, compensating"),
        (f"{__name__}:nothing", "has no 'nothing'"),
    ],
)
def test_a_saga_log_refuses_what_is_no_tracer(
    tracer: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["saga-log", f"{__name__}:TEA", "--broker", f"sqlite:///{tmp_path}/log.db", "--tracer", tracer]
    assert run_command(command) != Exit.DONE
    assert complaint in capsys.readouterr().err


def test_what_traces_is_named_as_an_object_of_a_module() -> None:
    assert load_object(f"{__name__}:SHOUT") is SHOUT


def test_a_wrong_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["descirbe"]) == Exit.USAGE
    assert "describe" in capsys.readouterr().err  # the nearest name


@pytest.mark.parametrize(
    "verb",
    [
        "demo",
        "run",
        "saga-log",
        "start",
        "status",
        "cancel",
        "describe",
        "topics",
        "replay",
        "retry",
        "skip",
        "resolve",
        "check-store",
        "dead-letters list",
        "dead-letters show",
        "dead-letters redrive",
        "signal",
        "pause",
        "resume",
    ],
)
def test_help_of_every_verb_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*verb.split(), "--help"]) == Exit.DONE
    assert f"choreo {verb}" in capsys.readouterr().out


def test_a_saga_is_started_and_asked_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = ["--broker", f"sqlite:///{tmp_path}/log.db"]
    assert run_command(["start", f"{__name__}:TEA", '{"cups": 2}', "--id", "t-1", *broker]) == Exit.DONE
    assert capsys.readouterr().out.strip() == "t-1"
    assert run_command(["status", "tea", "t-1", "--json", *broker]) == Exit.DONE
    status = json.loads(capsys.readouterr().out)
    assert status["phase"] == "forward"
    assert [(step["step"], step["phase"]) for step in status["steps"]] == [("boil", "running"), ("brew", "waiting")]


def test_an_unknown_saga_is_not_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = ["--broker", f"sqlite:///{tmp_path}/log.db"]
    assert run_command(["start", f"{__name__}:TEA", "{}", "--id", "t-1", *broker]) == Exit.DONE
    assert run_command(["status", "tea", "t-2", *broker]) == Exit.NOT_FOUND
    assert "no saga 't-2'" in capsys.readouterr().err


def test_every_line_of_a_file_starts_a_saga_and_bad_lines_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "orders.jsonl"
    lines.write_text('{"order": "o-1"}\n\n{"order": \n{"order": "o-2"}\n{"cups": 1}\n')
    broker = ["--broker", f"sqlite:///{tmp_path}/log.db"]
    command = ["start", f"{__name__}:TEA", "--file", str(lines), "--id-field", "order", "--json", *broker]
    assert run_command(command) == Exit.NO
    said = capsys.readouterr()
    assert sorted(json.loads(line)["saga_id"] for line in said.out.splitlines()) == ["o-1", "o-2"]
    assert "line 3 is not JSON" in said.err
    assert "line 5 has no field 'order'" in said.err
    assert "2 started, 2 unusable lines" in said.err


def test_an_operator_is_told_when_nothing_is_stuck(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = ["--broker", f"sqlite:///{tmp_path}/log.db"]
    assert run_command(["start", f"{__name__}:TEA", "{}", "--id", "t-1", *broker]) == Exit.DONE
    assert run_command(["skip", "tea", "t-1", "boil", "--reason", "cold", *broker]) == Exit.NO
    assert "not stuck at step 'boil': it is forward" in capsys.readouterr().err


def test_an_unreadable_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = ["--broker", f"sqlite:///{tmp_path}/log.db"]
    command = ["start", f"{__name__}:TEA", "--file", str(tmp_path / "none.jsonl"), *broker]
    assert run_command(command) == Exit.CONFIGURATION
    assert "cannot read" in capsys.readouterr().err


def test_replay_prints_outcomes_and_a_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = ["--broker", f"sqlite:///{tmp_path}/log.db"]
    assert run_command(["start", f"{__name__}:TEA", "{}", "--id", "t-1", *broker]) == Exit.DONE
    assert run_command(["cancel", "tea", "t-1", "--reason", "coffee", *broker]) == Exit.DONE
    capsys.readouterr()
    assert run_command(["replay", "tea", "--json", *broker]) == Exit.DONE
    said = capsys.readouterr()
    assert json.loads(said.out)["phase"] == "compensating"
    assert "1 compensating; 2 records folded" in said.err
    assert run_command(["replay", "tea", "--saga", "t-1", *broker]) == Exit.DONE
    history = capsys.readouterr().out
    assert "SagaStarted" in history
    assert "coffee" in history


def test_a_name_that_is_missing_is_said_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="it has PARTY, TEA"):
        load(f"{__name__}:COFFEE", Saga)


PARTY = Saga("party", Step("invite"), Step("dance", await_signal="music", signal_timeout="1h"), deadline="2h")


def test_a_signal_is_sent_with_who_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = ["--broker", f"sqlite:///{tmp_path}/log.db"]
    assert run_command(["start", f"{__name__}:PARTY", "{}", "--id", "p-1", *broker]) == Exit.DONE
    signal = ["signal", "party", "p-1", "music", "--payload", '{"band": "waltz"}', "--by", "ada", "--why", "at last"]
    assert run_command([*signal, *broker]) == Exit.DONE
    assert capsys.readouterr().err == ""
    assert run_command([*signal, *broker]) == Exit.DONE
    assert "had a signal 'music' before" in capsys.readouterr().err
    assert run_command(["replay", "party", "--saga", "p-1", *broker]) == Exit.DONE
    history = capsys.readouterr().out
    assert "SignalReceived" in history
    assert run_command(["status", "party", "p-1", "--json", *broker]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["signals"] == ["music"]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["signal", "party", "p-1", "musik"], Exit.CONFIGURATION, "they wait for music"),
        (["signal", "party", "p-2", "music"], Exit.NOT_FOUND, "no saga 'p-2'"),
        (["signal", "party", "p-1", "music", "--payload", "{"], Exit.CONFIGURATION, "the payload is not JSON"),
        (["start", "party", "{}", "--at", "1pm"], Exit.CONFIGURATION, "'1pm' is no time like"),
        (["start", "party", "{}", "--in", "soon"], Exit.CONFIGURATION, "duration 'soon' is not like"),
        (["start", "party", "{}", "--in", "1h", "--at", "2040-01-01"], Exit.CONFIGURATION, "either --at or --in"),
        (["start", "party", "{}", "--in", "1h", "--wait"], Exit.CONFIGURATION, "--wait does not go with"),
    ],
)
def test_what_cannot_be_signalled_or_scheduled_is_said(
    arguments: list[str], code: Exit, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = ["--broker", f"sqlite:///{tmp_path}/log.db"]
    assert run_command(["start", f"{__name__}:PARTY", "{}", "--id", "p-1", *broker]) == Exit.DONE
    assert run_command([*arguments, *broker]) == code
    assert complaint in capsys.readouterr().err


def test_a_scheduled_start_says_when_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = ["--broker", f"sqlite:///{tmp_path}/log.db"]
    assert run_command(["start", f"{__name__}:TEA", "{}", "--id", "t-1", "--at", "2040-05-01T08:00", *broker]) == 0
    assert run_command(["start", "tea", "{}", "--id", "t-2", "--in", "90m", *broker]) == Exit.DONE
    capsys.readouterr()
    assert run_command(["status", "tea", "t-1", *broker]) == Exit.DONE
    said = capsys.readouterr().out
    assert "t-1: scheduled" in said
    assert "begins 2040-05-01 08:00:00" in said
    assert run_command(["status", "tea", "t-2", "--json", *broker]) == Exit.DONE
    status = json.loads(capsys.readouterr().out)
    assert status["begins_ms"] == status["started_ms"] + 5_400_000


def test_a_saga_is_paused_and_resumed_and_the_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = ["--broker", f"sqlite:///{tmp_path}/log.db"]
    assert run_command(["start", f"{__name__}:TEA", "{}", "--id", "t-1", *broker]) == Exit.DONE
    assert run_command(["pause", "tea", "t-1", "--why", "no milk", "--by", "ada", *broker]) == Exit.DONE
    assert run_command(["pause", "--type", "tea", "--why", "no water", "--by", "bob", *broker]) == Exit.DONE
    capsys.readouterr()
    assert run_command(["status", "tea", "t-1", *broker]) == Exit.DONE
    said = capsys.readouterr().out
    assert "paused by ada since" in said
    assert ": no milk" in said
    assert "all sagas tea are paused by bob since" in said
    assert run_command(["resume", "tea", "t-1", "--why", "milk", *broker]) == Exit.DONE
    assert run_command(["resume", "--type", "tea", "--why", "water", *broker]) == Exit.DONE
    capsys.readouterr()
    assert run_command(["status", "tea", "t-1", "--json", *broker]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["paused"] == []


@pytest.mark.parametrize(
    "arguments",
    [["pause", "tea"], ["resume", "tea", "t-1", "--type", "tea"], ["pause"], ["pause", "x", "--type", "tea"]],
)
def test_what_is_to_be_paused_has_to_be_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*arguments, "--why", "so", "--broker", "memory://cli"]) == Exit.CONFIGURATION
    assert "give a saga and its id" in capsys.readouterr().err


def test_no_saga_may_have_an_id_of_choreos_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = ["--broker", f"sqlite:///{tmp_path}/log.db"]
    command = ["start", f"{__name__}:TEA", "{}", "--id", "choreo.partition/0", *broker]
    assert run_command(command) == Exit.CONFIGURATION
    assert "one of choreo's own" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["audit"], ["keys", "--help"], ["dead-letters"]])
def test_a_list_of_commands_says_what_each_does(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(arguments) == Exit.DONE
    shown = capsys.readouterr().out
    listed = app
    for name in (each for each in arguments if each != "--help"):
        listed = listed[name]
    for name in listed:
        if not name.startswith("-"):
            assert re.search(rf"│ {name} +[A-Z]", shown), f"{name} has no sentence in\n{shown}"
