"""The step ``reserve_stock`` and its way back."""

from __future__ import annotations

import os
import threading
from functools import cache

from choreo.step import CompensationContext, Context, NothingToUndo, Reject, Service
from services.inventory.database import Compensated, OutOfStock, Warehouse
from services.order import ORDER, OrderInput, Reservation

service = Service("inventory")


_open = cache(Warehouse)
_opening = threading.Lock()


def warehouse() -> Warehouse:
    """The database, opened when the first order needs it: importing a service touches nothing."""
    with _opening:  # handlers run in several threads
        return _open(os.environ.get("INVENTORY_DATABASE", ".choreo/inventory.db"))


@service.step(ORDER, "reserve_stock")
def reserve_stock(order: OrderInput, ctx: Context) -> Reservation:
    """Put the items aside. Out of stock is a decision, not a crash: no retry would bring more."""
    try:
        number = warehouse().reserve(ctx.idempotency_key, ctx.saga_id, order.item, order.quantity)
    except OutOfStock as error:
        raise Reject(str(error), code="out_of_stock") from error
    except Compensated as error:
        raise Reject(str(error), code="compensated") from error
    return Reservation(reservation=f"R-{number:06}", item=order.item, quantity=order.quantity)


@service.compensation(ORDER, "reserve_stock")
def release_stock(ctx: CompensationContext) -> NothingToUndo | None:
    """Put the items back on the shelf."""
    return None if warehouse().release(ctx.step_key, ctx.saga_id) else NothingToUndo()
