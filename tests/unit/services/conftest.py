"""Contexts as a worker would make them, so that handlers can be called directly, and databases in a fresh directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from choreo.clock import SystemClock
from choreo.messages.codec import encode_user_value
from choreo.messages.headers import JSON
from choreo.step import CompensationContext, Context
from choreo.step.job import CompensationJob, StepJob
from services.inventory import steps as inventory_steps
from services.notification import steps as notification_steps
from services.order import ORDER, OrderInput
from services.payment import steps as payment_steps
from services.shipping import steps as shipping_steps

C = TypeVar("C")

START = "0" * 16


class Delivery:
    """What a worker hands to the handlers of one step of one saga."""

    def __init__(self, step: str, saga_id: str = "order-1") -> None:
        self.step = step
        self.saga_id = saga_id

    def context(self, order: OrderInput | None = None, *, attempt: int = 1, **effects: Any) -> Context:
        return Context(
            self._job(StepJob, order, effects, saga_due_ms=2**50, is_fresh=True), attempt, 2**40, SystemClock()
        )

    def back(
        self, order: OrderInput | None = None, *, effect: Any = msgspec.UNSET, **effects: Any
    ) -> CompensationContext:
        raw = effect if effect is msgspec.UNSET else msgspec.Raw(encode_user_value(effect))
        undoing = {"generation": 1, "effect": raw, "failure": None, "own": False, "remaining": ()}
        job = self._job(CompensationJob, order, effects, **undoing)
        return CompensationContext(job, 1, 2**40, SystemClock())

    def _job(self, kind: Callable[..., C], order: OrderInput | None, effects: dict[str, Any], **fields: Any) -> C:
        return kind(
            saga=ORDER,
            step=ORDER[self.step],
            saga_id=self.saga_id,
            start=START,
            round=1,
            run="run",
            due_ms=2**50,
            due_at=2.0**40,
            input=msgspec.Raw(encode_user_value(order or OrderInput())),
            effects={step: msgspec.Raw(encode_user_value(effect)) for step, effect in effects.items()},
            content_type=JSON,
            traceparent=None,
            **fields,
        )


@pytest.fixture
def deliver() -> Callable[..., Delivery]:
    return Delivery


@pytest.fixture(autouse=True)
def own_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    steps = {
        inventory_steps: inventory_steps.warehouse,
        payment_steps: payment_steps.ledger,
        shipping_steps: shipping_steps.dispatch_book,
        notification_steps: notification_steps.outbox,
    }
    for service in ("INVENTORY", "PAYMENT", "SHIPPING", "NOTIFICATION"):
        monkeypatch.setenv(f"{service}_DATABASE", str(tmp_path / f"{service.lower()}.db"))
    yield
    for module, database in steps.items():
        if module._open.cache_info().currsize:
            database().close()
            module._open.cache_clear()
