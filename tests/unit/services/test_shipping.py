"""The shipping service: a booking survives its handler, and is cancelled once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from choreo.step import NothingToUndo, Reject
from services.order import Booking, HandOver, Invoice, OrderInput, Trouble
from services.shipping import database
from services.shipping.steps import (
    DepotClosed,
    book_carrier,
    cancel_carrier,
    hand_over,
    recall_parcel,
)
from tests.unit.services.conftest import in_transaction, told

Deliver = Callable[..., Any]

EFFECTS = {"book_carrier": Booking(booking="B-000001"), "issue_invoice": Invoice(number="INV-000001", amount_cents=1)}


def states(table: str) -> list[str]:
    return [state for (state,) in told(database, f"SELECT state FROM {table} ORDER BY id")]


async def test_a_carrier_is_booked_once_however_often_it_is_delivered(deliver: Deliver) -> None:
    delivery, order = deliver("book_carrier"), OrderInput()

    assert await book_carrier(order, delivery.context(order)) == Booking(booking="B-000001")
    assert await book_carrier(order, delivery.context(order)) == Booking(booking="B-000001")
    assert states("bookings") == ["standing"]


async def test_a_handler_that_is_cut_off_leaves_a_booking_that_its_compensation_finds(deliver: Deliver) -> None:
    delivery, order = deliver("book_carrier"), OrderInput(trouble=Trouble(carrier_seconds=60))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await book_carrier(order, delivery.context(order))
    assert states("bookings") == ["standing"]

    assert cancel_carrier(delivery.back(order)) is None
    assert cancel_carrier(delivery.back(order)) is None
    assert states("bookings") == ["undone"]


async def test_a_booking_that_comes_after_its_cancellation_is_refused(deliver: Deliver) -> None:
    delivery, order = deliver("book_carrier"), OrderInput()

    assert isinstance(cancel_carrier(delivery.back(order)), NothingToUndo)
    with pytest.raises(Reject) as refusal:
        await book_carrier(order, delivery.context(order))

    assert refusal.value.code == "compensated"
    assert states("bookings") == ["barred"]


def test_a_parcel_names_the_booking_and_the_invoice_it_goes_with(deliver: Deliver) -> None:
    order = OrderInput()

    effect = in_transaction(database, hand_over, order, deliver("hand_over").context(order, **EFFECTS))

    assert effect == HandOver(parcel="P-000001", booking="B-000001", invoice="INV-000001")


def test_a_closed_depot_takes_nothing(deliver: Deliver) -> None:
    order = OrderInput(trouble=Trouble(depot_closed=True))

    with pytest.raises(DepotClosed):
        in_transaction(database, hand_over, order, deliver("hand_over").context(order, **EFFECTS))

    assert states("parcels") == []


def test_a_parcel_is_recalled(deliver: Deliver) -> None:
    delivery, order = deliver("hand_over"), OrderInput()
    in_transaction(database, hand_over, order, delivery.context(order, **EFFECTS))
    in_transaction(database, recall_parcel, delivery.back())

    assert states("parcels") == ["undone"]
