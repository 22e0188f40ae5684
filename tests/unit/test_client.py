"""The client over a log in memory, with the real runtimes beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from choreo import (
    BlockingClient,
    Client,
    CompensationContext,
    Context,
    Reject,
    Retries,
    Saga,
    SagaFailed,
    Service,
    Step,
)
from choreo.broker import Broker, open_broker
from choreo.broker.registry import ensure_saga_topics
from choreo.client.client import Act
from choreo.core.state import Phase
from choreo.errors import (
    ConfigurationError,
    DefinitionError,
    NotStuck,
    SagaNotFound,
    StartRefused,
    Unencodable,
    WaitTimeout,
)
from choreo.messages.headers import MSGPACK
from choreo.saga_log import SagaLog
from choreo.step import StepRuntime
from choreo.store import open_store
from choreo.testing import Runner

TRIP = Saga(
    "trip",
    Step("book_flight", compensation="cancel_flight", compensation_retries=Retries(limit=4, backoff_ms_base=1)),
    Step("book_hotel"),
    deadline="1h",
)


@dataclass
class Trip:
    """A system that runs the trip saga.

    ``gate`` holds the second step until it is set; the compensation of the first fails ``refusals`` times.
    """

    broker: Broker
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled_flights: list[Any] = field(default_factory=list)
    refusals: int = 0


def travel(trip: Trip) -> Service:
    service = Service("travel")

    @service.step(TRIP, "book_flight")
    async def book_flight(wish: dict[str, Any], ctx: Context) -> dict[str, Any]:
        return {"seat": "12A", "to": wish["to"], "trace": ctx.traceparent or ""}

    @service.compensation(TRIP, "book_flight")
    async def cancel_flight(ctx: CompensationContext) -> None:
        if trip.refusals:
            trip.refusals -= 1
            raise ConnectionError("the airline does not answer")
        trip.cancelled_flights.append(ctx.effect)

    @service.step(TRIP, "book_hotel")
    async def book_hotel(wish: dict[str, Any]) -> str:
        await trip.gate.wait()
        if wish["to"] == "Atlantis":
            raise Reject("there is no hotel", code="no_hotel")
        return "room 7"

    return service


@asynccontextmanager
async def running(name: str) -> AsyncIterator[Trip]:
    broker = await open_broker(f"memory://{name}")
    system = Trip(broker)
    system.gate.set()
    await ensure_saga_topics(broker, [TRIP], partitions=2)
    steps = StepRuntime(travel(system), broker)
    saga_log = SagaLog(broker, await open_store("memory://"), [TRIP])
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(steps.run())
        tasks.create_task(saga_log.run())
        try:
            yield system
        finally:
            system.gate.set()
            await steps.stop()
            await saga_log.stop()
    await broker.close()


@pytest.fixture
async def trip(request: pytest.FixtureRequest) -> AsyncIterator[Trip]:
    async with running(request.node.originalname) as system:
        yield system


async def test_run_returns_the_effects_and_the_result(trip: Trip) -> None:
    async with Client(trip.broker) as client:
        outcome = await client.run(TRIP, {"to": "Rome"}, timeout_s=20)
    assert bytes(outcome.result) == b'"room 7"'
    assert list(outcome.effects) == ["book_flight", "book_hotel"]


async def test_run_raises_what_failed_and_what_was_undone(trip: Trip) -> None:
    async with Client(trip.broker) as client:
        with pytest.raises(SagaFailed, match=r"no_hotel.*undone: book_flight") as failed:
            await client.run(TRIP, {"to": "Atlantis"}, timeout_s=20)
    assert (failed.value.step, failed.value.kind, failed.value.code) == ("book_hotel", "rejected", "no_hotel")
    assert trip.cancelled_flights == [{"seat": "12A", "to": "Atlantis", "trace": ""}]


async def test_the_error_claims_no_undoing_that_was_none() -> None:
    errand = Saga("errand", Step("send_mail"), Step("sign"), deadline="1h")
    service = Service("errands")

    @service.step(errand, "send_mail")
    async def send_mail() -> None:
        """Cannot be unsent."""

    @service.step(errand, "sign")
    async def sign() -> None:
        raise Reject("no pen")

    async with Runner(service) as runner:
        with pytest.raises(SagaFailed, match="undone: nothing"):
            await runner.run(errand, {})


async def test_the_same_id_and_input_again_is_the_same_saga(trip: Trip) -> None:
    async with Client(trip.broker) as client:
        first = await client.run(TRIP, {"to": "Rome"}, id="t-1", timeout_s=20)
        again = await client.run(TRIP, {"to": "Rome"}, id="t-1", timeout_s=20)
        status = await client.status(TRIP, "t-1")
    assert bytes(first.result) == bytes(again.result)
    assert status.round == 1
    assert status.phase is Phase.COMPLETED


async def test_the_same_id_with_another_input_is_refused_and_undone(trip: Trip) -> None:
    async with Client(trip.broker) as client:
        await client.run(TRIP, {"to": "Rome"}, id="t-1", timeout_s=20)
        with pytest.raises(StartRefused, match="taken by a saga with another input"):
            await client.run(TRIP, {"to": "Oslo"}, id="t-1", timeout_s=20)
        async with asyncio.timeout(20):
            while not trip.cancelled_flights:
                await asyncio.sleep(0.01)
        status = await client.status(TRIP, "t-1")
    assert [flight["to"] for flight in trip.cancelled_flights] == ["Oslo"]
    assert status.phase is Phase.COMPLETED


async def test_a_wait_that_ends_does_not_end_the_saga(trip: Trip) -> None:
    trip.gate.clear()
    async with Client(trip.broker) as client:
        with pytest.raises(WaitTimeout) as waited:
            await client.run(TRIP, {"to": "Rome"}, timeout_s=0.2)
        status = await client.status(TRIP, waited.value.saga_id)
        assert {step.step: step.phase for step in status.steps} == {"book_flight": "completed", "book_hotel": "running"}
        trip.gate.set()
        outcome = await client.wait(TRIP, waited.value.saga_id, timeout_s=20)
    assert outcome.saga_id == waited.value.saga_id


async def test_wait_answers_for_a_saga_that_has_ended_long_ago(trip: Trip) -> None:
    async with Client(trip.broker) as client:
        with pytest.raises(SagaFailed):
            await client.run(TRIP, {"to": "Atlantis"}, id="t-1", timeout_s=20)
    async with Client(trip.broker) as later:
        with pytest.raises(SagaFailed, match="no_hotel"):
            await later.wait(TRIP, "t-1", timeout_s=20)


async def test_a_cancelled_saga_is_undone(trip: Trip) -> None:
    trip.gate.clear()
    async with Client(trip.broker) as client:
        saga_id = await client.start(TRIP, {"to": "Rome"})
        async with asyncio.timeout(20):
            while (await client.status(TRIP, saga_id)).steps[0].phase != "completed":
                await asyncio.sleep(0.01)
        await client.cancel(TRIP, saga_id, reason="ill")
        trip.gate.set()  # what is in flight settles before anything is undone
        with pytest.raises(SagaFailed, match="cancelled: ill") as failed:
            await client.wait(TRIP, saga_id, timeout_s=20)
    assert failed.value.step == ""
    assert len(trip.cancelled_flights) == 1


async def test_the_trace_context_is_carried_through(trip: Trip) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with Client(trip.broker) as client:
        outcome = await client.run(TRIP, {"to": "Rome"}, timeout_s=20, traceparent=parent)
    assert b"0af7651916cd43dd8448eb211c80319c" in bytes(outcome.effects["book_flight"])


async def test_a_saga_in_messagepack_reads_the_same(trip: Trip) -> None:
    async with Client(trip.broker, content_type=MSGPACK) as client:
        outcome = await client.run(TRIP, {"to": "Rome"}, id="t-1", timeout_s=20)
        status = await client.status(TRIP, "t-1")
    assert bytes(outcome.result) == b"\xa6room 7"
    assert status.steps[1].effect == "room 7"


async def test_many_runs_side_by_side_each_get_their_own_outcome(trip: Trip) -> None:
    async with Client(trip.broker) as client:
        outcomes = await asyncio.gather(*(client.run(TRIP, {"to": f"city {n}"}, id=f"t-{n}") for n in range(100)))
    assert [outcome.saga_id for outcome in outcomes] == [f"t-{n}" for n in range(100)]


@pytest.mark.parametrize("act", ["retry", "skip", "resolve"])
async def test_an_operator_frees_a_stuck_saga(act: Act, trip: Trip) -> None:
    trip.refusals = 5  # one more than the compensation is tried again
    async with Client(trip.broker) as client:
        await client.start(TRIP, {"to": "Atlantis"}, id="t-1")
        async with asyncio.timeout(20):
            while (await client.status(TRIP, "t-1")).phase is not Phase.STUCK:
                await asyncio.sleep(0.01)
        await client.act(TRIP, "t-1", act, "book_flight", operator="ada", reason="seen to")
        with pytest.raises(SagaFailed, match="no_hotel") as failed:
            await client.wait(TRIP, "t-1", timeout_s=20)
    assert len(trip.cancelled_flights) == (1 if act == "retry" else 0)
    how = {"retry": "undone", "skip": "skipped", "resolve": "resolved"}[act]
    assert [one.how for one in failed.value.outcome.compensations] == [how]


async def test_an_operator_is_told_when_nothing_is_stuck(trip: Trip) -> None:
    async with Client(trip.broker) as client:
        await client.run(TRIP, {"to": "Rome"}, id="t-1", timeout_s=20)
        with pytest.raises(NotStuck, match="not stuck at step 'book_flight': it is completed, stuck steps are: none"):
            await client.act(TRIP, "t-1", "retry", "book_flight", operator="ada", reason="curious")


async def test_an_unknown_id_is_a_clear_not_found(trip: Trip) -> None:
    async with Client(trip.broker) as client:
        with pytest.raises(SagaNotFound, match="'nobody'"):
            await client.status(TRIP, "nobody")


async def test_bad_arguments_are_refused_before_anything_is_written(trip: Trip) -> None:
    async with Client(trip.broker) as client:
        with pytest.raises(ConfigurationError, match="must match"):
            await client.start(TRIP, {}, id="white space")
        with pytest.raises(Unencodable, match="type object"):
            await client.start(TRIP, object())
    with pytest.raises(ConfigurationError, match="async with"):
        await client.start(TRIP, {})
    with pytest.raises(ConfigurationError, match="content_type"):
        Client(trip.broker, content_type="text/plain")


async def test_a_changed_contract_under_its_old_version_is_refused(trip: Trip) -> None:
    changed = Saga("trip", Step("book_flight", compensation="cancel_flight"), deadline="1h")
    async with Client(trip.broker) as client:
        with pytest.raises(DefinitionError, match="needs version 2"):
            await client.start(changed, {})


def test_a_synchronous_program_has_the_same_calls(tmp_path: Path) -> None:
    with BlockingClient(f"sqlite:///{tmp_path}/log.db") as client:
        saga_id = client.start(TRIP, {"to": "Rome"})
        assert client.status(TRIP, saga_id).phase is Phase.FORWARD
        client.cancel(TRIP, saga_id)
        with pytest.raises(WaitTimeout):
            client.wait(TRIP, saga_id, timeout_s=0.1)
    client.close()
    with pytest.raises(ConfigurationError, match="'with' block"):
        client.start(TRIP, {})
