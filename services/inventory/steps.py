"""The step ``reserve_stock`` and its way back."""

from __future__ import annotations

from sqlalchemy import Connection, insert, update

from choreo.step import CompensationContext, Context, Reject, Service
from services.inventory.database import inbox, reservations, stock
from services.order import ORDER, OrderInput, Reservation

service = Service("inventory", inbox=inbox)


@service.step(ORDER, "reserve_stock")
def reserve_stock(order: OrderInput, ctx: Context, connection: Connection) -> Reservation:
    """Put the items aside. Out of stock is a decision, not a crash: no retry would bring more."""
    taken = connection.execute(
        update(stock)
        .where(stock.c.item == order.item, stock.c.on_hand >= order.quantity)
        .values(on_hand=stock.c.on_hand - order.quantity)
    ).rowcount
    if not taken:
        raise Reject(f"fewer than {order.quantity} of {order.item!r} are in stock", code="out_of_stock")
    made = insert(reservations).values(
        saga_id=ctx.saga_id, key=ctx.idempotency_key, item=order.item, quantity=order.quantity
    )
    number = connection.execute(made.returning(reservations.c.id)).scalar_one()
    return Reservation(reservation=f"R-{number:06}", item=order.item, quantity=order.quantity)


@service.compensation(ORDER, "reserve_stock")
def release_stock(ctx: CompensationContext, connection: Connection) -> None:
    """Put the items back on the shelf. Called once, and only if they were put aside."""
    order = ctx.input_as(OrderInput)
    connection.execute(update(reservations).where(reservations.c.key == ctx.step_key).values(state="undone"))
    connection.execute(update(stock).where(stock.c.item == order.item).values(on_hand=stock.c.on_hand + order.quantity))
