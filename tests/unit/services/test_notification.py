"""The notification service: a mail that is out stays out, and is followed by an apology."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.notification import database
from services.notification.steps import notify_customer, send_apology
from services.order import Booking, Notice, OrderInput
from tests.unit.services.conftest import in_transaction, told

Deliver = Callable[..., Any]

BOOKED = {"book_carrier": Booking(booking="B-000007")}


def test_undoing_a_notice_sends_an_apology_after_it(deliver: Deliver) -> None:
    delivery, order = deliver("notify_customer"), OrderInput()

    sent = in_transaction(database, notify_customer, order, delivery.context(order, **BOOKED))
    in_transaction(database, send_apology, delivery.back(order))

    assert sent == Notice(mail="M-000001")
    assert [text.split()[0] for (text,) in told(database, "SELECT text FROM mails ORDER BY id")] == ["Your", "We"]
    assert told(database, "SELECT state FROM notices") == [("undone",)]
