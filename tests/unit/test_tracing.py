"""Spans of attempts and outcomes, as an OpenTelemetry exporter sees them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from choreo.messages.records import StepCompensated, StepCompleted, StepFailed
from choreo.observe.tracing import OpenTelemetryTracer
from choreo.step import Context, Service
from tests.unit.step_world import (
    ORDER,
    World,
    compensate,
    completed,
    make_world,
    payment,
    running,
    started,
    until,
    until_committed,
)
from tests.unit.test_step_outcome import saga_completed

TRACE_ID, SPAN_ID = "a" * 32, "b" * 16
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01".encode()


class Spans:
    """What was exported."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def service(self, step: Any = None, undo: Any = None, **settings: Any) -> Service:
        service = payment(step, undo)
        service.trace(OpenTelemetryTracer(self.provider, **settings))
        return service


def ids_of(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


async def handed_on(world: World, kind: type) -> str:
    (entry,) = [entry for entry in await world.log() if isinstance(entry.record, kind) and entry.record.run != "run-1"]  # type: ignore[attr-defined]
    return (entry.message.header("traceparent") or b"").decode()


async def test_an_attempt_is_a_span_under_the_one_that_caused_it() -> None:
    spans, world = Spans(), await make_world()
    async with running(world, spans.service()):
        await world.send(completed(), traceparent=PARENT)
        await world.answer(StepCompleted)
    (span,) = spans.named("process choreo.order")
    assert span.kind is trace.SpanKind.CONSUMER
    assert span.parent is not None
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE_ID, SPAN_ID)
    assert [f"{link.context.span_id:016x}" for link in span.links] == [SPAN_ID]
    assert dict(span.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "choreo.order",
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 0,
        "messaging.kafka.message.key": "s-1",
        "messaging.consumer.group.name": "choreo.payment",
        "messaging.message.id": completed().id,
        "messaging.message.conversation_id": "s-1",
        "choreo.saga.name": "order",
        "choreo.saga.id": "s-1",
        "choreo.step.name": "charge_card",
        "choreo.step.attempt": 1,
        "choreo.phase": "forward",
        "choreo.outcome": "ok",
    }


async def test_the_spans_own_context_goes_on_with_the_answer() -> None:
    spans, world = Spans(), await make_world()
    async with running(world, spans.service()):
        await world.send(completed(), traceparent=PARENT)
        await world.answer(StepCompleted)
        (span,) = spans.named("process choreo.order")
        trace_id, span_id = ids_of(span)
        assert await handed_on(world, StepCompleted) == f"00-{trace_id}-{span_id}-01"
    assert trace_id == TRACE_ID


async def test_a_chain_of_services_is_one_trace() -> None:
    spans, world = Spans(), await make_world()
    stock = Service("stock", tracers=[OpenTelemetryTracer(spans.provider)])
    stock.step(ORDER, "reserve_stock")(lambda: None)
    stock.compensation(ORDER, "reserve_stock")(lambda: None)
    async with running(world, stock, spans.service()):
        await world.send(started())
        await world.answers(StepCompleted, count=2)
        await until(lambda: len(spans.named("process choreo.order")) == 2)
    reserve, charge = spans.named("process choreo.order")
    assert reserve.parent is None
    assert charge.parent is not None
    assert f"{charge.parent.span_id:016x}" == ids_of(reserve)[1]
    assert ids_of(charge)[0] == ids_of(reserve)[0]


@pytest.mark.parametrize("handler_is_async", [True, False])
async def test_spans_of_a_handler_are_children_of_its_attempt(handler_is_async: bool) -> None:
    spans, world = Spans(), await make_world()
    tracer = spans.provider.get_tracer("user")

    def charge() -> None:
        with tracer.start_as_current_span("ask the gateway"):
            pass

    async def charge_async() -> None:
        charge()

    async with running(world, spans.service(charge_async if handler_is_async else charge)):
        await world.send(completed())
        await world.answer(StepCompleted)
    (attempt,), (inner,) = spans.named("process choreo.order"), spans.named("ask the gateway")
    assert inner.parent is not None
    assert f"{inner.parent.span_id:016x}" == ids_of(attempt)[1]
    assert not trace.get_current_span().get_span_context().is_valid, "and nothing is left behind"


async def test_a_failure_is_an_error_with_its_type_and_never_its_text() -> None:
    def charge(ctx: Context) -> None:
        raise LookupError("card 4111 1111")

    spans, world = Spans(), await make_world()
    async with running(world, spans.service(charge)):
        await world.send(completed())
        await world.answer(StepFailed)
    (span,) = spans.named("process choreo.order")
    assert span.status.status_code is trace.StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "builtins.LookupError"
    assert (span.attributes or {})["choreo.outcome"] == "crashed"
    assert "4111" not in span.to_json()


async def test_compensations_and_outcomes_are_spans_too() -> None:
    spans, world = Spans(), await make_world()
    async with running(world, spans.service()):
        await world.send(compensate(), traceparent=PARENT)
        await world.answer(StepCompensated)
        await world.send(saga_completed(), traceparent=PARENT)
        await until_committed(world)
    undo, outcome = spans.named("process choreo.order")
    assert [(span.attributes or {})["choreo.phase"] for span in (undo, outcome)] == ["compensating", "completed"]
    assert (outcome.attributes or {})["choreo.outcome"] == "completed"
    assert ids_of(undo)[0] == ids_of(outcome)[0] == TRACE_ID


@pytest.mark.parametrize("by_environment", [True, False])
async def test_for_long_sagas_the_cause_can_be_a_link_alone(
    by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_environment:
        monkeypatch.setenv("CHOREO_TRACE_PARENT", "off")
    spans, world = Spans(), await make_world()
    async with running(world, spans.service(**({} if by_environment else {"is_parent": False}))):
        await world.send(completed(), traceparent=PARENT)
        await world.answer(StepCompleted)
    (span,) = spans.named("process choreo.order")
    assert span.parent is None
    assert [f"{link.context.span_id:016x}" for link in span.links] == [SPAN_ID]


async def test_without_an_sdk_the_trace_context_goes_on_unchanged() -> None:
    world, service = await make_world(), payment()
    service.trace(OpenTelemetryTracer(trace.NoOpTracerProvider()))
    async with running(world, service):
        await world.send(completed(), traceparent=PARENT)
        await world.answer(StepCompleted)
        assert await handed_on(world, StepCompleted) == PARENT.decode()


def test_the_extra_is_needed_only_by_those_who_use_it() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import choreo.step, choreo.saga_log, choreo.cli\n"
        "try:\n    import choreo.observe.tracing\n"
        "except ImportError as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "choreo.observe.tracing needs OpenTelemetry: pip install 'choreo-sagas[otel]'"
