"""What all tests share: a real Kafka and a real PostgreSQL for those that need one, and seeds that are told on failure.

Where the Kafka comes from, the first that works:

1. ``CHOREO_TEST_KAFKA=kafka://host:port``, a broker that is there already;
2. a Docker daemon that answers (testcontainers);
3. a JVM on this machine (``deploy/kafka/local_kafka.py``).

With none of them the tests marked ``kafka`` are skipped and say why. Under ``CHOREO_REQUIRE_KAFKA=1`` they fail
instead, and so does a whole run in which no such test ran.

The PostgreSQL is found in the same way: ``CHOREO_TEST_POSTGRES=postgresql://…``, a container, binaries on this machine
(``tests/local_postgres.py``); its tests are marked ``postgres``, and ``CHOREO_REQUIRE_POSTGRES=1`` requires them.

Tests of the dashboard, marked ``browser``, need a Chromium of this machine (``make browser``) or the one that
``CHOREO_CHROMIUM`` names; ``CHOREO_REQUIRE_BROWSER=1`` requires them.
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest

from deploy.kafka.local_kafka import LocalKafka, LocalKafkaError
from tests.browser import chromium
from tests.local_postgres import LocalPostgres, LocalPostgresError

URL_VARIABLE = "CHOREO_TEST_KAFKA"
REQUIRE_VARIABLE = "CHOREO_REQUIRE_KAFKA"
POSTGRES_URL_VARIABLE = "CHOREO_TEST_POSTGRES"
POSTGRES_REQUIRE_VARIABLE = "CHOREO_REQUIRE_POSTGRES"
SEED_VARIABLE = "CHOREO_TEST_SEED"

# Short, so that a test of members that come, go and die waits for heartbeats, not for minutes.
SHORT_SESSION = "?session_timeout_ms=6000&heartbeat_interval_ms=250"

KAFKA_IMAGE = "confluentinc/cp-kafka:7.6.0"  # what testcontainers' start-up script is written for
POSTGRES_IMAGE = "postgres:17-alpine"
DOCKER_SOCKET = Path("/var/run/docker.sock")

# Deadlines measure the machine, not the code. `ci` draws the same examples in every run.
hypothesis.settings.register_profile("dev", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


class Use:
    """What this run had of a server; told in the terminal summary.

    Attributes:
        marker: of the tests that need it.
        server: which one they ran against, if all ran against one.
    """

    def __init__(self, name: str, marker: str, url_variable: str, require_variable: str, local: str) -> None:
        self.name = name
        self.marker = marker
        self.url_variable = url_variable
        self.require_variable = require_variable
        self.local = local
        self.server: str | None = None
        self.missing: str | None = None
        self.tests_run = 0

    @property
    def required(self) -> bool:
        return os.environ.get(self.require_variable, "") not in ("", "0")

    @property
    def lacking(self) -> bool:
        return self.required and self.tests_run == 0

    def announced(self) -> str:
        if url := os.environ.get(self.url_variable):
            choice = f"{without_password(url)} ({self.url_variable} is set)"
        elif os.environ.get("DOCKER_HOST") or DOCKER_SOCKET.exists():
            choice = f"in a container if the Docker daemon answers, else {self.local} ({self.url_variable} is not set)"
        else:
            choice = f"{self.local} ({self.url_variable} is not set, there is no Docker)"
        need = "required" if self.required else "optional"
        return f"{self.marker}: {choice}; {need}, started when a test asks for it"

    def told(self) -> str:
        if self.tests_run:
            return f"{self.name}: {self.tests_run} tests ran against {self.server or 'servers of their own'}"
        return f"{self.name}: no test ran against one ({self.missing or 'none was selected'})"

    def give_up(self, reason: str) -> NoReturn:
        self.missing = reason
        if self.required:
            pytest.fail(f"{self.require_variable} is set, but there is no {self.name}: {reason}", pytrace=False)
        pytest.skip(f"there is no {self.name}: {reason}")


USE = Use("Kafka", "kafka", URL_VARIABLE, REQUIRE_VARIABLE, "in a JVM here")
POSTGRES = Use(
    "PostgreSQL", "postgres", POSTGRES_URL_VARIABLE, POSTGRES_REQUIRE_VARIABLE, "a server of this machine's binaries"
)


class BrowserUse(Use):
    def announced(self) -> str:
        need = "required" if self.required else "optional"
        return f"{self.marker}: {chromium.executable() or 'there is no Chromium'}; {need}"


BROWSER = BrowserUse("Chromium", "browser", chromium.VARIABLE, "CHOREO_REQUIRE_BROWSER", "of this machine")
USES = (USE, POSTGRES, BROWSER)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "postgres: needs a real PostgreSQL server")
    config.addinivalue_line("markers", "browser: needs a real Chromium")


def pytest_report_header() -> list[str]:
    return [use.announced() for use in USES]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for use in USES:
        if report.when == "call" and not report.skipped and use.marker in report.keywords:
            use.tests_run += 1


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK and any(use.lacking for use in USES):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for use in USES:
        if use.lacking:
            said = f"{use.require_variable} is set, so a run without a {use.name} test fails"
            terminalreporter.write_line(said, red=True)
        terminalreporter.write_line(use.told(), red=use.lacking)


@pytest.fixture(scope="session")
def kafka_url() -> Iterator[str]:
    """The URL of a real Kafka that all tests share, with short sessions: use topics and groups of your own."""
    if url := os.environ.get(URL_VARIABLE):
        USE.server = f"{url}, named by {URL_VARIABLE}"
        yield url if "?" in url else url + SHORT_SESSION
        return
    container, why_not = start_container()
    if container is not None:
        USE.server = f"{KAFKA_IMAGE} in a container"
        yield f"kafka://{container.get_bootstrap_server()}{SHORT_SESSION}"
        container.stop()
        return
    with start_local(why_not) as kafka:
        USE.server = f"a JVM here ({why_not})"
        yield kafka.url + SHORT_SESSION


@pytest.fixture
def own_kafka() -> Iterator[LocalKafka]:
    """A broker of one test's own, which it may kill and restart."""
    with start_local("a broker that may be killed must be a JVM here") as kafka:
        yield kafka


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a real PostgreSQL that all tests share: use schemas of your own."""
    if url := os.environ.get(POSTGRES_URL_VARIABLE):
        POSTGRES.server = f"{without_password(url)}, named by {POSTGRES_URL_VARIABLE}"
        yield url
        return
    container, why_not = start_postgres_container()
    if container is not None:
        POSTGRES.server = f"{POSTGRES_IMAGE} in a container"
        yield container.get_connection_url(driver=None)
        container.stop()
        return
    with start_local_postgres(why_not) as server:
        POSTGRES.server = f"{server.version} here ({why_not})"
        yield server.url


@pytest.fixture
def own_postgres() -> Iterator[LocalPostgres]:
    """A server of one test's own, which it may kill and restart."""
    with start_local_postgres("a server that may be killed must be of this machine's binaries") as server:
        yield server


