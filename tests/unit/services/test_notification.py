"""The notification service: a mail that is out stays out, and is followed by one apology."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from choreo.step import NothingToUndo, Reject
from services.notification.steps import notify_customer, outbox, send_apology
from services.order import Booking, Notice, OrderInput

Deliver = Callable[..., Any]

BOOKED = {"book_carrier": Booking(booking="B-000007")}


def mails() -> list[str]:
    return [text.split()[0] for (text,) in outbox()._connection.execute("SELECT text FROM mails ORDER BY id")]


def test_a_notice_is_mailed_once_however_often_it_is_delivered(deliver: Deliver) -> None:
    delivery, order = deliver("notify_customer"), OrderInput()

    for _ in range(2):
        assert notify_customer(order, delivery.context(order, **BOOKED)) == Notice(mail="M-000001")

    assert mails() == ["Your"]


def test_undoing_a_notice_sends_one_apology_after_it(deliver: Deliver) -> None:
    delivery, order = deliver("notify_customer"), OrderInput()
    notify_customer(order, delivery.context(order, **BOOKED))

    assert [send_apology(delivery.back(order)) for _ in range(2)] == [None, None]
    assert mails() == ["Your", "We"]


def test_nobody_gets_an_apology_for_a_mail_they_never_had(deliver: Deliver) -> None:
    delivery, order = deliver("notify_customer"), OrderInput()

    assert isinstance(send_apology(delivery.back(order)), NothingToUndo)
    with pytest.raises(Reject) as refusal:
        notify_customer(order, delivery.context(order, **BOOKED))

    assert refusal.value.code == "compensated"
    assert mails() == []
