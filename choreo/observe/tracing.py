"""A tracer that makes OpenTelemetry spans. It needs the extra ``otel``: ``pip install 'choreo-sagas[otel]'``.

    payment = Service("payment", tracers=[OpenTelemetryTracer()])

Each attempt is a span ``process choreo.<saga>``, child of the span that wrote the record and linked to it, and its own
context goes on with the answer: one trace for each saga, across all services. Spans that a handler opens are children
of its attempt's. An outcome is a span without length. Names and attributes follow the messaging conventions (still in
development there, so they stand in this module only), and ``choreo.…`` for what is ours.

Without a tracer ``traceparent`` is handed on unchanged.
"""

from __future__ import annotations

import os
from contextvars import Token
from typing import NamedTuple

from choreo.observe.events import AttemptEnded, AttemptEvent, OutcomeEvent

try:
    from opentelemetry import context as otel_context
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    from opentelemetry.util.types import AttributeValue
except ImportError as error:
    raise ImportError(
        "choreo.observe.tracing needs OpenTelemetry: pip install 'choreo-sagas[otel]'", name=error.name
    ) from error

_PROPAGATOR = TraceContextTextMapPropagator()


class OpenSpan(NamedTuple):
    """The span of an attempt that is under way, and how to leave it."""

    span: trace.Span
    token: Token[Context]


class OpenTelemetryTracer:
    """Makes a span of every attempt and every outcome; see the module."""

    def __init__(self, provider: trace.TracerProvider | None = None, *, is_parent: bool | None = None) -> None:
        """Take a provider.

        Args:
            provider: the program's global one by default.
            is_parent: whether the writer of a record is the parent of what it causes. Otherwise it is only linked, and
                every attempt begins a trace of its own, which suits sagas of many days. By default it is, unless
                the environment says ``CHOREO_TRACE_PARENT=off``.
        """
        self._tracer = trace.get_tracer("choreo", tracer_provider=provider)
        self._is_parent = os.environ.get("CHOREO_TRACE_PARENT", "") != "off" if is_parent is None else is_parent

    async def before_step(self, event: AttemptEvent) -> OpenSpan:
        return self._open(event, "forward")

    async def after_step(self, event: AttemptEnded, state: OpenSpan) -> None:
        _close(event, state)

    async def before_compensation(self, event: AttemptEvent) -> OpenSpan:
        return self._open(event, "compensating")

    async def after_compensation(self, event: AttemptEnded, state: OpenSpan) -> None:
        _close(event, state)

    async def on_outcome(self, event: OutcomeEvent) -> None:
        span = self._start(event, {"choreo.outcome": event.outcome, "choreo.phase": event.outcome})
        if event.failure is not None:
            span.set_attribute("error.type", event.failure.exception_type or event.failure.code or event.failure.kind)
        if event.skipped:
            span.set_attribute("choreo.skipped", event.skipped)
        span.end()

    def traceparent(self, state: OpenSpan | None) -> str | None:
        """The span's own context, for the handler and the answer."""
        if state is None:
            return None
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(state.span))
        return carrier.get("traceparent")

    def _open(self, event: AttemptEvent, phase: str) -> OpenSpan:
        about: dict[str, AttributeValue] = {
            "messaging.message.id": event.message_id,
            "choreo.step.name": event.step,
            "choreo.step.attempt": event.attempt,
            "choreo.phase": phase,
        }
        span = self._start(event, about)
        return OpenSpan(span, otel_context.attach(trace.set_span_in_context(span)))

    def _start(self, event: AttemptEvent | OutcomeEvent, about: dict[str, AttributeValue]) -> trace.Span:
        carrier = {} if event.traceparent is None else {"traceparent": event.traceparent}
        caused_by = _PROPAGATOR.extract(carrier, Context())
        creation = trace.get_current_span(caused_by).get_span_context()
        return self._tracer.start_span(
            f"process {event.topic}",
            context=caused_by if self._is_parent else Context(),
            kind=trace.SpanKind.CONSUMER,
            links=[trace.Link(creation)] if creation.is_valid else [],
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": event.topic,
                "messaging.destination.partition.id": str(event.partition),
                "messaging.kafka.offset": event.offset,
                "messaging.kafka.message.key": event.saga_id,
                "messaging.consumer.group.name": event.group,
                "messaging.message.conversation_id": event.saga_id,
                "choreo.saga.name": event.saga,
                "choreo.saga.id": event.saga_id,
                **about,
            },
        )


def _close(event: AttemptEnded, state: OpenSpan | None) -> None:
    if state is None:
        return  # its ``before`` has failed, and that is logged
    span = state.span
    span.set_attribute("choreo.outcome", event.result)
    if event.failure is not None:
        # Never the message: it may hold what only the operators of this service may see.
        span.set_attribute("error.type", event.failure.exception_type or event.failure.code or event.failure.kind)
    if event.result != "ok":
        span.set_status(trace.StatusCode.ERROR)
    span.end()
    otel_context.detach(state.token)
