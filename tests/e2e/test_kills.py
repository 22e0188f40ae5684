"""kill -9 of every kind of process while sagas run: nothing is lost, nothing happens twice."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.e2e.order_system import OrderSystem, draw_plan, running_system
from tests.e2e.test_thousand_sagas import run_and_audit

pytestmark = pytest.mark.e2e


async def kill_each(system: OrderSystem, rng: random.Random, *, pause_s: float) -> list[tuple[str, int]]:
    """Kill every process once, in an order of the seed's, and three more; start each again at once.

    Returns who was killed, and how many sagas were on their way at that moment.
    """
    names = list(system.processes.commands)
    killed = []
    for name in [*rng.sample(names, len(names)), *rng.choices(names, k=3)]:
        await asyncio.sleep(rng.uniform(0.5, 1.0) * pause_s)
        killed.append((name, system.on_their_way()))
        system.processes.kill(name)
        system.processes.start(name)
    return killed


async def kills_while_sagas_run(system: OrderSystem, seed: int, count: int, *, over_s: float) -> None:
    rng = random.Random(seed)
    plan = draw_plan(rng, count)
    async with asyncio.TaskGroup() as tasks:
        killing = tasks.create_task(kill_each(system, rng, pause_s=over_s / 8))
        tasks.create_task(run_and_audit(system, plan, over_s=over_s))
    killed = killing.result()
    print(f"killed, with so many sagas on their way: {', '.join(f'{name} {sagas}' for name, sagas in killed)}")
    assert {name for name, _ in killed} == set(system.processes.commands)
    assert sum(sagas > 0 for _, sagas in killed) >= 5, "the kills hit a system at work"


async def test_kills_of_every_process_on_the_embedded_broker_lose_nothing_and_do_nothing_twice(
    tmp_path: Path, seed: int
) -> None:
    async with running_system(tmp_path) as system:
        await kills_while_sagas_run(system, seed, 150, over_s=12)


@pytest.mark.kafka
async def test_kills_of_every_process_over_kafka_lose_nothing_and_do_nothing_twice(
    kafka_url: str, tmp_path: Path, seed: int
) -> None:
    async with running_system(tmp_path, kafka_url) as system:
        await kills_while_sagas_run(system, seed, 400, over_s=12)
