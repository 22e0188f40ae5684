"""What all tests share: a real Kafka for those that need one, and seeds that are told when a test fails.

Where the Kafka comes from, the first that works:

1. ``CHOREO_TEST_KAFKA=kafka://host:port``, a broker that is there already;
2. a Docker daemon that answers (testcontainers);
3. a JVM on this machine (``deploy/kafka/local_kafka.py``).

With none of them the tests marked ``kafka`` are skipped and say why. Under ``CHOREO_REQUIRE_KAFKA=1`` they fail
instead, and so does a whole run in which no such test ran.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest

from deploy.kafka.local_kafka import LocalKafka, LocalKafkaError

URL_VARIABLE = "CHOREO_TEST_KAFKA"
REQUIRE_VARIABLE = "CHOREO_REQUIRE_KAFKA"
SEED_VARIABLE = "CHOREO_TEST_SEED"

# Short, so that a test of members that come, go and die waits for heartbeats, not for minutes.
SHORT_SESSION = "?session_timeout_ms=6000&heartbeat_interval_ms=250"

KAFKA_IMAGE = "confluentinc/cp-kafka:7.6.0"  # what testcontainers' start-up script is written for
DOCKER_SOCKET = Path("/var/run/docker.sock")

# Deadlines measure the machine, not the code. `ci` draws the same examples in every run.
hypothesis.settings.register_profile("dev", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


class KafkaUse:
    """What this run had of Kafka; told in the terminal summary."""

    def __init__(self) -> None:
        self.broker: str | None = None
        self.missing: str | None = None
        self.tests_run = 0

    @property
    def required(self) -> bool:
        return os.environ.get(REQUIRE_VARIABLE, "") not in ("", "0")

    def told(self) -> str:
        if self.tests_run:
            return f"Kafka: {self.tests_run} tests ran against {self.broker or 'brokers of their own'}"
        return f"Kafka: no test ran against one ({self.missing or 'none was selected'})"


USE = KafkaUse()


def pytest_report_header() -> str:
    if url := os.environ.get(URL_VARIABLE):
        choice = f"{url} ({URL_VARIABLE} is set)"
    elif os.environ.get("DOCKER_HOST") or DOCKER_SOCKET.exists():
        choice = f"in a container if the Docker daemon answers, else in a JVM here ({URL_VARIABLE} is not set)"
    else:
        choice = f"in a JVM here ({URL_VARIABLE} is not set, there is no Docker)"
    return f"kafka: {choice}; {'required' if USE.required else 'optional'}, started when a test asks for it"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and not report.skipped and "kafka" in report.keywords:
        USE.tests_run += 1


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if USE.required and USE.tests_run == 0 and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    lacking = USE.required and USE.tests_run == 0
    if lacking:
        terminalreporter.write_line(f"{REQUIRE_VARIABLE} is set, so a run without a Kafka test fails", red=True)
    terminalreporter.write_line(USE.told(), red=lacking)


@pytest.fixture(scope="session")
def kafka_url() -> Iterator[str]:
    """The URL of a real Kafka that all tests share, with short sessions: use topics and groups of your own."""
    if url := os.environ.get(URL_VARIABLE):
        USE.broker = f"{url}, named by {URL_VARIABLE}"
        yield url if "?" in url else url + SHORT_SESSION
        return
    container, why_not = start_container()
    if container is not None:
        USE.broker = f"{KAFKA_IMAGE} in a container"
        yield f"kafka://{container.get_bootstrap_server()}{SHORT_SESSION}"
        container.stop()
        return
    with start_local(why_not) as kafka:
        USE.broker = f"a JVM here ({why_not})"
        yield kafka.url + SHORT_SESSION


@pytest.fixture
def own_kafka() -> Iterator[LocalKafka]:
    """A broker of one test's own, which it may kill and restart."""
    with start_local("a broker that may be killed must be a JVM here") as kafka:
        yield kafka


@pytest.fixture
def seed() -> int:
    """A seed for what a test draws at random; pytest shows it when the test fails."""
    value = int(os.environ.get(SEED_VARIABLE, "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"random seed {value}; repeat with {SEED_VARIABLE}={value}", file=sys.stderr)
    return value


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


def start_local(why_not_docker: str) -> LocalKafka:
    kafka = LocalKafka()
    try:
        kafka.start()
    except LocalKafkaError as error:
        no_kafka(f"{why_not_docker}; {error}")
    return kafka


def start_container() -> tuple[Any, str]:
    """A started container, or ``None`` and why there is none. The daemon is asked, not looked for on the path."""
    if not (os.environ.get("DOCKER_HOST") or DOCKER_SOCKET.exists()):
        return None, "there is no Docker"
    try:
        import docker  # type: ignore[import-untyped]

        docker.from_env(timeout=5).ping()
    except Exception as error:  # noqa: BLE001 -- whatever keeps Docker from answering, the next choice is tried
        return None, f"Docker does not answer: {str(error)[:120]}"
    try:
        from testcontainers.community.kafka import KafkaContainer

        container = KafkaContainer(KAFKA_IMAGE).with_kraft().with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
        return container.start(), ""
    except Exception as error:  # noqa: BLE001 -- an image that cannot be pulled, say
        return None, f"the container did not start: {str(error)[:120]}"


def no_kafka(reason: str) -> NoReturn:
    USE.missing = reason
    if USE.required:
        pytest.fail(f"{REQUIRE_VARIABLE} is set, but there is no Kafka: {reason}", pytrace=False)
    pytest.skip(f"there is no Kafka: {reason}")
