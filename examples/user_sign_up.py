"""A sign-up over third parties: a billing provider, a mail provider that is not always there, a mail that stays sent.

    python examples/user_sign_up.py

Three habits to take away:

- Whatever calls somebody else passes the idempotency key on. It is the same in every attempt, so a call whose answer
  was lost is recognised by the provider, and nobody gets two profiles or two mails.
- What is temporary is raised and tried again (``retries=``); what is final is a ``Reject`` and is not.
- What cannot be undone comes last. The welcome mail has no compensation, and nothing comes after it that could fail.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from choreo import CompensationContext, Context, NothingToUndo, Reject, Retries, Saga, SagaFailed, Service, Step
from choreo.testing import Runner

SIGN_UP = Saga(
    "sign_up",
    Step("create_account", compensation="delete_account"),
    Step("open_billing_profile", compensation="close_billing_profile", retries=2),
    Step("send_welcome_mail", timeout="5s", retries=Retries(4, backoff_ms_base=200, backoff_ms_max=2_000)),
    deadline="1h",
)


class Billing:
    """The billing provider. It keeps the keys that it has seen, as such providers do."""

    def __init__(self) -> None:
        self.profiles: dict[str, str] = {}

    async def open(self, key: str, card: str) -> str:
        await asyncio.sleep(0.1)
        if card == "expired":
            raise ValueError("the card has expired")
        return self.profiles.setdefault(key, f"profile-{len(self.profiles) + 1}")

    async def close(self, key: str) -> bool:
        await asyncio.sleep(0.1)
        return self.profiles.pop(key, None) is not None


class Mail:
    """The mail provider. ``troubles`` says what happens to the next calls."""

    def __init__(self) -> None:
        self.sent: dict[str, str] = {}
        self.troubles: list[str] = []

    async def send(self, key: str, to: str) -> None:
        trouble = self.troubles.pop(0) if self.troubles else ""
        if trouble == "away":
            raise ConnectionError("the mail provider is away")
        self.sent.setdefault(key, to)
        if trouble == "answer lost":  # the mail is out, but we never hear of it
            await asyncio.sleep(60)


billing_provider, mail_provider = Billing(), Mail()
accounts: dict[str, str] = {}  # by idempotency key: a table with a unique key, really

identity, billing, mail = Service("identity"), Service("billing"), Service("mail")


@identity.step(SIGN_UP, "create_account")
async def create_account(user: dict[str, Any], ctx: Context) -> str:
    accounts[ctx.idempotency_key] = user["email"]
    print(f"  account of {user['email']} created")
    return str(user["email"])


@identity.compensation(SIGN_UP, "create_account")
async def delete_account(ctx: CompensationContext) -> NothingToUndo | None:
    email = accounts.pop(ctx.step_key, None)
    if email is None:
        return NothingToUndo()
    print(f"  account of {email} deleted")
    return None


@billing.step(SIGN_UP, "open_billing_profile")
async def open_billing_profile(user: dict[str, Any], ctx: Context) -> str:
    try:
        profile = await billing_provider.open(ctx.idempotency_key, user["card"])
    except ValueError as error:
        print(f"  billing refuses: {error}")
        raise Reject(str(error), code="card_refused") from error
    print(f"  {profile} opened")
    return profile


@billing.compensation(SIGN_UP, "open_billing_profile")
async def close_billing_profile(ctx: CompensationContext) -> NothingToUndo | None:
    # By the key, not by the effect: after a crash nobody has told us the profile's name.
    if not await billing_provider.close(ctx.step_key):
        return NothingToUndo()
    print(f"  {ctx.effect} closed")
    return None


@mail.step(SIGN_UP, "send_welcome_mail")
async def send_welcome_mail(user: dict[str, Any], ctx: Context) -> str:
    print(f"  welcome mail, attempt {ctx.attempt}")
    await mail_provider.send(ctx.idempotency_key, user["email"])
    return "sent"


async def main() -> None:
    async with Runner(identity, billing, mail) as runner:

        async def sign_up(email: str, *, card: str = "good", troubles: tuple[str, ...] = ()) -> None:
            mail_provider.troubles[:] = troubles
            try:
                await runner.run(SIGN_UP, {"email": email, "card": card})
                print("  completed")
            except SagaFailed as error:
                print(f"  compensated, because of {error.step}: {error.kind} {error.code}".rstrip())
            mails = list(mail_provider.sent.values()).count(email)
            is_customer = email in accounts.values()
            print(f"  {email}: {'has' if is_customer else 'no'} account, {mails} mail{'' if mails == 1 else 's'}")

        print("The mail provider is away twice, then loses an answer:")
        await sign_up("ada@example.org", troubles=("away", "away", "answer lost"))

        print("The card has expired:")
        await sign_up("bob@example.org", card="expired")

        print("The mail provider is away for good:")
        await sign_up("cyd@example.org", troubles=("away",) * 5)


if __name__ == "__main__":
    logging.disable()  # what the runtimes say of each failure is not what is to be seen here
    asyncio.run(main())
