"""The log of a world in which everything goes wrong is sound all the same: verification raises no false alarm."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from choreo.audit.findings import Fault
from choreo.audit.verification import verify
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


async def verified(seed: int, clock: VirtualClock) -> list[Fault]:
    """What is wrong, but for what really is."""
    world = World(seed, SAGAS, clock, None)
    await world.run()
    broker = MemoryBroker("memory://verified", world.log)
    found = await verify(broker, world.shape.contract.name, registry=Registry(broker), now_ms=clock.now_ms())
    assert found.records > SAGAS
    assert set(found.faults_total) == {fault.kind for fault in found.faults}, "all of them are listed"
    return [fault for fault in found.faults if fault.kind not in REAL and not is_refused_too_early(fault, world)]


def is_refused_too_early(fault: Fault, world: World) -> bool:
    """A damaged copy of a scheduled start is refused in the name of the first steps, before their command is there."""
    state = world.judge.states.get(fault.saga_id)
    is_answered_too_early = (fault.kind == "unasked" and "StepFailed" in fault.text) or (
        fault.kind == "missing" and fault.text.startswith("execute ")
    )
    return is_answered_too_early and state is not None and state.begins_ms > 0


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_a_log_that_the_runtimes_have_written_is_sound_whatever_went_wrong(first: int) -> None:
    for seed in range(first, first + 10):

        async def work(clock: VirtualClock, seed: int = seed) -> list[Fault]:
            return await verified(seed, clock)

        assert clockwork.run(work) == [], f"seed {seed}"
