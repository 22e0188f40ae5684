"""Steps that run only sometimes: conditions on the order and on what earlier steps found out.

    python examples/conditional_steps.py

Small orders of customers who are known go straight to the shelf. Where a score says that something may be wrong, a
person looks at the order first; and only what is a gift is wrapped. The conditions are data in the contract: the
saga-log decides by them, they are drawn with the saga, and what was skipped is in the outcome.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from choreo import CompensationContext, Context, Reject, Saga, SagaFailed, Service, Step, when
from choreo.testing import Runner

ORDER = Saga(
    "order",
    Step("score"),
    Step("review", when=(when.effect("score", "risk") >= 0.5) | (when.input("amount") > 1_000)),
    Step("reserve", compensation="release"),
    Step("wrap", compensation="unwrap", when=when.input("gift")),
    Step("ship"),
)

shop = Service("shop")


@shop.step(ORDER, "score")
async def score(order: dict[str, Any]) -> dict[str, float]:
    return {"risk": 0.1 if order["customer"] == "ada" else 0.7}


@shop.step(ORDER, "review")
async def review(order: dict[str, Any]) -> str:
    if order["customer"] == "mallory":
        raise Reject("we know that one", code="refused")
    return "looks fine"


@shop.step(ORDER, "reserve")
async def reserve(order: dict[str, Any]) -> str:
    return str(order["item"])


@shop.compensation(ORDER, "reserve")
async def release(ctx: CompensationContext) -> None:
    print(f"    {ctx.effect} is back on the shelf")


@shop.step(ORDER, "wrap")
async def wrap() -> str:
    return "red paper"


@shop.compensation(ORDER, "wrap")
async def unwrap(ctx: CompensationContext) -> None:
    print(f"    {ctx.effect} thrown away")


@shop.step(ORDER, "ship")
async def ship(order: dict[str, Any], ctx: Context) -> str:
    if order["item"] == "piano":
        raise Reject("too heavy", code="too_heavy")
    paper = ctx.effects.get("wrap", "no paper")  # of what was skipped there is no effect
    return f"{order['item']} in {paper}"


async def main() -> None:
    print(ORDER)
    async with Runner(shop) as runner:

        async def order(customer: str, item: str, amount: int, *, gift: bool = False) -> None:
            print(f"{customer} orders a {item}{' as a gift' if gift else ''} for {amount}:")
            try:
                outcome = await runner.run(ORDER, {"customer": customer, "item": item, "amount": amount, "gift": gift})
                print(f"    shipped, without {', '.join(outcome.skipped) or 'leaving out anything'}")
            except SagaFailed as error:
                print(f"    not shipped: {error.step} {error.code}")

        await order("ada", "kite", 30)
        await order("ada", "yacht", 30_000, gift=True)
        await order("bob", "kite", 30, gift=True)
        await order("mallory", "kite", 30)
        await order("ada", "piano", 900)


if __name__ == "__main__":
    logging.disable()  # what the runtimes say of each failure is not what is to be seen here
    asyncio.run(main())
