"""A saga-log with its HTTP port, a step service and a broker in one process: sagas complete, wait, fail, get stuck.

The saga's input says what happens: ``{"wait": …}`` holds a step until ``world.go_on`` is set, ``{"fail": "text"}``
makes the last step reject, ``{"stick": "text"}`` makes a compensation fail as long as ``world.broken`` is true.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from choreo import CompensationContext, Reject, Saga, Service, Step
from choreo.broker import open_broker
from choreo.broker.port import Broker
from choreo.broker.registry import ensure_saga_topics
from choreo.client import Client
from choreo.clock import SystemClock
from choreo.errors import SagaNotFound
from choreo.observe.affairs import Affairs
from choreo.observe.metrics import Metrics
from choreo.saga_log import SagaLog
from choreo.step import StepRuntime
from choreo.store import Store, open_store
from choreo.web.access import Access, Grant
from choreo.web.app import make_app
from choreo.web.bulk import Bulks
from choreo.web.desk import Desk
from choreo.web.server import WebServer

ORDER = Saga(
    "order",
    Step("reserve_stock", compensation="release_stock"),
    Step("charge_card", compensation="refund_card", compensation_retries=0),
    Step("issue_invoice", compensation="void_invoice", after="charge_card"),
    Step("notify_customer", after="charge_card"),
    Step("hand_over", compensation="recall_parcel", after=("issue_invoice", "notify_customer")),
    deadline="1h",
    description="An order from stock to parcel; invoice and mail go out side by side.",
)


_worlds = count()


PARCEL = Saga("parcel", Step("pack", compensation="unpack"), Step("deliver", await_signal="customer_is_in"))


class World:
    """What runs, and what a test does with it."""

    def __init__(self, broker: Broker, store: Store, client: Client, metrics: Metrics) -> None:
        self.broker, self.store, self.client, self.metrics = broker, store, client, metrics
        self.broken = True
        self.go_on = asyncio.Event()

    async def start(self, saga_id: str, **user_input: Any) -> str:
        return await self.client.start(ORDER, user_input, id=saga_id)

    async def until(self, saga_id: str, *phases: str) -> None:
        """Wait until the store has the saga in one of these phases."""
        await until(lambda: self._is_in(saga_id, phases), f"{saga_id} to be {' or '.join(phases)}")

    async def until_busy(self, saga_id: str, step: str) -> None:
        """Wait until the store has the saga at that step."""

        async def there() -> bool:
            state = await self.store.find("order", saga_id)
            return state is not None and state.instance((step, 1)).in_flight

        await until(there, f"{saga_id} to be at {step}")

    async def _is_in(self, saga_id: str, phases: tuple[str, ...]) -> bool:
        state = await self.store.find("order", saga_id)
        if state is None:
            return False
        return state.phase.value in phases and (state.outcome is None or state.finished_ms > 0)

    def service(self) -> Service:  # noqa: C901 -- one small function for each step
        shop = Service("shop")

        @shop.step(ORDER, "reserve_stock")
        async def reserve(order: dict[str, Any]) -> dict[str, Any]:
            return {"item": order.get("item", "kite"), "shelf": 7}

        @shop.step(ORDER, "charge_card")
        async def charge(order: dict[str, Any]) -> dict[str, Any]:
            if "wait" in order:
                await self.go_on.wait()
            return {"charged": order.get("amount", 42)}

        @shop.step(ORDER, "issue_invoice")
        async def invoice() -> dict[str, Any]:
            return {"number": "2026-1"}

        @shop.step(ORDER, "notify_customer")
        async def notify() -> str:
            return "sent"

        @shop.step(ORDER, "hand_over")
        async def hand_over(order: dict[str, Any]) -> str:
            if text := order.get("fail") or order.get("stick"):
                raise Reject(text, code=order.get("code", "depot_closed"))
            return "parcel"

        @shop.compensation(ORDER, "reserve_stock")
        async def release() -> None: ...

        @shop.compensation(ORDER, "charge_card")
        async def refund(ctx: CompensationContext) -> None:
            if self.broken and isinstance(ctx.input, dict) and "stick" in ctx.input:
                raise RuntimeError(f"the gateway says no: {ctx.input['stick']}")

        @shop.compensation(ORDER, "issue_invoice")
        async def void() -> None: ...

        @shop.compensation(ORDER, "hand_over")
        async def recall() -> None: ...

        @shop.step(PARCEL, "pack")
        async def pack() -> None: ...

        @shop.compensation(PARCEL, "pack")
        async def unpack() -> None: ...

        @shop.step(PARCEL, "deliver")
        async def deliver() -> str:
            return "delivered"

        return shop


async def until(condition: Callable[[], Any], what: str, within_s: float = 20.0) -> None:
    """Wait for something that tells nobody."""
    try:
        async with asyncio.timeout(within_s):
            while not await condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {within_s:g} s for {what}") from None


@asynccontextmanager
async def running(store_url: str = "memory://") -> AsyncIterator[World]:
    """A world whose saga-log and service work while the block runs."""
    broker = await open_broker(f"memory://web-{next(_worlds)}")
    store = await open_store(store_url)
    metrics = Metrics(with_process=True)
    try:
        await ensure_saga_topics(broker, [ORDER, PARCEL], partitions=2)
        async with Client(broker, source="test") as client:
            world = World(broker, store, client, metrics)
            saga_log = SagaLog(broker, store, [ORDER, PARCEL], metrics=metrics, poll_timeout_s=0.02)
            steps = StepRuntime([world.service()], broker, metrics=metrics)
            tasks = [asyncio.create_task(runtime.run()) for runtime in (saga_log, steps)]
            world.not_ready_because = saga_log.not_ready_because  # type: ignore[attr-defined]
            try:
                yield world
            finally:
                world.go_on.set()
                await saga_log.stop()
                await steps.stop()
                await asyncio.gather(*tasks)
    finally:
        await store.close()
        await broker.close()


@asynccontextmanager
async def application(world: World, *grants: Grant) -> AsyncIterator[tuple[Any, Desk, Bulks]]:
    """The HTTP application over a world."""
    clock = SystemClock()
    async with Client(world.broker, source="http-api") as client:
        desk = Desk(
            world.broker,
            world.store,
            client,
            ["order", "parcel"],
            metrics=world.metrics,
            clock=clock,
            not_ready_because=lambda: None,
        )
        bulks = Bulks(desk)
        try:
            affairs = Affairs(world.metrics, lambda: None)
            yield make_app(desk, bulks, Access(grants), affairs, clock), desk, bulks
        finally:
            await bulks.close()
            await desk.close()


@asynccontextmanager
async def served(world: World, *grants: Grant, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """The HTTP application on a port of this machine; gives its URL."""
    async with (
        application(world, *grants) as (app, desk, bulks),
        WebServer(app, desk, bulks, host=host, port=0) as server,
    ):
        yield f"http://127.0.0.1:{server.port}"


async def found(world: World, saga_id: str) -> bool:
    """Whether the log has the saga."""
    try:
        await world.client.status(ORDER, saga_id)
    except SagaNotFound:
        return False
    return True
