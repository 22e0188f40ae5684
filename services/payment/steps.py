"""The steps ``charge_card`` and ``issue_invoice``, and their ways back."""

from __future__ import annotations

from sqlalchemy import Connection

from choreo.step import CompensationContext, Context, Reject, Service
from services.order import ORDER, Charge, Invoice, OrderInput
from services.payment import gateway
from services.payment.database import charges, enter, inbox, invoices, reverse

service = Service("payment", inbox=inbox)


@service.step(ORDER, "charge_card")
def charge_card(order: OrderInput, ctx: Context, connection: Connection) -> Charge:
    """Take the money. A declined card is final; a gateway that does not answer is tried again by the step's policy.

    The gateway only authorises, which lapses by itself; what counts is the entry in the ledger.
    """
    try:
        gateway.authorise(order.card, attempt=ctx.attempt, failures=order.trouble.gateway_failures)
    except gateway.CardDeclined as error:
        raise Reject(str(error), code="card_declined") from error
    number = enter(connection, charges, ctx.saga_id, ctx.idempotency_key, order.amount_cents)
    return Charge(charge=f"C-{number:06}", amount_cents=order.amount_cents)


@service.compensation(ORDER, "charge_card")
def refund_card(ctx: CompensationContext, connection: Connection) -> None:
    """Give the money back."""
    reverse(connection, charges, ctx.step_key)


@service.step(ORDER, "issue_invoice")
def issue_invoice(ctx: Context, connection: Connection) -> Invoice:
    """Write the invoice for what was charged."""
    charge = ctx.effect("charge_card", Charge)
    number = enter(connection, invoices, ctx.saga_id, ctx.idempotency_key, charge.amount_cents)
    return Invoice(number=f"INV-{number:06}", amount_cents=charge.amount_cents)


@service.compensation(ORDER, "issue_invoice")
def void_invoice(ctx: CompensationContext, connection: Connection) -> None:
    """Void the invoice; its number is not given again."""
    reverse(connection, invoices, ctx.step_key)
