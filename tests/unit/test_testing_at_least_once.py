"""``check_step`` finds what a step does not bear, and passes what it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Connection, MetaData, String, Table, create_engine, delete, func, insert, select
from sqlalchemy.pool import NullPool

from choreo.errors import ConfigurationError, DefinitionError
from choreo.inbox import Inbox
from choreo.step import CompensationContext, Context, NothingToUndo, Reject, Service
from choreo.testing import check_step
from tests.unit.step_world import ORDER

INPUT = {"amount": 10}

Step = Callable[..., Any]


def service_of(charge: Step, refund: Step, inbox: Inbox | None = None) -> Service:
    service = Service("payment", inbox=inbox)
    service.step(ORDER, "charge_card")(charge)
    service.compensation(ORDER, "charge_card")(refund)
    return service


async def test_a_naive_step_without_an_inbox_is_found_out_in_every_situation() -> None:
    charged: list[str] = []

    def charge(order: dict[str, int], ctx: Context) -> str:
        charged.append(ctx.saga_id)
        return "charged"

    def refund(ctx: CompensationContext) -> None:
        charged.remove(ctx.saga_id)

    report = await check_step(service_of(charge, refund), ORDER, "charge_card", INPUT, observe=charged.count)

    assert not report.is_ok
    no_error = ("no error", "list.remove(x): x not in list")
    assert [(finding.situation, finding.expected, finding.found) for finding in report.findings] == [
        ("the step is delivered a second time", 1, 2),
        ("the process dies between effect and answer, and the step is delivered again", 1, 2),
        ("it is compensated a second time", *no_error),
        ("the step is delivered again behind its compensation", 0, 1),
        (
            "the process dies in the compensation, and it is delivered again",
            "no error",
            "list.remove(x): x not in list",
        ),
        ("the compensation comes before its step", *no_error),
        ("the step comes behind its compensation", 0, 1),
    ]
    assert "make it conditional on ctx.idempotency_key" in str(report)


async def test_a_compensation_that_undoes_more_each_time_is_found_out() -> None:
    balance: dict[str, int] = {}

    def charge(order: dict[str, int], ctx: Context) -> str:
        balance[ctx.saga_id] = -order["amount"]
        return "charged"

    def refund(ctx: CompensationContext) -> None:
        balance[ctx.saga_id] = balance.get(ctx.saga_id, 0) + ctx.input["amount"]

    service = service_of(charge, refund)
    report = await check_step(service, ORDER, "charge_card", INPUT, observe=lambda saga_id: balance.get(saga_id, 0))

    assert ("it is compensated a second time", 0, 10) in [finding[:3] for finding in report.findings]


async def test_a_step_that_is_conditional_on_its_key_passes() -> None:
    rows: dict[str, str] = {}

    def charge(order: dict[str, int], ctx: Context) -> str:
        if rows.setdefault(ctx.idempotency_key, "standing") != "standing":
            raise Reject("it was compensated before it came")
        return "charged"

    async def refund(ctx: CompensationContext) -> NothingToUndo | None:
        was = rows.get(ctx.step_key)
        rows[ctx.step_key] = "undone"
        return None if was else NothingToUndo()

    async def standing(saga_id: str) -> int:
        return sum(state == "standing" for key, state in rows.items() if key.startswith(saga_id))

    report = await check_step(service_of(charge, refund), ORDER, "charge_card", INPUT, observe=standing)

    assert report.is_ok, report
    assert len(report.tried) == 8
    assert str(report) == "step 'charge_card': bears what at-least-once delivery does"


async def test_a_naive_step_with_an_inbox_passes(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/payment.db", poolclass=NullPool)
    metadata = MetaData()
    charges = Table("charges", metadata, Column("saga_id", String))

    def charge(order: dict[str, int], ctx: Context, connection: Connection) -> str:
        connection.execute(insert(charges).values(saga_id=ctx.saga_id))
        return "charged"

    def refund(ctx: CompensationContext, connection: Connection) -> None:
        assert connection.execute(delete(charges).where(charges.c.saga_id == ctx.saga_id)).rowcount == 1

    def standing(saga_id: str) -> Any:
        with engine.connect() as connection:
            return connection.execute(select(func.count()).where(charges.c.saga_id == saga_id)).scalar()

    metadata.create_all(engine)
    service = service_of(charge, refund, Inbox(engine, create_tables=True))
    report = await check_step(service, ORDER, "charge_card", INPUT, observe=standing)

    assert report.is_ok, report


async def test_what_cannot_be_checked_is_told() -> None:
    def refuse(order: dict[str, int]) -> None:
        raise Reject("over the limit")

    service = service_of(refuse, lambda: None)
    with pytest.raises(ConfigurationError, match=r"fails with this input \(over the limit\)"):
        await check_step(service, ORDER, "charge_card", INPUT, observe=lambda _: 0)
    with pytest.raises(ConfigurationError, match="it has to return what stands"):
        await check_step(service_of(lambda order: "ok", lambda: None), ORDER, "charge_card", INPUT, observe=lambda _: 0)
    with pytest.raises(DefinitionError, match="does not run step 'send_receipt'"):
        await check_step(service, ORDER, "send_receipt", INPUT, observe=lambda _: 0)
