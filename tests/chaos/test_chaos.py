"""A small dose of chaos for every build; ``make chaos`` has the large ones."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.kafka.local_kafka import LocalKafkaError
from deploy.run_procfile import free_ports
from tests.chaos.proxy import Proxy
from tests.chaos.report import markdown
from tests.chaos.run import Settings, run
from tests.conftest import USE

# Connections are cut here on purpose; what is left of them is swept up here, and not in whatever test comes next.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def swept() -> Iterator[None]:
    yield
    gc.collect()


@pytest.mark.e2e
@pytest.mark.kafka
async def test_whatever_happens_to_processes_and_the_broker_every_saga_ends_once_and_every_effect_fits(
    tmp_path: Path, seed: int
) -> None:
    settings = Settings(sagas=80, over_s=12, kills=5, seed=seed, end_s=120, quiet_s=7)
    try:
        report = await run(settings, tmp_path)
    except LocalKafkaError as error:
        USE.give_up(str(error))
    print(markdown(report, f"python -m tests.chaos --sagas 80 --seconds 12 --kills 5 --seed {seed}"))
    assert report.violations == []
    assert sum(report.outcomes.values()) == settings.sagas
    assert report.faults["kill -9 of a service or saga-log"] == settings.kills
    assert len(report.faults) >= 5
    assert sum(report.faults_at_work.values()) >= 3


async def test_a_proxy_that_loses_answers_hands_on_what_was_asked() -> None:
    got = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            got.extend(data)
            writer.write(b"answer")
        writer.close()

    front, back = free_ports(2)
    server = await asyncio.start_server(answer, "127.0.0.1", back)
    proxy = Proxy(front, back)
    await proxy.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", front)
    writer.write(b"one")
    assert await reader.readexactly(6) == b"answer"
    losing = asyncio.create_task(proxy.lose_answers(0.2))
    await asyncio.sleep(0.05)
    writer.write(b"two")
    assert await reader.read() == b"", "no answer, and then the connection breaks"
    await losing
    assert bytes(got) == b"onetwo"
    assert (proxy.answers_lost, proxy.connections_cut) == (6, 1)
    writer.close()
    await proxy.close()
    server.close()
