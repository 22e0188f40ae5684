"""The inventory service: stock is taken, and comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from choreo.step import Reject
from services.inventory import database
from services.inventory.database import DELIVERED
from services.inventory.steps import release_stock, reserve_stock
from services.order import OrderInput, Reservation
from tests.unit.services.conftest import in_transaction, told

Deliver = Callable[..., Any]

THREE = OrderInput(item="kettle", quantity=3)


def on_hand(item: str = "kettle") -> int:
    ((count,),) = told(database, f"SELECT on_hand FROM stock WHERE item = '{item}'")
    return int(count)


def test_a_reservation_takes_the_items_off_the_shelf(deliver: Deliver) -> None:
    effect = in_transaction(database, reserve_stock, THREE, deliver("reserve_stock").context(THREE))

    assert effect == Reservation(reservation="R-000001", item="kettle", quantity=3)
    assert on_hand() == DELIVERED["kettle"] - 3


@pytest.mark.parametrize("order", [OrderInput(item="unobtainium"), OrderInput(item="kettle", quantity=100_001)])
def test_what_is_not_there_is_refused_and_leaves_no_trace(deliver: Deliver, order: OrderInput) -> None:
    with pytest.raises(Reject) as refusal:
        in_transaction(database, reserve_stock, order, deliver("reserve_stock").context(order))

    assert refusal.value.code == "out_of_stock"
    assert on_hand() == DELIVERED["kettle"]
    assert told(database, "SELECT * FROM reservations") == []


def test_releasing_puts_the_items_of_this_order_back(deliver: Deliver) -> None:
    for saga_id in ("order-1", "order-2"):
        in_transaction(database, reserve_stock, THREE, deliver("reserve_stock", saga_id).context(THREE))
    in_transaction(database, release_stock, deliver("reserve_stock", "order-1").back(THREE))

    assert on_hand() == DELIVERED["kettle"] - 3
    assert told(database, "SELECT saga_id, state FROM reservations") == [("order-1", "undone"), ("order-2", "standing")]
