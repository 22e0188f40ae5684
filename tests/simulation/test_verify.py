"""The log of a world in which everything goes wrong is sound all the same: verification raises no false alarm."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from choreo.audit.verification import Verified, verify
from choreo.broker.memory import MemoryBroker
from choreo.broker.registry import Registry
from choreo.testing import VirtualClock
from tests.simulation import clockwork
from tests.simulation.world import World

SAGAS = 8
SEEDS = 30
# What the simulated handlers and the strangers in the topic really do, and verification rightly says.
REAL = {"unreadable", "effect_twice"}


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(level)


async def verified(seed: int, clock: VirtualClock) -> Verified:
    world = World(seed, SAGAS, clock, None)
    await world.run()
    broker = MemoryBroker("memory://verified", world.log)
    return await verify(broker, world.shape.contract.name, registry=Registry(broker), now_ms=clock.now_ms())


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_a_log_that_the_runtimes_have_written_is_sound_whatever_went_wrong(first: int) -> None:
    for seed in range(first, first + 10):

        async def work(clock: VirtualClock, seed: int = seed) -> Verified:
            return await verified(seed, clock)

        found = clockwork.run(work)
        assert set(found.faults_total) <= REAL, (seed, [one for one in found.faults if one.kind not in REAL])
        assert found.records > SAGAS
