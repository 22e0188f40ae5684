"""What happens to an order, what each step returns, and what a person can make go wrong.

Try an order with ``choreo start services.order:ORDER --wait '{…}'``:

    {}                                    all goes well
    {"item": "unobtainium"}               out of stock: refused by the first step, nothing to undo
    {"card": "tok_declined"}              the card is declined: the stock is released
    {"trouble": {"gateway_failures": 2}}  the card gateway fails twice, then works
    {"trouble": {"carrier_seconds": 1}}   a slow carrier
    {"trouble": {"carrier_seconds": 60}}  a carrier past the step's timeout: nobody knows whether it booked
    {"trouble": {"depot_closed": true}}   the last step fails: everything is undone in reverse
"""

from __future__ import annotations

import msgspec

from choreo.contract import Retries, Saga, Step

ORDER = Saga(
    "order",
    Step("reserve_stock", compensation="release_stock"),
    Step("charge_card", compensation="refund_card", retries=Retries(4, backoff_ms_base=100, backoff_ms_max=2_000)),
    Step("book_carrier", compensation="cancel_carrier", timeout="5s"),
    Step("issue_invoice", compensation="void_invoice", after="book_carrier"),
    # A mail that is out cannot be called back. Undoing means to make up for it: send another.
    Step("notify_customer", compensation="send_apology", after="book_carrier"),
    Step(
        "hand_over",
        compensation="recall_parcel",
        after=("issue_invoice", "notify_customer"),
        retries=Retries(2, backoff_ms_base=100, backoff_ms_max=500),
    ),
    deadline="1h",
    description="An order from stock to parcel; invoice and mail go out side by side.",
)


class Trouble(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the outside world does wrong, for this order.

    Attributes:
        gateway_failures: so many attempts to reach the card gateway fail before one works.
        carrier_seconds: how long the carrier takes to confirm; the step's timeout is 5 s.
        depot_closed: the parcel cannot be handed over.
    """

    gateway_failures: int = 0
    carrier_seconds: float = 0.0
    depot_closed: bool = False


class OrderInput(msgspec.Struct, frozen=True, kw_only=True):
    """An order. All fields have defaults, so that one can be tried with few words.

    Attributes:
        item: what is ordered; ``unobtainium`` is never in stock.
        amount_cents: what it costs in all.
        card: ``tok_declined`` is one that the gateway declines.
        email: where the notice goes.
    """

    item: str = "teapot"
    quantity: int = 1
    amount_cents: int = 4_200
    card: str = "tok_visa"
    email: str = "ada@example.org"
    trouble: Trouble = Trouble()


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """Effect of ``reserve_stock``."""

    reservation: str
    item: str
    quantity: int


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """Effect of ``charge_card``."""

    charge: str
    amount_cents: int


class Booking(msgspec.Struct, frozen=True, kw_only=True):
    """Effect of ``book_carrier``."""

    booking: str


class Invoice(msgspec.Struct, frozen=True, kw_only=True):
    """Effect of ``issue_invoice``."""

    number: str
    amount_cents: int


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """Effect of ``notify_customer``."""

    mail: str


class HandOver(msgspec.Struct, frozen=True, kw_only=True):
    """Effect of ``hand_over``."""

    parcel: str
    booking: str
    invoice: str
