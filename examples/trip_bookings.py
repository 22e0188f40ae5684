"""Parallel steps: flight, hotel and car are booked side by side; if one fails, the others settle and are undone.

    python examples/trip_bookings.py

A branch that is under way is not cut off when another one fails: nobody would know whether it has booked. It settles,
and then what it did is undone. The itinerary waits for all three; in a failing saga it is never sent.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from choreo import CompensationContext, Context, NothingToUndo, Reject, Saga, SagaFailed, Service, Step
from choreo.testing import Runner

TRIP = Saga(
    "trip",
    Step("book_flight", compensation="cancel_flight", after=()),
    Step("book_hotel", compensation="cancel_hotel", after=()),
    Step("book_car", compensation="cancel_car", after=()),
    Step("send_itinerary", after=("book_flight", "book_hotel", "book_car")),
    deadline="10m",
)

airline, hotel, cars, agency = Service("airline"), Service("hotel"), Service("cars"), Service("agency")
bookings: dict[str, str] = {}  # what stands, by idempotency key: each of these is a table of its service, really
began = 0.0


def say(what: str) -> None:
    print(f"  {asyncio.get_running_loop().time() - began:4.1f} s  {what}")


async def book(ctx: Context, what: str, *, takes_s: float) -> str:
    await asyncio.sleep(takes_s)
    bookings[ctx.idempotency_key] = what
    say(f"booked {what}")
    return what


async def cancel(ctx: CompensationContext) -> NothingToUndo | None:
    what = bookings.pop(ctx.step_key, None)
    if what is None:
        return NothingToUndo()
    say(f"cancelled {what}")
    return None


@airline.step(TRIP, "book_flight")
async def book_flight(trip: dict[str, Any], ctx: Context) -> str:
    return await book(ctx, f"a flight to {trip['to']}", takes_s=3)


@hotel.step(TRIP, "book_hotel")
async def book_hotel(trip: dict[str, Any], ctx: Context) -> str:
    if trip["to"] == "Atlantis":
        await asyncio.sleep(1)
        say("there is no hotel in Atlantis; flight and car are still under way")
        raise Reject("there is no hotel in Atlantis", code="no_hotel")
    return await book(ctx, f"a room in {trip['to']}", takes_s=1)


@cars.step(TRIP, "book_car")
async def book_car(trip: dict[str, Any], ctx: Context) -> str:
    return await book(ctx, f"a car in {trip['to']}", takes_s=2)


airline.compensation(TRIP, "book_flight")(cancel)
hotel.compensation(TRIP, "book_hotel")(cancel)
cars.compensation(TRIP, "book_car")(cancel)


@agency.step(TRIP, "send_itinerary")
async def send_itinerary(trip: dict[str, Any], ctx: Context) -> str:
    say(f"sent the itinerary: {', '.join(ctx.effects.values())}")
    return f"mail to {trip['traveller']}"


async def main() -> None:
    global began  # noqa: PLW0603
    print(TRIP)
    async with Runner(airline, hotel, cars, agency) as runner:
        for place in ("Rome", "Atlantis"):
            print(f"To {place}:")
            began = asyncio.get_running_loop().time()
            try:
                await runner.run(TRIP, {"to": place, "traveller": "ada@example.org"})
                say("completed, as long as the slowest of the three")
            except SagaFailed as error:
                say(f"compensated, because of {error.step}: {error.kind}, {error.code}")
            print(f"  standing: {', '.join(bookings.values()) or 'nothing'}")
            bookings.clear()


if __name__ == "__main__":
    logging.disable()  # what the runtimes say of each failure is not what is to be seen here
    asyncio.run(main())
