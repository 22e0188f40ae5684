"""All Prometheus metrics of all processes, in one table.

The table is the body of ``Metrics.__init__``: a line of code for each metric, with its name, labels and buckets;
``docs/metrics.md`` is written from it (``make metrics-page``). Names follow the Prometheus conventions: prefix
``choreo_``, base units, ``_total`` for counters, ``_timestamp_seconds`` for moments. Labels are closed sets (names of
sagas, steps, topics and groups, and the words in ``Literal`` types below); a saga id, a key, an offset or an error
text is never one.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, NamedTuple, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from choreo.broker.topics import saga_topic
from choreo.observe.tally import Tallies

Part = Literal["saga-log", "services", "all"]
Outcome = Literal["completed", "compensated"]
Phase = Literal["scheduled", "forward", "compensating", "stuck"]
StepResult = Literal["completed", "failed", "republished", "skipped_duplicate", "skipped_late"]
AttemptResult = Literal["ok", "rejected", "crashed", "timed_out", "inbox_unavailable", "cancelled"]
CompensationResult = Literal["undone", "nothing_to_undo", "failed", "republished", "skipped_duplicate"]
DeadLetterReason = Literal["undecodable", "unknown_version", "unknown_contract"]
ReplaySource = Literal["rebuild", "scan"]
SendResult = Literal["ok", "error"]
ObserverKind = Literal["tracer", "hook", "compensation_error_handler"]

STEP_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
SAGA_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 3_600, 21_600, 86_400)
DELAY_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 300)


_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class MetricRow(NamedTuple):
    """One line of the table, as ``Metrics.table`` lists it.

    Attributes:
        name: the one that queries use.
        buckets: upper bounds of a histogram; empty for other kinds.
        of: whose it is: the saga-log's, the step services', or everybody's.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    about: str
    buckets: tuple[float, ...]
    of: Part

    @property
    def unit(self) -> str:
        """What is measured, by the name's end."""
        for end, unit in (("_timestamp_seconds", "seconds since 1970"), ("_seconds", "seconds"), ("_info", "")):
            if self.name.endswith(end):
                return unit
        return "records" if self.name.endswith("_records") else "count"


