"""The step ``notify_customer`` and its way back."""

from __future__ import annotations

import os
import threading
from functools import cache

from choreo.step import CompensationContext, Context, NothingToUndo, Reject, Service
from services.notification.database import Compensated, Outbox
from services.order import ORDER, Booking, Notice, OrderInput

service = Service("notification")


_open = cache(Outbox)
_opening = threading.Lock()


def outbox() -> Outbox:
    """The database, opened when the first order needs it: importing a service touches nothing."""
    with _opening:  # handlers run in several threads
        return _open(os.environ.get("NOTIFICATION_DATABASE", ".choreo/notification.db"))


@service.step(ORDER, "notify_customer")
def notify_customer(order: OrderInput, ctx: Context) -> Notice:
    """Tell the customer that the parcel is on its way."""
    booking = ctx.effect("book_carrier", Booking)
    text = f"Your {order.item} is on its way, booking {booking.booking}."
    try:
        number = outbox().send_notice(ctx.idempotency_key, ctx.saga_id, order.email, text)
    except Compensated as error:
        raise Reject(str(error), code="compensated") from error
    return Notice(mail=f"M-{number:06}")


@service.compensation(ORDER, "notify_customer")
def send_apology(ctx: CompensationContext) -> NothingToUndo | None:
    """Tell the customer that the parcel does not come."""
    order = ctx.input_as(OrderInput)
    text = f"We are sorry: your {order.item} is not on its way after all, and you pay nothing."
    return None if outbox().send_apology(ctx.step_key, ctx.saga_id, order.email, text) else NothingToUndo()
