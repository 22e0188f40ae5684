"""The order saga of the benchmark: three steps, a service each, handlers that do nothing but answer."""

from __future__ import annotations

import msgspec

from choreo import Context, Reject, Saga, Service, Step

ORDER = Saga(
    "bench_order",
    Step("reserve", compensation="release"),
    Step("charge", compensation="refund"),
    Step("ship", compensation="recall"),
    deadline="1h",
)


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


inventory = Service("bench-inventory")
payment = Service("bench-payment")
shipping = Service("bench-shipping")


@inventory.step(ORDER, "reserve")
async def reserve(order: Order, ctx: Context) -> Done:
    return Done(ctx.idempotency_key, order.quantity)


@payment.step(ORDER, "charge")
async def charge(order: Order, ctx: Context) -> Done:
    return Done(ctx.idempotency_key, order.amount)


@shipping.step(ORDER, "ship")
async def ship(order: Order, ctx: Context) -> Done:
    if order.fails:
        raise Reject("no carrier goes there", code="no_carrier")
    return Done(ctx.idempotency_key, 1)


@inventory.compensation(ORDER, "reserve")
async def release() -> None:
    """Nothing to release: the benchmark measures the way, not the work."""


@payment.compensation(ORDER, "charge")
async def refund() -> None:
    """See ``release``."""


@shipping.compensation(ORDER, "ship")
async def recall() -> None:
    """See ``release``."""
