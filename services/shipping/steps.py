"""The steps ``book_carrier`` and ``hand_over``, and their ways back."""

from __future__ import annotations

import asyncio
import os
import threading
from functools import cache

from choreo.step import CompensationContext, Context, NothingToUndo, Reject, Service
from services.order import ORDER, Booking, HandOver, Invoice, OrderInput
from services.shipping.database import Compensated, DispatchBook

service = Service("shipping")


_open = cache(DispatchBook)
_opening = threading.Lock()


def dispatch_book() -> DispatchBook:
    """The database, opened when the first order needs it: importing a service touches nothing."""
    with _opening:  # handlers run in several threads
        return _open(os.environ.get("SHIPPING_DATABASE", ".choreo/shipping.db"))


@service.step(ORDER, "book_carrier")
async def book_carrier(order: OrderInput, ctx: Context) -> Booking:
    """Book, then wait for the carrier to confirm.

    Whoever dies or runs out of time while waiting leaves a booking behind: a redelivery finds it and waits on, and
    after a timeout the step's own compensation cancels it.
    """
    try:
        number = await asyncio.to_thread(dispatch_book().enter, "bookings", ctx.idempotency_key, ctx.saga_id)
    except Compensated as error:
        raise Reject(str(error), code="compensated") from error
    await asyncio.sleep(order.trouble.carrier_seconds)
    return Booking(booking=f"B-{number:06}")


@service.compensation(ORDER, "book_carrier")
def cancel_carrier(ctx: CompensationContext) -> NothingToUndo | None:
    """Cancel the booking."""
    return None if dispatch_book().withdraw("bookings", ctx.step_key, ctx.saga_id) else NothingToUndo()


class DepotClosed(ConnectionError):  # noqa: N818 -- says what has happened
    """Nobody takes the parcel in."""


@service.step(ORDER, "hand_over")
def hand_over(order: OrderInput, ctx: Context) -> HandOver:
    """Give the parcel to the carrier, once invoice and notice are out."""
    if order.trouble.depot_closed:
        raise DepotClosed("the carrier's depot is closed")
    try:
        number = dispatch_book().enter("parcels", ctx.idempotency_key, ctx.saga_id)
    except Compensated as error:
        raise Reject(str(error), code="compensated") from error
    return HandOver(
        parcel=f"P-{number:06}",
        booking=ctx.effect("book_carrier", Booking).booking,
        invoice=ctx.effect("issue_invoice", Invoice).number,
    )


@service.compensation(ORDER, "hand_over")
def recall_parcel(ctx: CompensationContext) -> NothingToUndo | None:
    """Have the parcel brought back. After a crash there may be none: then nobody can hand it over any more either."""
    return None if dispatch_book().withdraw("parcels", ctx.step_key, ctx.saga_id) else NothingToUndo()
