"""The payment service: money moves once each way, and an invoice's number is never given twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from choreo.step import NothingToUndo, Reject
from services.order import Charge, Invoice, OrderInput, Trouble
from services.payment.gateway import GatewayUnavailable
from services.payment.steps import charge_card, issue_invoice, ledger, refund_card, void_invoice

Deliver = Callable[..., Any]

ORDER_INPUT = OrderInput(amount_cents=999)
CHARGE = Charge(charge="C-000001", amount_cents=999)


def entries(table: str) -> list[tuple[str, int]]:
    return list(ledger()._connection.execute(f"SELECT state, amount_cents FROM {table} ORDER BY id"))


def test_a_charge_is_entered_once_however_often_it_is_delivered(deliver: Deliver) -> None:
    delivery = deliver("charge_card")

    for _ in range(3):
        assert charge_card(ORDER_INPUT, delivery.context(ORDER_INPUT)) == CHARGE

    assert entries("charges") == [("standing", 999)]


def test_a_declined_card_is_refused_and_nothing_is_entered(deliver: Deliver) -> None:
    order = OrderInput(card="tok_declined")

    with pytest.raises(Reject) as refusal:
        charge_card(order, deliver("charge_card").context(order))

    assert refusal.value.code == "card_declined"
    assert entries("charges") == []


def test_a_flaky_gateway_fails_as_often_as_it_was_told_to_then_works(deliver: Deliver) -> None:
    delivery, order = deliver("charge_card"), OrderInput(trouble=Trouble(gateway_failures=2), amount_cents=999)

    for attempt in (1, 2):
        with pytest.raises(GatewayUnavailable):
            charge_card(order, delivery.context(order, attempt=attempt))
    assert entries("charges") == []

    assert charge_card(order, delivery.context(order, attempt=3)) == CHARGE


def test_a_refund_is_entered_once_however_often_it_is_delivered(deliver: Deliver) -> None:
    delivery = deliver("charge_card")
    charge_card(ORDER_INPUT, delivery.context(ORDER_INPUT))

    assert [refund_card(delivery.back()) for _ in range(3)] == [None, None, None]
    assert entries("charges") == [("undone", 999)]


def test_a_charge_that_comes_after_its_refund_is_refused(deliver: Deliver) -> None:
    delivery = deliver("charge_card")

    assert isinstance(refund_card(delivery.back()), NothingToUndo)
    with pytest.raises(Reject) as refusal:
        charge_card(ORDER_INPUT, delivery.context(ORDER_INPUT))

    assert refusal.value.code == "compensated"
    assert entries("charges") == [("barred", 0)]


def test_an_invoice_is_for_what_was_charged(deliver: Deliver) -> None:
    context = deliver("issue_invoice").context(ORDER_INPUT, charge_card=CHARGE)

    assert issue_invoice(context) == Invoice(number="INV-000001", amount_cents=999)


def test_the_number_of_a_voided_invoice_is_not_given_again(deliver: Deliver) -> None:
    first, second = deliver("issue_invoice", "order-1"), deliver("issue_invoice", "order-2")
    issue_invoice(first.context(charge_card=CHARGE))
    assert void_invoice(first.back()) is None

    assert issue_invoice(second.context(charge_card=CHARGE)).number == "INV-000002"
    with pytest.raises(Reject):
        issue_invoice(first.context(charge_card=CHARGE))
