"""A step's metrics with their labels filled in: looking labels up costs more than counting."""

from __future__ import annotations

from typing import Literal, get_args

from choreo.broker.topics import saga_topic
from choreo.observe.metrics import (
    DELAY_BUCKETS_S,
    STEP_BUCKETS_S,
    AttemptResult,
    CompensationResult,
    Metrics,
    StepResult,
    exemplar_of,
)
from choreo.observe.tally import Tally


class StepCounts:
    """The metrics of one step that the service runs; children by result where there are several.

    Attributes:
        delay: from a record's append to the start of work on it, of the saga's topic.
        running: handlers at work now; shown as ``choreo_step_in_flight`` when somebody looks.
    """

    def __init__(self, metrics: Metrics, saga: str, step: str) -> None:
        metrics.init_step(saga, step)
        tallies = metrics.tallies
        self.delay = tallies.observations(metrics.message_delivery_delay.labels(saga_topic(saga)), DELAY_BUCKETS_S)
        self.events = {
            result: tallies.of(metrics.step_events.labels(saga, step, result)) for result in get_args(StepResult)
        }
        self.durations = {
            result: metrics.step_duration.labels(saga, step, result) for result in ("completed", "failed")
        }
        self._durations = {
            result: tallies.observations(child, STEP_BUCKETS_S) for result, child in self.durations.items()
        }
        self.attempts: dict[AttemptResult, Tally] = {
            result: tallies.of(metrics.step_attempts.labels(saga, step, result)) for result in get_args(AttemptResult)
        }
        self.retries = metrics.step_retries.labels(saga, step)
        self.running = 0
        metrics.step_in_flight.labels(saga, step).set_function(lambda: self.running)
        self.compensations = {
            result: tallies.of(metrics.compensations.labels(saga, step, result))
            for result in get_args(CompensationResult)
        }
        self.compensation_attempts = {
            result: tallies.of(metrics.compensation_attempts.labels(saga, step, result))
            for result in get_args(AttemptResult)
        }
        self._undone = metrics.compensation_duration.labels(saga, step)
        self._undone_plain = tallies.observations(self._undone, STEP_BUCKETS_S)

    def ended(self, result: Literal["completed", "failed"], seconds: float, traceparent: bytes | None) -> None:
        """A run of the step took so long. What is traced is an exemplar, so it is shown as it is."""
        if traceparent is None:
            self._durations[result].observe(seconds)
        else:
            self.durations[result].observe(seconds, exemplar_of(traceparent))

    def undone(self, seconds: float, traceparent: bytes | None) -> None:
        """A run of the compensation took so long; likewise."""
        if traceparent is None:
            self._undone_plain.observe(seconds)
        else:
            self._undone.observe(seconds, exemplar_of(traceparent))
