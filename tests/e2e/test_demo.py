"""``choreo demo`` shows what it promises, says so with its exit status, and leaves nothing running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IN_DIRECTORY = (
    "import sys, pathlib; from services.demo import main; sys.exit(main(directory=pathlib.Path(sys.argv[1])))"
)

pytestmark = pytest.mark.e2e


def pids_in(output: str) -> list[int]:
    """Of the table of processes: a name, a process id, a command."""
    return [int(pid) for pid in re.findall(r"^ *[a-z-]+ +(\d+) +choreo ", output, re.MULTILINE)]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    # A dead process whose new parent has not asked for its status yet is a zombie: it has a number and nothing else.
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def positions(output: str, *lines: str) -> list[int]:
    found = [output.find(line) for line in lines]
    assert -1 not in found, f"{lines[found.index(-1)]!r} is not in the output:\n{output}"
    return found


def test_the_demo_shows_success_undoing_in_reverse_and_a_kill_and_ends_with_0() -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "choreo.cli", "demo"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    took = time.monotonic() - began
    output = done.stdout
    assert done.returncode == 0, output + done.stderr
    print(f"the demo took {took:.1f} s")
    assert took < 60
    assert "\x1b[" not in output, "no colours where there is no terminal"
    assert len(pids_in(output)) == 5
    assert not any(map(is_running, pids_in(output)))
    scene_3 = output[output.index("3. The last step fails") : output.index("4. kill -9")]
    found = positions(
        scene_3,
        "hand_over failed",
        "<- compensate book_carrier",
        "<- compensate charge_card",
        "<- compensate reserve_stock",
    )
    assert found == sorted(found)
    positions(output, "embedded", "kill -9", "found by its idempotency key", "history of depot-closed")
    positions(output, "every effect of a completed saga stands once", "All ended as it should")


@pytest.mark.kafka
def test_the_demo_on_a_kafka_that_is_there_keeps_running_until_ctrl_c(kafka_url: str) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-u", "-m", "choreo.cli", "demo", "--broker", kafka_url, "--keep"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout is not None
    output = ""
    for line in demo.stdout:
        output += line
        if "Everything keeps running" in line:
            break
    positions(output, f"Apache Kafka at {kafka_url}", "All ended as it should", "$ choreo start services.order:ORDER")
    for url in re.findall(r"^  [a-z-]+ +(http://127.0.0.1:\d+/metrics)", output, re.MULTILINE):
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert b"choreo_build_info{" in answer.read()

    demo.send_signal(signal.SIGINT)
    rest = demo.communicate(timeout=60)[0]

    assert demo.returncode == 0, rest
    assert len(pids_in(output)) == 5
    assert not any(map(is_running, pids_in(output)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-u", "-c", IN_DIRECTORY, str(tmp_path / "demo")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout is not None
    output = ""
    for line in demo.stdout:
        output += line
        if "all ready" in line:
            break
    pids = pids_in(output)
    assert len(pids) == 5, output

    demo.send_signal(number)
    rest = demo.communicate(timeout=60)[0]

    assert demo.returncode != 0, rest
    assert not any(map(is_running, pids))


def test_a_demo_whose_service_does_not_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    environment = {**os.environ, "CHOREO_LOG_LEVEL": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-c", IN_DIRECTORY, str(tmp_path / "demo")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    positions(done.stdout, "FAILED", "the end of ", "nonsense")
