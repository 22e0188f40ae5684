"""Every saga one outcome, every effect standing or undone once: four services, the saga-log, a broker, many orders."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.order_system import OrderSystem, Planned, draw_plan, running_system

SEED = 20_261_122

pytestmark = pytest.mark.e2e


async def run_and_audit(system: OrderSystem, plan: list[Planned], *, over_s: float = 0.0) -> None:
    began = time.monotonic()
    await system.place(plan, over_s=over_s)
    placed = time.monotonic() - began
    await system.finish(plan)
    took = time.monotonic() - began
    findings = await system.audit(plan)
    print(f"placed in {placed:.1f} s, finished in {took:.1f} s ({len(plan) / took:.0f} sagas/s); {findings}")
    for saga_id in sorted({problem.partition(":")[0] for problem in findings.problems})[:3]:
        print(system.told(saga_id))
    assert system.surprises(plan) == []
    assert findings.problems == []
    assert findings.outcomes == {
        "completed": sum(planned.fails_at is None for planned in plan),
        "compensated": sum(planned.fails_at is not None for planned in plan),
    }


def audit_by_hand(broker_url: str, directory: Path) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("audit.py")
    command = [sys.executable, str(script), "--broker", broker_url, "--databases", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.kafka
async def test_a_thousand_sagas_over_kafka_end_once_each_and_leave_the_databases_exact(
    kafka_url: str, tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    plan = draw_plan(random.Random(SEED), 1_000)
    async with running_system(tmp_path, kafka_url) as system:
        await run_and_audit(system, plan)


async def test_a_hundred_sagas_on_the_embedded_broker_end_once_each_and_leave_the_databases_exact(
    tmp_path: Path,
) -> None:
    print(f"seed {SEED}")
    plan = draw_plan(random.Random(SEED), 100)
    async with running_system(tmp_path) as system:
        await run_and_audit(system, plan)
    done = audit_by_hand(f"sqlite:///{tmp_path / 'broker.db'}", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 sagas: 20 compensated, 80 completed" in done.stdout


async def test_the_audit_finds_an_effect_that_was_tampered_with(tmp_path: Path) -> None:
    import sqlite3

    plan = draw_plan(random.Random(SEED), 10)
    async with running_system(tmp_path) as system:
        await system.place(plan)
        await system.finish(plan)
    completed = next(planned for planned in plan if planned.fails_at is None)
    with sqlite3.connect(tmp_path / "payment.db") as db:
        db.execute("UPDATE charges SET state = 'undone' WHERE saga_id = ?", (completed.saga_id,))
    db.close()

    done = audit_by_hand(f"sqlite:///{tmp_path / 'broker.db'}", tmp_path)

    assert done.returncode == 1
    assert f"PROBLEM {completed.saga_id}: completed, but the effects of charge_card are ['undone']" in done.stdout
