"""Forward again: a compensation sends its saga into another round, later and later, and not for ever.

    python examples/retry_with_backoff.py

There are two kinds of trying again, with separate counters. ``retries=`` of a step are further attempts of its
handler, within one round, before the step counts as failed. What is shown here comes after that: the step has failed,
its compensation has cleaned up, and answers ``Retry``. The saga then goes forward again from this step as the next
round. The steps before it keep their effects.

The wait is ``min(max_backoff, (2 * base_backoff) ** round)`` milliseconds; with jitter a draw below that. It is the
saga-log's timer, not a sleeping process: it survives restarts of everything.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from choreo import CompensationContext, Context, Retries, Retry, Saga, SagaFailed, Service, Step
from choreo.messages.records import RoundStarted, StepCompensated
from choreo.testing import Runner

BOOKING = Saga(
    "booking",
    Step("hold_seat", compensation="release_seat"),
    Step("take_payment", compensation="void_payment", retries=Retries(1, backoff_ms_base=5)),
)

seats, payments = Service("seats"), Service("payments")


@seats.step(BOOKING, "hold_seat")
async def hold_seat(booking: dict[str, Any]) -> str:
    print(f"  hold_seat     {booking['seat']}")
    return str(booking["seat"])


@seats.compensation(BOOKING, "hold_seat")
async def release_seat(ctx: CompensationContext) -> None:
    print(f"  release_seat  {ctx.effect}")


@payments.step(BOOKING, "take_payment")
async def take_payment(booking: dict[str, Any], ctx: Context) -> str:
    if ctx.round < booking["works_in_round"]:
        print(f"  take_payment  round {ctx.round}, attempt {ctx.attempt}: the bank does not answer")
        raise ConnectionError("the bank does not answer")
    print(f"  take_payment  round {ctx.round}, attempt {ctx.attempt}: paid")
    return f"payment {ctx.idempotency_key}"


@payments.compensation(BOOKING, "take_payment")
async def void_payment(ctx: CompensationContext) -> Retry:
    # Nobody knows whether a payment went through before the line broke. Void it first, by the key that it was made
    # with, then ask to go forward again.
    print(f"  void_payment  round {ctx.round}")
    return Retry(limit=4, base_backoff=5, max_backoff=500, jitter=True)


async def main() -> None:
    async with Runner(seats, payments, seed=7) as runner:

        async def book(saga_id: str, seat: str, works_in_round: int) -> None:
            try:
                await runner.run(BOOKING, {"seat": seat, "works_in_round": works_in_round}, id=saga_id)
                print("  completed")
            except SagaFailed as error:
                print(f"  compensated: {error.step} {error.kind}")
            print("  The log says of it:")
            for record in runner.history(saga_id):
                if isinstance(record, StepCompensated) and record.verdict == "retry":
                    longest = min(500, (2 * 5) ** record.round)
                    honoured = "" if record.retry_limit > record.round else ", not honoured"
                    print(f"    round {record.round}: retry in {record.backoff_ms} ms (0 to {longest - 1}){honoured}")
                if isinstance(record, RoundStarted):
                    print(f"    round {record.round} begins")

        print("The bank is back in the third round:")
        await book("booking-1", "12A", works_in_round=3)

        print("The bank does not come back; Retry(limit=4) means four rounds in all:")
        await book("booking-2", "12B", works_in_round=99)


if __name__ == "__main__":
    logging.disable()  # what the runtimes say of each failure is not what is to be seen here
    asyncio.run(main())
