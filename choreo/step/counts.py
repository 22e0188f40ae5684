"""A step's metrics with their labels filled in: looking labels up costs more than counting."""

from __future__ import annotations

from typing import get_args

from choreo.observe.metrics import AttemptResult, CompensationResult, Metrics, StepResult


class StepCounts:
    """The metrics of one step that the service runs; children by result where there are several."""

    def __init__(self, metrics: Metrics, saga: str, step: str) -> None:
        metrics.init_step(saga, step)
        self.events = {result: metrics.step_events.labels(saga, step, result) for result in get_args(StepResult)}
        self.durations = {
            result: metrics.step_duration.labels(saga, step, result) for result in ("completed", "failed")
        }
        self.attempts = {result: metrics.step_attempts.labels(saga, step, result) for result in get_args(AttemptResult)}
        self.retries = metrics.step_retries.labels(saga, step)
        self.in_flight = metrics.step_in_flight.labels(saga, step)
        self.compensations = {
            result: metrics.compensations.labels(saga, step, result) for result in get_args(CompensationResult)
        }
        self.compensation_duration = metrics.compensation_duration.labels(saga, step)
