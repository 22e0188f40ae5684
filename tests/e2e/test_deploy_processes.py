"""What ``compose.yaml`` and the Procfile run, run as plain processes: each gets ready and shows its metrics."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import promql_parser
import pytest

from choreo.broker import open_broker
from choreo.broker.signed.broker import Signer
from choreo.messages.codec import encode
from choreo.messages.headers import JSON, make_headers
from choreo.messages.records import Failure, StepFailed
from choreo.observe.metrics import Metrics
from deploy.run_procfile import Processes, free_ports
from services.order import ORDER
from tests.e2e.shell import run_deployed
from tests.e2e.test_demo import is_running
from tests.e2e.test_deploy_files import CHOREO, LABELS, ONCE, OURS, QUERIES, ROOT, parts

pytestmark = pytest.mark.e2e


def on_this_machine(name: str, kafka_url: str, directory: Path) -> dict[str, str]:
    """A container's environment, with the broker and the volumes of this machine in place of the container's."""
    here = {
        "${CHOREO_HTTP_TOKENS:-}": "",
        "/data/": f"{directory}/",
        "/run/signing/": f"{directory}/keys/{name}/",
        "kafka://kafka:9092?security=plaintext": kafka_url,
    }
    found = {variable: str(value) for variable, value in CHOREO[name].get("environment", {}).items()}
    for there, ours in here.items():
        found = {variable: value.replace(there, ours) for variable, value in found.items()}
    return found


async def forge(kafka_url: str, directory: Path) -> None:
    """What who has taken over the payment service can do: sign with its key, for the step of another service."""
    signer = Signer.read(directory / "keys" / "payment" / "key.pem", "payment-1")
    failed = StepFailed(
        saga="order",
        version=ORDER.version,
        saga_id="forged",
        start="a" * 16,
        step="reserve_stock",
        run="forged",
        failure=Failure(kind="rejected", message="forged"),
    )
    value, headers = encode(failed), make_headers(failed, source="/choreo/inventory", content_type=JSON)
    broker = await open_broker(kafka_url, signed=False)
    producer = await broker.producer()
    headers = (*headers, signer.header("choreo.order", b"forged", value, headers))
    await producer.send("choreo.order", key="forged", value=value, headers=headers)
    await producer.close()
    await broker.close()


@pytest.mark.kafka
def test_every_container_s_command_and_environment_gets_ready_does_its_job_and_believes_no_forger(
    kafka_url: str, tmp_path: Path
) -> None:
    keys, bootstrap = (shlex.split(CHOREO[name]["command"]) for name in ONCE)
    run_deployed([*keys[:-1], str(tmp_path / "keys")], {})
    run_deployed(bootstrap, on_this_machine("bootstrap", kafka_url, tmp_path))
    exposed: set[str] = set()
    with ExitStack() as stack:
        running: dict[str, Processes] = {}
        for (name, service), port in zip(OURS.items(), free_ports(len(OURS)), strict=True):
            processes = Processes(
                {name: shlex.split(service["command"])},
                on_this_machine(name, kafka_url, tmp_path),
                ports={name: port},
                logs=tmp_path / "logs",
            )
            running[name] = stack.enter_context(processes)
            processes.start()
        for name, processes in running.items():
            processes.await_ready()
            assert processes.get(name, "/healthz")[0] == 200
            status, text = processes.get(name, "/metrics")
            assert status == 200
            assert "choreo_build_info{" in text, f"{name} says which version it is"
            exposed |= set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
        client = on_this_machine("client", kafka_url, tmp_path)
        start = [*CHOREO["client"]["entrypoint"], "start", "services.order:ORDER"]
        asyncio.run(forge(kafka_url, tmp_path))
        assert "completed" in run_deployed([*start, "{}", "--wait", "--id", "forged"], client)
        assert "compensated" in run_deployed(
            [*start, '{"trouble": {"depot_closed": true}}', "--wait"], client, status=1
        )
        letters = run_deployed(["choreo", "dead-letters", "list", "order"], client)
        assert letters.count("may not write step_failed of step 'reserve_stock'") == 1, letters
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
