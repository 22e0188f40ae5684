"""The sagas of the benchmark, their steps spread over three services. Handlers do nothing but answer."""

from __future__ import annotations

from typing import Any

import msgspec

from choreo import Context, Reject, Saga, Service, Step


class Order(msgspec.Struct):
    """What a benchmark saga starts with."""

    item: str
    quantity: int
    amount: int
    fails: bool = False


class Done(msgspec.Struct):
    """An effect of a usual size."""

    reference: str
    amount: int


GOOD = Order(item="kite", quantity=1, amount=30)
BAD = Order(item="kite", quantity=1, amount=30, fails=True)
SERVICES = ("inventory", "payment", "shipping")


def saga_of(name: str, steps: int) -> Saga:
    """A line of steps, each with a compensation."""
    return Saga(name, *(Step(f"step_{n}", compensation=f"undo_{n}") for n in range(1, steps + 1)), deadline="1h")


def services_of(saga: Saga, **options: Any) -> list[Service]:
    """The saga's steps in turn on three services, so that every hop is one from process to process."""
    services = [Service(f"{saga.name}-{name}", **options) for name in SERVICES]
    for index, step in enumerate(saga.steps):
        bind(services[index % len(services)], saga, step.name, is_last=index == len(saga.steps) - 1)
    return services


def bind(service: Service, saga: Saga, step: str, *, is_last: bool) -> None:
    """Give the service handlers for the step; the last step refuses orders that are to fail."""

    @service.step(saga, step)
    async def run(order: Order, ctx: Context) -> Done:
        if is_last and order.fails:
            raise Reject("no carrier goes there", code="no_carrier")
        return Done(ctx.idempotency_key, order.quantity)

    @service.compensation(saga, step)
    async def undo() -> None:
        """Nothing to undo: the benchmark measures the way, not the work."""


ORDER = saga_of("bench_order", 3)
inventory, payment, shipping = services_of(ORDER)

LONG = saga_of("bench_long", 12)
long_inventory, long_payment, long_shipping = services_of(LONG)
