"""A step's metrics with their labels filled in: looking labels up costs more than counting."""

from __future__ import annotations

from typing import get_args

from prometheus_client import Counter

from choreo.broker.topics import saga_topic
from choreo.observe.metrics import AttemptResult, CompensationResult, Metrics, StepResult


class StepCounts:
    """The metrics of one step that the service runs; children by result where there are several.

    Attributes:
        delay: from a record's append to the start of work on it, of the saga's topic.
        running: handlers at work now; shown as ``choreo_step_in_flight`` when somebody looks.
    """

    def __init__(self, metrics: Metrics, saga: str, step: str) -> None:
        metrics.init_step(saga, step)
        self.delay = metrics.message_delivery_delay.labels(saga_topic(saga))
        self.events = {result: metrics.step_events.labels(saga, step, result) for result in get_args(StepResult)}
        self.durations = {
            result: metrics.step_duration.labels(saga, step, result) for result in ("completed", "failed")
        }
        self.attempts: dict[AttemptResult, Counter] = {
            result: metrics.step_attempts.labels(saga, step, result) for result in get_args(AttemptResult)
        }
        self.retries = metrics.step_retries.labels(saga, step)
        self.running = 0
        metrics.step_in_flight.labels(saga, step).set_function(lambda: self.running)
        self.compensations = {
            result: metrics.compensations.labels(saga, step, result) for result in get_args(CompensationResult)
        }
        self.compensation_attempts = {
            result: metrics.compensation_attempts.labels(saga, step, result) for result in get_args(AttemptResult)
        }
        self.compensation_duration = metrics.compensation_duration.labels(saga, step)
