"""A circuit breaker: when a third party is down, a saga goes on with the last good answer instead of failing.

    python examples/circuit_breaker.py

The step asks a provider for an exchange rate. When that fails, the saga-log asks the step's own compensation what to
do, and that answers ``Continue`` with the rate it remembers: the saga goes on as if the step had returned it. After
three failures in a row the breaker opens, and for 30 seconds the provider is left alone: the step refuses at once.

``Continue`` counts only as the answer of the failing step's *own* compensation, after a kind of failure that
``recover_from`` names: a crash, when the provider gives no answer, and a refusal, when the breaker is open.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from choreo import CompensationContext, Context, Continue, NothingToUndo, Reject, Saga, SagaFailed, Service, Step
from choreo.testing import Runner

INVOICE = Saga(
    "invoice",
    Step("fetch_rate", compensation="use_last_rate", recover_from=("rejected", "crashed")),
    Step("write_invoice"),
)


class Provider:
    """Somebody else's service."""

    is_up = True
    rate = 1.09

    async def ask(self) -> float:
        await asyncio.sleep(0.2)
        if not self.is_up:
            raise ConnectionError("no answer")
        return self.rate


class Breaker:
    """Closed: calls go through. Open: they do not, for a while. Then one trial decides.

    One for each process, which is usually what is wanted: each finds out for itself, and none has to ask anybody.
    """

    def __init__(self, *, failures_max: int, open_s: float) -> None:
        self.failures_max = failures_max
        self.open_s = open_s
        self.failures = 0
        self.closed_again_at = 0.0

    def is_open(self) -> bool:
        return asyncio.get_running_loop().time() < self.closed_again_at

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self) -> None:
        self.failures += 1
        if self.failures >= self.failures_max:
            self.closed_again_at = asyncio.get_running_loop().time() + self.open_s
            print(f"    {self.failures} failures in a row: the breaker opens for {self.open_s:g} s")


provider = Provider()
breaker = Breaker(failures_max=3, open_s=30)
last_rate: float | None = None

rates, invoices = Service("rates"), Service("invoices")


@rates.step(INVOICE, "fetch_rate")
async def fetch_rate() -> dict[str, object]:
    global last_rate  # noqa: PLW0603 -- the cache of this process
    if breaker.is_open():
        print("    breaker open: the provider is not asked")
        raise Reject("the breaker is open", code="circuit_open")
    try:
        last_rate = await provider.ask()
    except ConnectionError:
        print("    asked the provider: no answer")
        breaker.failed()
        raise
    print("    asked the provider")
    breaker.succeeded()
    return {"rate": last_rate, "source": "provider"}


@rates.compensation(INVOICE, "fetch_rate")
async def use_last_rate(ctx: CompensationContext) -> Continue | NothingToUndo:
    # It is also called when a later step fails and this one is undone as any other; then there is nothing to replace.
    if ctx.may_continue and last_rate is not None:
        return Continue({"rate": last_rate, "source": "cache"})
    return NothingToUndo()


@invoices.step(INVOICE, "write_invoice")
async def write_invoice(order: dict[str, float], ctx: Context) -> str:
    fetched = ctx.effects["fetch_rate"]
    return f"{order['euros'] * fetched['rate']:.2f} dollars, rate {fetched['rate']} from the {fetched['source']}"


async def main() -> None:
    async with Runner(rates, invoices) as runner:

        async def invoice() -> None:
            try:
                outcome = await runner.run(INVOICE, {"euros": 100})
                print(f"  invoice: {msgspec.json.decode(outcome.result)}")
            except SagaFailed as error:
                print(f"  no invoice: {error.step} {error.kind}")

        print("The provider is down, and there is no rate to fall back on yet:")
        provider.is_up = False
        await invoice()

        print("It is up:")
        provider.is_up = True
        await invoice()

        print("It is down:")
        provider.is_up = False
        for _ in range(5):
            await invoice()

        print("31 s later it is up again, with another rate:")
        provider.is_up, provider.rate = True, 1.11
        await asyncio.sleep(31)  # virtual time: it passes at once
        await invoice()


if __name__ == "__main__":
    logging.disable()  # what the runtimes say of each failure is not what is to be seen here
    asyncio.run(main())