@pytest.fixture(scope="session")
def chromium_program() -> Path:
    """The program of a real Chromium."""
    program = chromium.executable()
    if program is None:
        BROWSER.give_up("no program of its names is on the path; 'make browser' installs one")
    BROWSER.server = str(program)
    return program


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
        USE.give_up(f"{why_not_docker}; {error}")
    return kafka


def start_container() -> tuple[Any, str]:
    """A started container, or ``None`` and why there is none."""
    if why_not := no_docker():
        return None, why_not
    try:
        from testcontainers.community.kafka import KafkaContainer

        container = KafkaContainer(KAFKA_IMAGE).with_kraft().with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
        return container.start(), ""
    except Exception as error:  # noqa: BLE001 -- an image that cannot be pulled, say
        return None, f"the container did not start: {str(error)[:120]}"


def start_postgres_container() -> tuple[Any, str]:
    if why_not := no_docker():
        return None, why_not
    try:
        from testcontainers.community.postgres import PostgresContainer

        return PostgresContainer(POSTGRES_IMAGE).start(), ""
    except Exception as error:  # noqa: BLE001 -- an image that cannot be pulled, say
        return None, f"the container did not start: {str(error)[:120]}"


def start_local_postgres(why_not_docker: str) -> LocalPostgres:
    server = LocalPostgres()
    try:
        server.start()
    except LocalPostgresError as error:
        POSTGRES.give_up(f"{why_not_docker}; {error}")
    return server


def no_docker() -> str:
    """Why no Docker can be used; empty if one can. The daemon is asked, not looked for on the path."""
    if not (os.environ.get("DOCKER_HOST") or DOCKER_SOCKET.exists()):
        return "there is no Docker"
    try:
        import docker  # type: ignore[import-untyped]

        docker.from_env(timeout=5).ping()
    except Exception as error:  # noqa: BLE001 -- whatever keeps Docker from answering, the next choice is tried
        return f"Docker does not answer: {str(error)[:120]}"
    return ""


def without_password(url: str) -> str:
    return re.sub(r"(?<=://)([^:@/]*):[^@/]*@", r"\1@", url)
