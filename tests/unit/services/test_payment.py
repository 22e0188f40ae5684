"""The payment service: money moves each way, and an invoice's number is never given twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from choreo.step import Reject
from services.order import Charge, Invoice, OrderInput, Trouble
from services.payment import database
from services.payment.gateway import GatewayUnavailable
from services.payment.steps import charge_card, issue_invoice, refund_card, void_invoice
from tests.unit.services.conftest import in_transaction, told

Deliver = Callable[..., Any]

ORDER_INPUT = OrderInput(amount_cents=999)
CHARGE = Charge(charge="C-000001", amount_cents=999)


def entries(table: str) -> list[Any]:
    return told(database, f"SELECT state, amount_cents FROM {table} ORDER BY id")


def test_a_charge_is_entered(deliver: Deliver) -> None:
    assert in_transaction(database, charge_card, ORDER_INPUT, deliver("charge_card").context(ORDER_INPUT)) == CHARGE
    assert entries("charges") == [("standing", 999)]


def test_a_declined_card_is_refused_and_nothing_is_entered(deliver: Deliver) -> None:
    order = OrderInput(card="tok_declined")

    with pytest.raises(Reject) as refusal:
        in_transaction(database, charge_card, order, deliver("charge_card").context(order))

    assert refusal.value.code == "card_declined"
    assert entries("charges") == []


def test_a_flaky_gateway_fails_as_often_as_it_was_told_to_then_works(deliver: Deliver) -> None:
    delivery, order = deliver("charge_card"), OrderInput(trouble=Trouble(gateway_failures=2), amount_cents=999)

    for attempt in (1, 2):
        with pytest.raises(GatewayUnavailable):
            in_transaction(database, charge_card, order, delivery.context(order, attempt=attempt))
    assert entries("charges") == []

    assert in_transaction(database, charge_card, order, delivery.context(order, attempt=3)) == CHARGE


def test_a_refund_leaves_the_charge_where_it_was(deliver: Deliver) -> None:
    delivery = deliver("charge_card")
    in_transaction(database, charge_card, ORDER_INPUT, delivery.context(ORDER_INPUT))
    in_transaction(database, refund_card, delivery.back())

    assert entries("charges") == [("undone", 999)]


def test_an_invoice_is_for_what_was_charged(deliver: Deliver) -> None:
    context = deliver("issue_invoice").context(ORDER_INPUT, charge_card=CHARGE)

    assert in_transaction(database, issue_invoice, context) == Invoice(number="INV-000001", amount_cents=999)


def test_the_number_of_a_voided_invoice_is_not_given_again(deliver: Deliver) -> None:
    first, second = deliver("issue_invoice", "order-1"), deliver("issue_invoice", "order-2")
    in_transaction(database, issue_invoice, first.context(charge_card=CHARGE))
    in_transaction(database, void_invoice, first.back())

    assert in_transaction(database, issue_invoice, second.context(charge_card=CHARGE)).number == "INV-000002"
