"""What ``compose.yaml`` and the Procfile run, run as plain processes: each gets ready and shows its metrics."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from choreo.observe.metrics import Metrics
from deploy.run_procfile import Processes, free_ports
from tests.e2e.test_demo import is_running
from tests.e2e.test_deploy_files import LABELS, OURS, QUERIES, ROOT, parts

pytestmark = pytest.mark.e2e


def on_this_machine(environment: dict[str, Any], kafka_url: str, directory: Path) -> dict[str, str]:
    """A container's environment, with the broker and the volume of this machine in place of the container's."""
    here = {
        "${CHOREO_HTTP_TOKENS:-}": "",
        "/data/": f"{directory}/",
        "kafka://kafka:9092?security=plaintext": kafka_url,
    }
    found = {name: str(value) for name, value in environment.items()}
    for there, ours in here.items():
        found = {name: value.replace(there, ours) for name, value in found.items()}
    return found


@pytest.mark.kafka
def test_every_container_s_command_and_environment_gets_ready_and_shows_what_dashboards_ask_for(
    kafka_url: str, tmp_path: Path
) -> None:
    environment: dict[str, str] = {}
    for service in OURS.values():
        environment |= on_this_machine(service["environment"], kafka_url, tmp_path)
    commands = {name: shlex.split(service["command"]) for name, service in OURS.items()}
    ports = dict(zip(commands, free_ports(len(commands)), strict=True))
    with Processes(commands, environment, ports=ports, logs=tmp_path / "logs") as processes:
        processes.start()
        processes.await_ready()
        exposed: set[str] = set()
        for name in commands:
            assert processes.get(name, "/healthz")[0] == 200
            status, text = processes.get(name, "/metrics")
            assert status == 200
            assert "choreo_build_info{" in text, f"{name} says which version it is"
            exposed |= set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    asked = {
        part.name
        for _, query in QUERIES
        for part in parts(promql_parser.parse(query))
        if isinstance(part, promql_parser.VectorSelector)
    }
    families = {row.name for row in Metrics().table()}
    missing = {name for name in asked & LABELS.keys() if re.sub("_(bucket|count|sum)$", "", name) not in exposed}
    assert missing == {"up"}, "of the scrape itself"
    assert families <= exposed


def test_the_procfile_s_runner_names_each_line_and_stops_all_at_ctrl_c(tmp_path: Path) -> None:
    (port, *_) = free_ports(1)
    runner = subprocess.Popen(
        [sys.executable, "-u", "deploy/run_procfile.py", "--directory", str(tmp_path), "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, "CHOREO_BROKER": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert runner.stdout is not None
    output = ""
    for line in runner.stdout:
        output += line
        if all(re.search(rf"^{name} +\| ", output, re.MULTILINE) for name in OURS):
            break
    children = re.findall(r"^[a-z-]+: process (\d+), http", output, re.MULTILINE)
    assert len(children) == 5, output

    runner.send_signal(signal.SIGINT)
    output += runner.communicate(timeout=60)[0]

    assert runner.returncode == 0, output
    assert not any(is_running(int(pid)) for pid in children)


def test_the_procfile_s_runner_ends_when_a_process_does(tmp_path: Path) -> None:
    (port, *_) = free_ports(1)
    command = [sys.executable, "deploy/run_procfile.py", "payment", "--broker", "nowhere://", "--port", str(port)]
    done = subprocess.run(
        [*command, "--directory", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "payment ended with status 3" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_processes_do_not_outlive_a_runner_that_is_killed(tmp_path: Path) -> None:
    (port, *_) = free_ports(1)
    runner = subprocess.Popen(
        [sys.executable, "-u", "deploy/run_procfile.py", "payment", "--directory", str(tmp_path), "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, "CHOREO_BROKER": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert runner.stdout is not None
    output = ""
    for line in runner.stdout:
        output += line
        if re.search("^payment +\\| ", output, re.MULTILINE):
            break
    (child,) = re.findall(r"^payment: process (\d+), http", output, re.MULTILINE)

    runner.kill()
    runner.communicate(timeout=30)

    deadline = time.monotonic() + 10
    while is_running(int(child)):
        assert time.monotonic() < deadline, "the service outlived its runner"
        time.sleep(0.05)
