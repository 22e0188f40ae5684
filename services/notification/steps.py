"""The step ``notify_customer`` and its way back."""

from __future__ import annotations

from sqlalchemy import Connection, insert, update

from choreo.step import CompensationContext, Context, Service
from services.notification.database import inbox, mails, notices
from services.order import ORDER, Booking, Notice, OrderInput

service = Service("notification", inbox=inbox)


@service.step(ORDER, "notify_customer")
def notify_customer(order: OrderInput, ctx: Context, connection: Connection) -> Notice:
    """Tell the customer that the parcel is on its way."""
    booking = ctx.effect("book_carrier", Booking)
    text = f"Your {order.item} is on its way, booking {booking.booking}."
    connection.execute(insert(mails).values(saga_id=ctx.saga_id, email=order.email, text=text))
    sent = insert(notices).values(saga_id=ctx.saga_id, key=ctx.idempotency_key).returning(notices.c.id)
    return Notice(mail=f"M-{connection.execute(sent).scalar_one():06}")


@service.compensation(ORDER, "notify_customer")
def send_apology(ctx: CompensationContext, connection: Connection) -> None:
    """Tell the customer that the parcel does not come."""
    order = ctx.input_as(OrderInput)
    text = f"We are sorry: your {order.item} is not on its way after all, and you pay nothing."
    connection.execute(update(notices).where(notices.c.key == ctx.step_key).values(state="undone"))
    connection.execute(insert(mails).values(saga_id=ctx.saga_id, email=order.email, text=text))
