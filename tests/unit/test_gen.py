"""``choreo gen saga``: what it writes runs as it is, and it never takes anything away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from choreo.cli.app import run_command
from choreo.cli.exits import Exit

ROOT = Path(__file__).parents[2]
STEPS = "book_flight,book_hotel,book_car"


def gen(directory: Path, name: str = "trip", steps: str = STEPS, *options: str) -> int:
    return run_command(["gen", "saga", name, "--steps", steps, "--directory", str(directory), *options])


def python(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The project's interpreter, as a user in that directory would run it."""
    return subprocess.run(
        [sys.executable, "-B", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "-p no:cacheprovider"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_generated_tests_pass_at_once(tmp_path: Path) -> None:
    assert gen(tmp_path) == Exit.DONE
    tests = python(
        tmp_path, "-m", "pytest", "-q", "-W", "error", "-o", "asyncio_default_fixture_loop_scope=function", "trip"
    )
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert "11 passed" in tests.stdout


def test_the_generated_tests_pass_for_a_single_step_called_as_the_saga(tmp_path: Path) -> None:
    assert gen(tmp_path, "print", "print") == Exit.DONE
    tests = python(tmp_path, "-m", "pytest", "-q", "print")
    assert tests.returncode == 0, tests.stdout + tests.stderr


def test_the_generated_contract_is_described(tmp_path: Path) -> None:
    assert gen(tmp_path) == Exit.DONE
    described = python(tmp_path, "-m", "choreo.cli", "describe", "trip:TRIP")
    assert described.returncode == 0, described.stderr
    assert "<- undo_book_hotel" in described.stdout


def test_the_generated_code_is_clean(tmp_path: Path) -> None:
    assert (
        gen(tmp_path, "trip", f"{STEPS},reserve_the_table_beside_the_window,order_the_taxi_to_the_airport") == Exit.DONE
    )
    config = ["--isolated", "--line-length", "120", "--target-version", "py311", "."]
    for command in (
        ["format", "--check"],
        ["check", "--select", "ANN,B,E,F,I,N,RET,RUF,S,SIM,UP", "--ignore", "S101"],
    ):
        checked = python(tmp_path, "-m", "ruff", *command, "--no-cache", *config)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_generated_readme_names_commands_that_exist(tmp_path: Path) -> None:
    assert gen(tmp_path) == Exit.DONE
    readme = (tmp_path / "trip" / "README.md").read_text(encoding="utf-8")
    assert "$" not in readme.replace("kill $(jobs -p)", "")
    services = [line.split()[2] for line in readme.splitlines() if line.startswith("choreo run")]
    assert services == [f"trip.{step}:service" for step in STEPS.split(",")]
    loaded = python(tmp_path, "-c", "; ".join(f"from {s.replace(':', ' import ')}" for s in services))
    assert loaded.returncode == 0, loaded.stderr


def test_the_generated_compose_file_has_a_container_for_each_service_and_prometheus_scrapes_them(
    tmp_path: Path,
) -> None:
    assert gen(tmp_path) == Exit.DONE
    compose = yaml.safe_load((tmp_path / "trip" / "compose.yaml").read_text(encoding="utf-8"))
    prometheus = yaml.safe_load((tmp_path / "trip" / "prometheus.yml").read_text(encoding="utf-8"))
    ours = {name: service for name, service in compose["services"].items() if "CHOREO_IMAGE" in service["image"]}
    assert {name: service["command"] for name, service in ours.items()} == {
        "saga-log": "choreo saga-log trip:TRIP",
        "book-flight": "choreo run trip.book_flight:service",
        "book-hotel": "choreo run trip.book_hotel:service",
        "book-car": "choreo run trip.book_car:service",
    }
    mounted = {volume.split(":")[0] for service in compose["services"].values() for volume in service["volumes"]}
    assert {volume for volume in mounted if not volume.startswith(".")} == set(compose["volumes"])
    scraped = {
        target
        for job in prometheus["scrape_configs"]
        for configured in job["static_configs"]
        for target in configured["targets"]
    }
    assert scraped == {f"{name}:8080" for name in ours}


def test_it_says_what_it_wrote_and_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gen(tmp_path) == Exit.DONE
    said = capsys.readouterr().out
    written = {str(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {line.removeprefix("wrote ") for line in said.splitlines() if line.startswith("wrote ")} == written
    assert f"cd {tmp_path}" in said
    assert "python -m pytest trip" in said


def test_a_name_in_another_case_becomes_a_package(tmp_path: Path) -> None:
    assert gen(tmp_path, "TripBooking") == Exit.DONE
    assert "TRIP_BOOKING = Saga(" in (tmp_path / "trip_booking" / "contract.py").read_text(encoding="utf-8")


def test_nothing_is_overwritten_unless_it_is_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "trip" / "contract.py"
    mine.parent.mkdir()
    mine.write_text("mine", encoding="utf-8")
    other = tmp_path / "trip" / "notes.py"
    other.write_text("notes", encoding="utf-8")

    assert gen(tmp_path) == Exit.CONFIGURATION
    assert f"{mine} would be overwritten" in capsys.readouterr().err
    assert sorted(path.name for path in mine.parent.iterdir()) == ["contract.py", "notes.py"]
    assert mine.read_text(encoding="utf-8") == "mine"

    assert gen(tmp_path, "trip", STEPS, "--force") == Exit.DONE
    assert "TRIP = Saga(" in mine.read_text(encoding="utf-8")
    assert other.read_text(encoding="utf-8") == "notes"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert gen(tmp_path / "file") == Exit.CONFIGURATION
    assert f"cannot write {tmp_path / 'file' / 'trip'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "steps", "complaints"),
    [
        ("9lives", "a", ["its name '9lives' must be words of lower case letters"]),
        ("../trip", "a", ["its name '../trip' must be words"]),
        ("trip\n", "a", [r"its name 'trip\n' must be words"]),
        ("class", "a", ["'class' is a word of Python's own"]),
        ("json", "a", ["a module 'json' is installed"]),
        ("choreo", "a", ["a module 'choreo' is installed"]),
        ("msgspec", "a", ["a module 'msgspec' is installed"]),
        ("contracts", "a", ["name 'contracts' is taken"]),
        ("steps", "a", ["'steps' has the name of another part"]),
        ("t" * 41, "a", ["its name has 41 characters; at most 40"]),
        ("trip", "", ["--steps names no step"]),
        ("trip", " , ", ["--steps names no step"]),
        ("trip", "a,b,a", ["step 'a' is named 2 times"]),
        ("trip", "BookFlight", ["did you mean 'book_flight'?"]),
        ("trip", "book flight", ["step 'book flight' must be words"]),
        ("trip", "a__b", ["step 'a__b' must be words"]),
        ("trip", "import", ["step 'import' is a word of Python's own"]),
        ("trip", "s" * 60, ["has 60 characters; at most 59"]),
        ("trip", "contract,kafka", ["step 'contract' has the name of another part", "step 'kafka' has the name"]),
        ("trip", "pytest", ["step 'pytest' has the name of another part"]),
        ("Trip!", "A,a,a", ["its name 'Trip!'", "did you mean 'a'?", "step 'a' is named 2 times"]),
        ("trip", ",".join(f"s{n}" for n in range(257)), ["at most 256"]),
    ],
)
def test_bad_names_are_refused_all_at_once_and_nothing_is_written(
    name: str, steps: str, complaints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gen(tmp_path, name, steps) == Exit.CONFIGURATION
    said = capsys.readouterr().err
    for complaint in complaints:
        assert complaint in said
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["gen", "saga", "--help"]) == Exit.DONE
    assert "choreo gen saga trip --steps" in capsys.readouterr().out