class Metrics:
    """The metrics of one process, or of one runtime in a test: each object has a registry of its own.

    Attributes:
        registry: what ``/metrics`` writes out.
        tallies: plain numbers of the hot path, which are counted in it when somebody looks.
    """

    def __init__(self, *, with_process: bool = False) -> None:
        """Make all metrics.

        Args:
            with_process: also show the process's memory, CPU, file descriptors, and garbage collections.
        """
        self.registry = CollectorRegistry(auto_describe=True)
        self.tallies = Tallies(self.registry)
        self._rows: list[MetricRow] = []
        self._part: Part = "saga-log"
        counter, gauge, histogram = self._counter, self._gauge, self._histogram

        # The saga-log's: sagas as a whole.
        self.sagas_started = counter("sagas_started", "Sagas whose start was folded.", "saga")
        self.sagas_finished = counter("sagas_finished", "Sagas with an outcome.", "saga", "outcome")
        self.sagas_in_progress = gauge("sagas_in_progress", "Sagas without an outcome, by phase.", "saga", "phase")
        self.sagas_paused = gauge("sagas_paused", "Sagas that are not over and are paused.", "saga")
        self.saga_duration = histogram(
            "saga_duration_seconds",
            "Append of the start, or the time that it is scheduled for, to append of the outcome.",
            SAGA_BUCKETS_S,
            "saga",
            "outcome",
        )
        self.saga_oldest_in_progress = gauge(
            "saga_oldest_in_progress_timestamp_seconds", "Start of the oldest saga without an outcome.", "saga"
        )
        self.compensate_commands = counter("compensate_commands", "Compensate commands appended.", "saga")
        self.repairs = counter("repairs", "Sagas with possible effects found after their outcome.", "saga")
        self.steps_skipped = counter("steps_skipped", "Steps whose condition did not hold.", "saga", "step")
        self.events_late = counter("events_late", "Completions appended after their due.", "saga", "step")
        self.events_duplicate = counter("events_duplicate", "Records that say again what was said.", "saga")
        self.timers_pending = gauge("timers_pending", "Timers that wait for their time.", "saga")
        self.timer_lag = gauge(
            "timer_lag_seconds", "How long the earliest timer that is due has waited to be fired; 0 if none is.", "saga"
        )
        self.timers_fired = counter("timers_fired", "Timers whose event was appended.", "saga")

        # The step services'.
        self._part = "services"
        self.step_events = counter("step_events", "Triggers of steps, by what came of them.", "saga", "step", "result")
        self.step_duration = histogram(
            "step_duration_seconds",
            "Start of the first attempt to the end of the last.",
            STEP_BUCKETS_S,
            "saga",
            "step",
            "result",
        )
        self.step_attempts = counter("step_attempts", "Attempts of steps' handlers.", "saga", "step", "result")
        self.compensation_attempts = counter(
            "compensation_attempts", "Attempts of compensations' handlers.", "saga", "step", "result"
        )
        self.step_retries = counter("step_retries", "Attempts beyond the first.", "saga", "step")
        self.step_in_flight = gauge("step_in_flight", "Handlers that are running, compensations too.", "saga", "step")
        self.compensations = counter("compensations", "Compensate commands, by the answer.", "saga", "step", "result")
        self.compensation_duration = histogram(
            "compensation_duration_seconds",
            "Start of the first attempt to the end of the last.",
            STEP_BUCKETS_S,
            "saga",
            "step",
        )
        self.inbox_errors = counter(
            "inbox_errors", "Transactions of an inbox that its database refused, and that are tried again.", "group"
        )
        self.inbox_rows_deleted = counter("inbox_rows_deleted", "Rows of an inbox that were too old.", "group")
        self.records_parked = gauge(
            "records_parked", "Records that wait for a contract version this process does not hold.", "saga"
        )
        self.observer_errors = counter(
            "observer_errors", "Tracers, hooks and handlers of errors that failed themselves, which is ignored.", "kind"
        )
        for kind in get_args(ObserverKind):
            self.observer_errors.labels(kind)

        # Everybody's: the log.
        self._part = "all"
        self.messages_consumed = counter("messages_consumed", "Records polled.", "topic", "group")
        self.messages_produced = counter("messages_produced", "Sends, by result.", "topic", "result")
        self.message_delivery_delay = histogram(
            "message_delivery_delay_seconds",
            "Append (broker's clock) to start of work (this machine's clock); for display only.",
            DELAY_BUCKETS_S,
            "topic",
        )
        self.consumer_lag = gauge(
            "consumer_lag_records", "Records not polled yet, of assigned partitions.", "topic", "partition", "group"
        )
        self.consumer_rebalances = counter("consumer_rebalances", "Rebalances.", "group", "reason")
        self.last_poll = gauge("last_poll_timestamp_seconds", "When the consumer last returned from a poll.", "group")
        self.dead_letters = counter("dead_letters", "Records handed to a dead-letter topic.", "topic", "reason")
        self.records_replayed = counter("log_replayed_records", "Records read again after a start.", "source")
        self.build_info = gauge("build_info", "Versions; always 1.", "version", "python", "aiokafka", "loop")
        if with_process:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)

    def init_saga(self, saga: str, steps: Iterable[str] = ()) -> None:
        """Show zeros for a saga at once: a rate over a series that appears late misses its first count."""
        self.sagas_started.labels(saga)
        for outcome in get_args(Outcome):
            self.sagas_finished.labels(saga, outcome)
        for phase in get_args(Phase):
            self.sagas_in_progress.labels(saga, phase)
        for counter in (self.compensate_commands, self.repairs, self.events_duplicate, self.timers_fired):
            counter.labels(saga)
        for gauge in (self.timers_pending, self.timer_lag, self.records_parked):
            gauge.labels(saga)
        for step in steps:
            self.events_late.labels(saga, step)
            self.steps_skipped.labels(saga, step)
        self._init_topic(saga)

    def init_step(self, saga: str, step: str) -> None:
        """Show zeros for a step that this process runs."""
        for result in get_args(StepResult):
            self.step_events.labels(saga, step, result)
        for compensation_result in get_args(CompensationResult):
            self.compensations.labels(saga, step, compensation_result)
        self.step_retries.labels(saga, step)
        self.step_in_flight.labels(saga, step)
        self._init_topic(saga)

    def _init_topic(self, saga: str) -> None:
        for send_result in get_args(SendResult):
            self.messages_produced.labels(saga_topic(saga), send_result)
        for reason in get_args(DeadLetterReason):
            self.dead_letters.labels(saga_topic(saga), reason)

    def show_build(self, *, loop: str) -> None:
        """Set ``choreo_build_info``. ``loop`` is the name of the event loop ("asyncio", "uvloop")."""
        self.build_info.labels(_version("choreo-sagas"), platform.python_version(), _version("aiokafka"), loop).set(1)

    def drop_partition(self, topic: str, partition: int, group: str) -> None:
        """Forget the lag of a partition that was given up: the next owner shows it, two would be added up."""
        self.consumer_lag.remove(topic, str(partition), group)

    def table(self) -> tuple[MetricRow, ...]:
        """Every metric of choreo's own, for documents and for checks of dashboards and alerts."""
        return tuple(self._rows)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        self._rows.append(MetricRow(f"choreo_{name}_total", "counter", labels, about, (), self._part))
        return Counter(f"choreo_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        self._rows.append(MetricRow(f"choreo_{name}", "gauge", labels, about, (), self._part))
        return Gauge(f"choreo_{name}", about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        self._rows.append(MetricRow(f"choreo_{name}", "histogram", labels, about, buckets, self._part))
        return Histogram(f"choreo_{name}", about, labels, buckets=buckets, registry=self.registry)


def exemplar_of(traceparent: bytes | None) -> dict[str, str] | None:
    """The trace as an exemplar: from a point of a histogram, OpenMetrics leads to one saga that made it."""
    match = _TRACEPARENT.match(traceparent) if traceparent else None
    return {"trace_id": match[1].decode()} if match else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
