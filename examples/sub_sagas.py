"""A step that is a saga of its own: an order for a package holiday books a trip, and undoes it with itself.

    python examples/sub_sagas.py

The trip is another team's saga, with its own contract and services. The order starts it, waits for it, and, when a
later step of the order fails, has it undone before what came before it. No service runs the step ``trip``: the saga-log
sees to it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from choreo import CompensationContext, Context, Reject, Saga, SagaFailed, Service, Step, when
from choreo.testing import Runner

TRIP = Saga(
    "trip",
    Step("book_hotel", compensation="cancel_hotel"),
    Step("book_flight", compensation="cancel_flight"),
    deadline="2h",
)
ORDER = Saga(
    "order",
    Step("take_payment", compensation="give_back"),
    Step("trip", saga=TRIP, input={"city": when.input("city"), "paid": when.effect("take_payment", "cents")}),
    Step("send_vouchers"),
)

shop, travel = Service("shop"), Service("travel")  # two teams


@shop.step(ORDER, "take_payment")
async def take_payment(order: dict[str, Any]) -> dict[str, int]:
    return {"cents": order["cents"]}


@shop.compensation(ORDER, "take_payment")
async def give_back(ctx: CompensationContext) -> None:
    print(f"    gave back {ctx.effect['cents']} cents")


@shop.step(ORDER, "send_vouchers")
async def send_vouchers(order: dict[str, Any], ctx: Context) -> str:
    if order["address"] is None:
        raise Reject("where to?", code="no_address")
    return f"vouchers for {ctx.effects['trip']}"


@travel.step(TRIP, "book_hotel")
async def book_hotel(trip: dict[str, Any]) -> str:
    print(f"    booked a hotel in {trip['city']}")
    return f"hotel in {trip['city']}"


@travel.compensation(TRIP, "book_hotel")
async def cancel_hotel(ctx: CompensationContext) -> None:
    print(f"    cancelled the {ctx.effect}")


@travel.step(TRIP, "book_flight")
async def book_flight(trip: dict[str, Any]) -> str:
    if trip["city"] == "Atlantis":
        raise Reject("nobody flies there", code="no_flight")
    print(f"    booked a flight to {trip['city']}")
    return f"two weeks in {trip['city']}"


@travel.compensation(TRIP, "book_flight")
async def cancel_flight(ctx: CompensationContext) -> None:
    print(f"    cancelled the flight to {ctx.input['city']}")


async def main() -> None:
    async with Runner(shop, travel) as runner:

        async def order(city: str, address: str | None) -> None:
            print(f"To {city}{'' if address else ', without an address'}:")
            try:
                outcome = await runner.run(ORDER, {"city": city, "cents": 90_000, "address": address}, id=city.lower())
                print(f"    completed: {bytes(outcome.result).decode()}")
            except SagaFailed as error:
                print(f"    compensated, because of {error.step}: {error.code}")
            trip = await runner.status(TRIP, f"order/{city.lower()}/trip/1")
            print(f"    the trip is {trip.phase}")

        await order("Rome", "Main Street 1")
        await order("Atlantis", "Main Street 1")
        await order("Oslo", None)


if __name__ == "__main__":
    logging.disable()  # what the runtimes say of each failure is not what is to be seen here
    asyncio.run(main())
