"""A tracer that tells each saga's story in the log, one structured line for everything that happens in a service.

    payment = Service("payment", tracers=[LogTracer()])

With the JSON format the field ``event`` holds a word for programs: ``step_started``, ``step_completed``,
``step_failed``, ``step_retried``, ``step_cancelled``; ``compensating``, ``step_compensated``, ``compensation_failed``,
``compensation_retried``, ``compensation_cancelled``; ``saga_completed`` and ``saga_compensated``. A duration is that of
the attempt. It costs a line or two for each attempt, so nobody has it who does not ask for it.
"""

from __future__ import annotations

import logging

from choreo.observe.events import AttemptEnded, AttemptEvent, OutcomeEvent
from choreo.observe.log import private


class LogTracer:
    """Writes the lines; see the module."""

    def __init__(self, logger: logging.Logger | None = None, level: int = logging.INFO) -> None:
        """Write to a logger, that of this module by default. What fails is written as a warning at least."""
        self._logger = logger if logger is not None else logging.getLogger(__name__)
        self._level = level

    async def before_step(self, event: AttemptEvent) -> None:
        if event.attempt == 1:
            self._say("step_started", event)

    async def after_step(self, event: AttemptEnded, state: None) -> None:  # noqa: ARG002  # a tracer's signature
        self._said("step_completed", "step", event)

    async def before_compensation(self, event: AttemptEvent) -> None:
        if event.attempt == 1:
            self._say("compensating", event)

    async def after_compensation(self, event: AttemptEnded, state: None) -> None:  # noqa: ARG002
        self._said("step_compensated", "compensation", event)

    async def on_outcome(self, event: OutcomeEvent) -> None:
        why = "" if event.failure is None else f": {event.failure.code or event.failure.kind} at {event.step}"
        if event.skipped:
            why += f", without {', '.join(event.skipped)}"
        self._logger.log(
            self._level,
            "saga %s%s",
            "cancelled" if event.cancelled else event.outcome,
            why,
            extra={
                "event": f"saga_{event.outcome}",
                "service": event.service,
                "saga": event.saga,
                "saga_id": event.saga_id,
            },
        )

    def _said(self, done: str, what: str, event: AttemptEnded) -> None:
        level = self._level
        if event.result == "ok":
            word = done
        elif event.result == "cancelled":
            word = f"{what}_cancelled"
        else:
            word = f"{what}_failed" if event.is_last else f"{what}_retried"
            level = max(level, logging.WARNING)
        self._say(word, event, level)

    def _say(self, word: str, event: AttemptEvent, level: int | None = None) -> None:
        fields: dict[str, object] = {
            "event": word,
            "service": event.service,
            "saga": event.saga,
            "saga_id": event.saga_id,
            "step": event.step,
            "round": event.round,
            "attempt": event.attempt,
        }
        text, why = f"{word} {event.step}", ""
        if isinstance(event, AttemptEnded):
            fields |= {"result": event.result, "duration_ms": round(event.duration_s * 1_000)}
            if event.failure is not None:
                text += f": {event.failure.code or event.failure.kind}: "
                why = event.failure.message
        self._logger.log(self._level if level is None else level, "%s%s", text, private(why), extra=fields)
