"""Contexts as a worker would make them, so that handlers can be called directly, and databases in a fresh directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec
import pytest

from choreo.clock import SystemClock
from choreo.messages.codec import encode_user_value
from choreo.messages.headers import JSON
from choreo.step import CompensationContext, Context
from choreo.step.job import CompensationJob, StepJob
from services.inventory import database as inventory
from services.notification import database as notification
from services.order import ORDER, OrderInput
from services.payment import database as payment
from services.shipping import database as shipping
from services.shipping import steps as shipping_steps

C = TypeVar("C")

START = "0" * 16
DATABASES = (inventory, payment, shipping, notification)


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


def in_transaction(database: Any, handler: Callable[..., Any], *arguments: Any) -> Any:
    """Call a handler as the inbox does: what it raises rolls back what it did."""
    with database.engine.begin() as connection:
        return handler(*arguments, connection=connection)


def told(database: Any, query: str) -> list[Any]:
    """The rows of a service's database."""
    with database.engine.connect() as connection:
        return list(connection.exec_driver_sql(query))


@pytest.fixture(autouse=True)
def own_databases(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    directory = tmp_path_factory.mktemp("databases")
    for database in DATABASES:
        name = database.__name__.split(".")[1]
        monkeypatch.setenv(f"{name.upper()}_DATABASE", str(directory / f"{name}.db"))
        database.metadata.create_all(database.engine)
    yield
    for database in DATABASES:
        database.engine.dispose()
    if shipping_steps._open.cache_info().currsize:
        shipping_steps.carrier().close()
        shipping_steps._open.cache_clear()
