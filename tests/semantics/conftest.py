"""Every test of this folder runs twice: in the in-process runner, and over a broker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.semantics.world import BrokerWorld, RunnerWorld

MODES = ("runner", "broker")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--semantics-broker",
        choices=("memory", "kafka"),
        default="memory",
        help="what the semantics run over besides the in-process runner: memory:// in virtual time, or a real Kafka",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--semantics-broker", default="memory") == "kafka":
        # A part that is killed while it opens a connection leaves it to the garbage collector, as a dead process would.
        config.addinivalue_line("filterwarnings", "ignore::pytest.PytestUnraisableExceptionWarning")
        config.addinivalue_line("filterwarnings", "ignore::ResourceWarning")
    config.addinivalue_line("markers", "only(mode): the row says something about one of the two worlds alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("only")
        metafunc.parametrize("world", MODES if only is None else only.args, indirect=True)


@pytest.fixture
async def world(request: pytest.FixtureRequest) -> AsyncIterator[RunnerWorld | BrokerWorld]:
    made: RunnerWorld | BrokerWorld
    if request.param == "runner":
        made = RunnerWorld()
    elif request.config.getoption("--semantics-broker", default="memory") == "kafka":
        made = BrokerWorld(request.getfixturevalue("kafka_url"))
    else:
        made = BrokerWorld(None)
    try:
        yield made
    finally:
        await made.close()
    for play in made.plays:
        play.check()
