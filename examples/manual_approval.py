"""A saga that waits for a person: a large order is shipped only when somebody has approved it, and not for ever.

    python examples/manual_approval.py

The step names the signal that it waits for. Nobody holds a thread, a timer or a row for it: the wait is in the log, so
it survives restarts, and so does its end. In a deployment the approval comes from a program (`client.signal(…)`) or
from a shell: `choreo signal order ID approved --payload '{"limit": 500}' --why "called the customer"`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from choreo import CompensationContext, Context, Reject, Saga, SagaFailed, Service, Step
from choreo.testing import Runner

ORDER = Saga(
    "order",
    Step("reserve", compensation="release"),
    Step("ship", await_signal="approved", signal_timeout="8h"),
    deadline="2d",
)
HOUR_S = 3_600


class Approval(msgspec.Struct):
    by: str
    limit: int


warehouse = Service("warehouse")
began = 0.0


def say(what: str) -> None:
    print(f"  {(asyncio.get_running_loop().time() - began) / HOUR_S:4.1f} h  {what}")


@warehouse.step(ORDER, "reserve")
async def reserve(order: dict[str, Any], ctx: Context) -> str:
    say(f"reserved {order['item']}")
    return ctx.idempotency_key


@warehouse.compensation(ORDER, "reserve")
async def release(_: CompensationContext) -> None:
    say("released it")


@warehouse.step(ORDER, "ship")
async def ship(order: dict[str, Any], ctx: Context) -> str:
    approval = ctx.signal("approved", Approval)  # typed; ctx.signals["approved"] is the same as plain values
    if order["amount"] > approval.limit:
        raise Reject(f"{approval.by} has approved {approval.limit} only", code="over_limit")
    say(f"shipped, approved by {approval.by}")
    return "parcel 7"


async def order(runner: Runner, title: str, amount: int, *, approval: Approval | None) -> None:
    global began  # noqa: PLW0603
    print(title)
    began = asyncio.get_running_loop().time()
    saga_id = await runner.start(ORDER, {"item": "a piano", "amount": amount})
    await asyncio.sleep(3 * HOUR_S)  # virtual time: it passes at once
    waiting = (await runner.status(ORDER, saga_id)).steps[1]
    say(f"ship is {waiting.phase} for {waiting.signal}")
    if approval is not None:
        await runner.signal(ORDER, saga_id, "approved", approval, sent_by=approval.by)
    try:
        await runner.wait(ORDER, saga_id)
        say("completed")
    except SagaFailed as error:
        say(f"compensated: {error.step} {error.kind}, {error.code}")


async def main() -> None:
    print(ORDER)
    async with Runner(warehouse) as runner:
        await order(runner, "Approved after three hours:", 9_000, approval=Approval("ada", 10_000))
        await order(runner, "Approved, but not for so much:", 9_000, approval=Approval("bob", 500))
        await order(runner, "Nobody looks at it:", 9_000, approval=None)


if __name__ == "__main__":
    logging.disable()  # what the runtimes say of each failure is not what is to be seen here
    asyncio.run(main())
