"""The steps ``book_carrier`` and ``hand_over``, and their ways back.

Two kinds of effects: a booking is the carrier's, so it is made conditional on the idempotency key; a parcel is ours,
so its row commits with the inbox's and needs nothing of the kind.
"""

from __future__ import annotations

import asyncio
import threading
from functools import cache

from sqlalchemy import Connection, insert, update

from choreo.step import CompensationContext, Context, NothingToUndo, Reject, Service
from services.order import ORDER, Booking, HandOver, Invoice, OrderInput
from services.shipping.carrier import Cancelled, Carrier
from services.shipping.database import database_path, inbox, parcels

service = Service("shipping", inbox=inbox)


_open = cache(Carrier)
_opening = threading.Lock()


def carrier() -> Carrier:
    """The carrier, called when the first order needs it: importing a service touches nothing."""
    with _opening:  # handlers run in several threads
        return _open(database_path())


@service.step(ORDER, "book_carrier")
async def book_carrier(order: OrderInput, ctx: Context) -> Booking:
    """Book, then wait for the carrier to confirm.

    Whoever dies or runs out of time while waiting leaves a booking behind: a redelivery finds it and waits on, and
    after a timeout the step's own compensation cancels it.
    """
    try:
        number = await asyncio.to_thread(carrier().book, ctx.idempotency_key, ctx.saga_id)
    except Cancelled as error:
        raise Reject(str(error), code="compensated") from error
    await asyncio.sleep(order.trouble.carrier_seconds)
    return Booking(booking=f"B-{number:06}")


@service.compensation(ORDER, "book_carrier")
def cancel_carrier(ctx: CompensationContext) -> NothingToUndo | None:
    """Cancel the booking."""
    return None if carrier().cancel(ctx.step_key, ctx.saga_id) else NothingToUndo()


class DepotClosed(ConnectionError):  # noqa: N818 -- says what has happened
    """Nobody takes the parcel in."""


@service.step(ORDER, "hand_over")
def hand_over(order: OrderInput, ctx: Context, connection: Connection) -> HandOver:
    """Give the parcel to the carrier, once invoice and notice are out."""
    handed_over = insert(parcels).values(saga_id=ctx.saga_id, key=ctx.idempotency_key).returning(parcels.c.id)
    number = connection.execute(handed_over).scalar_one()
    if order.trouble.depot_closed:
        raise DepotClosed("the carrier's depot is closed")  # and the row is rolled back
    return HandOver(
        parcel=f"P-{number:06}",
        booking=ctx.effect("book_carrier", Booking).booking,
        invoice=ctx.effect("issue_invoice", Invoice).number,
    )


@service.compensation(ORDER, "hand_over")
def recall_parcel(ctx: CompensationContext, connection: Connection) -> None:
    """Have the parcel brought back."""
    connection.execute(update(parcels).where(parcels.c.key == ctx.step_key).values(state="undone"))
