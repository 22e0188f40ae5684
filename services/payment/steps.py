"""The steps ``charge_card`` and ``issue_invoice``, and their ways back."""

from __future__ import annotations

import os
import threading
from functools import cache

from choreo.step import CompensationContext, Context, NothingToUndo, Reject, Service
from services.order import ORDER, Charge, Invoice, OrderInput
from services.payment import gateway
from services.payment.database import Compensated, Ledger

service = Service("payment")


_open = cache(Ledger)
_opening = threading.Lock()


def ledger() -> Ledger:
    """The database, opened when the first order needs it: importing a service touches nothing."""
    with _opening:  # handlers run in several threads
        return _open(os.environ.get("PAYMENT_DATABASE", ".choreo/payment.db"))


@service.step(ORDER, "charge_card")
def charge_card(order: OrderInput, ctx: Context) -> Charge:
    """Take the money. A declined card is final; a gateway that does not answer is tried again by the step's policy."""
    try:
        gateway.authorise(order.card, attempt=ctx.attempt, failures=order.trouble.gateway_failures)
        number = ledger().enter("charges", ctx.idempotency_key, ctx.saga_id, order.amount_cents)
    except gateway.CardDeclined as error:
        raise Reject(str(error), code="card_declined") from error
    except Compensated as error:
        raise Reject(str(error), code="compensated") from error
    return Charge(charge=f"C-{number:06}", amount_cents=order.amount_cents)


@service.compensation(ORDER, "charge_card")
def refund_card(ctx: CompensationContext) -> NothingToUndo | None:
    """Give the money back."""
    return None if ledger().reverse("charges", ctx.step_key, ctx.saga_id) else NothingToUndo()


@service.step(ORDER, "issue_invoice")
def issue_invoice(ctx: Context) -> Invoice:
    """Write the invoice for what was charged."""
    charge = ctx.effect("charge_card", Charge)
    try:
        number = ledger().enter("invoices", ctx.idempotency_key, ctx.saga_id, charge.amount_cents)
    except Compensated as error:
        raise Reject(str(error), code="compensated") from error
    return Invoice(number=f"INV-{number:06}", amount_cents=charge.amount_cents)


@service.compensation(ORDER, "issue_invoice")
def void_invoice(ctx: CompensationContext) -> NothingToUndo | None:
    """Void the invoice; its number is not given again."""
    return None if ledger().reverse("invoices", ctx.step_key, ctx.saga_id) else NothingToUndo()
