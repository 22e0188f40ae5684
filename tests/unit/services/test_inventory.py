"""The inventory service: stock is taken once and comes back once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from choreo.step import NothingToUndo, Reject
from services.inventory.database import DELIVERED
from services.inventory.steps import release_stock, reserve_stock, warehouse
from services.order import OrderInput, Reservation

Deliver = Callable[..., Any]

THREE = OrderInput(item="kettle", quantity=3)


def on_hand(item: str = "kettle") -> int:
    ((count,),) = warehouse()._connection.execute("SELECT on_hand FROM stock WHERE item = ?", (item,)).fetchall()
    return int(count)


def test_a_reservation_takes_the_items_off_the_shelf(deliver: Deliver) -> None:
    effect = reserve_stock(THREE, deliver("reserve_stock").context(THREE))

    assert effect == Reservation(reservation="R-000001", item="kettle", quantity=3)
    assert on_hand() == DELIVERED["kettle"] - 3


def test_a_second_delivery_takes_nothing_more_and_returns_the_same_effect(deliver: Deliver) -> None:
    delivery = deliver("reserve_stock")

    assert reserve_stock(THREE, delivery.context(THREE)) == reserve_stock(THREE, delivery.context(THREE))
    assert on_hand() == DELIVERED["kettle"] - 3


@pytest.mark.parametrize("order", [OrderInput(item="unobtainium"), OrderInput(item="kettle", quantity=10_001)])
def test_what_is_not_there_is_refused_and_leaves_no_trace(deliver: Deliver, order: OrderInput) -> None:
    delivery = deliver("reserve_stock")

    with pytest.raises(Reject) as refusal:
        reserve_stock(order, delivery.context(order))

    assert refusal.value.code == "out_of_stock"
    assert on_hand() == DELIVERED["kettle"]
    assert isinstance(release_stock(delivery.back(order)), NothingToUndo)


def test_releasing_puts_the_items_back_once_however_often_it_is_delivered(deliver: Deliver) -> None:
    delivery = deliver("reserve_stock")
    reserve_stock(THREE, delivery.context(THREE))

    assert release_stock(delivery.back(THREE)) is None
    assert release_stock(delivery.back(THREE)) is None
    assert on_hand() == DELIVERED["kettle"]


def test_a_step_that_comes_after_its_compensation_is_refused(deliver: Deliver) -> None:
    delivery = deliver("reserve_stock")

    assert isinstance(release_stock(delivery.back(THREE)), NothingToUndo)
    with pytest.raises(Reject) as refusal:
        reserve_stock(THREE, delivery.context(THREE))

    assert refusal.value.code == "compensated"
    assert on_hand() == DELIVERED["kettle"]
    assert isinstance(release_stock(delivery.back(THREE)), NothingToUndo)


def test_an_undone_reservation_does_not_come_back(deliver: Deliver) -> None:
    delivery = deliver("reserve_stock")
    reserve_stock(THREE, delivery.context(THREE))
    release_stock(delivery.back(THREE))

    with pytest.raises(Reject):
        reserve_stock(THREE, delivery.context(THREE))

    assert on_hand() == DELIVERED["kettle"]


def test_orders_do_not_share_reservations(deliver: Deliver) -> None:
    reserve_stock(THREE, deliver("reserve_stock", "order-1").context(THREE))
    reserve_stock(THREE, deliver("reserve_stock", "order-2").context(THREE))
    release_stock(deliver("reserve_stock", "order-1").back(THREE))

    assert on_hand() == DELIVERED["kettle"] - 3
