"""What the saga-log tells people: metrics and log lines.

Two kinds of numbers. *Counters and durations* say that something happened, once over all runs and instances: a record
counts for the owner of the partition who commits its offset first, so a rebuild of the same log adds nothing (around a
crash a batch may count twice). *Gauges* say how things are: they are set from the states in memory, after a rebuild
as after a batch, and only for partitions that are caught up.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import get_args

from choreo.broker.port import TopicPartition
from choreo.core import SagaState
from choreo.messages.records import StepRecord, StepSkipped
from choreo.observe.log import private, trace_id_of
from choreo.observe.metrics import SAGA_BUCKETS_S, Metrics, Outcome, exemplar_of
from choreo.observe.tally import Tally
from choreo.saga_log.census import IN_PROGRESS
from choreo.saga_log.intake import Contracts, Unheld
from choreo.saga_log.shard import Applied, Seen, Shard
from choreo.saga_log.tracers import SagaTracers, duration_s, events_of

logger = logging.getLogger("choreo.saga_log")

STUCK_ADVICE = (
    "saga %s is stuck: the compensation of step %r failed for good (%s). What it built on stays until somebody acts: "
    "repair the cause and retry the compensation, or undo the step by hand and skip it. Other sagas go on"
)
STUCK_FORWARD_ADVICE = (
    "saga %s is stuck past its pivot: step %r has failed in all its rounds (%s), and there is no way back. Repair the "
    "cause and retry the step, or do its work by hand and skip it. Other sagas go on"
)


class _Sagas:
    """How many sagas of a name have begun and ended, as plain numbers."""

    def __init__(self, metrics: Metrics, saga: str) -> None:
        tallies = metrics.tallies
        self.started = tallies.of(metrics.sagas_started.labels(saga))
        self._metrics = metrics
        self._saga = saga
        self._finished = {each: tallies.of(metrics.sagas_finished.labels(saga, each)) for each in get_args(Outcome)}
        self._duration = {
            each: tallies.observations(metrics.saga_duration.labels(saga, each), SAGA_BUCKETS_S)
            for each in get_args(Outcome)
        }

    def finished(self, outcome: Outcome, seconds: float, traceparent: bytes | None) -> None:
        """One has ended. If it was traced, the numbers lead to its trace, which takes the metrics themselves."""
        exemplar = exemplar_of(traceparent)
        if exemplar is None:
            self._finished[outcome].inc()
            self._duration[outcome].observe(seconds)
        else:
            self._metrics.sagas_finished.labels(self._saga, outcome).inc(exemplar=exemplar)
            self._metrics.saga_duration.labels(self._saga, outcome).observe(seconds, exemplar)


class Accounts:
    """Counts and logs what is folded."""

    def __init__(
        self,
        metrics: Metrics,
        group: str,
        sagas: Mapping[str, Collection[str]],
        *,
        tracers: SagaTracers,
        contracts: Contracts,
    ) -> None:
        """Count for these sagas; with each the names of its steps."""
        self._tracers = tracers
        self._contracts = contracts
        self._metrics = metrics
        self._group = group
        self._sagas = {saga: _Sagas(metrics, saga) for saga in sagas}
        self._consumed: dict[str, Tally] = {}
        self._unheld_said: set[Unheld] = set()
        for saga, steps in sagas.items():
            metrics.init_saga(saga, steps)

    def polled(self, tp: TopicPartition, records: int, *, muted: bool) -> None:
        """Records of a partition were read."""
        if (consumed := self._consumed.get(tp.topic)) is None:
            child = self._metrics.messages_consumed.labels(tp.topic, self._group)
            consumed = self._consumed[tp.topic] = self._metrics.tallies.of(child)
        consumed.inc(records)
        if muted:
            self._metrics.records_replayed.labels("rebuild").inc(records)

    def folded(self, saga: str, seen: Iterable[Seen]) -> None:
        """Records were folded that no owner before us has counted."""
        for each in seen:
            self._count(saga, each)

    def parked(self, shard: Shard, applied: Applied) -> None:
        """Records have to wait for a contract; said once for each contract."""
        for message, why in applied.parked:
            if why is not None and why not in self._unheld_said:
                self._unheld_said.add(why)
                logger.error(
                    "%s offset %s has to wait, as will every saga that needs the same: it needs %s",
                    message.tp,
                    message.offset,
                    why,
                    extra={"saga": shard.saga, "topic": message.topic, "partition": message.partition},
                )

    def show(self, shards: Collection[Shard], now_ms: int = 0) -> None:
        """Set the gauges from what is in memory now."""
        for saga in self._sagas:
            mine = [shard for shard in shards if shard.saga == saga and shard.live]
            for phase in IN_PROGRESS:
                number = sum(shard.census.phases[phase] for shard in mine)
                self._metrics.sagas_in_progress.labels(saga, phase.value).set(number)
            self._metrics.sagas_paused.labels(saga).set(sum(shard.census.paused for shard in mine))
            dues = [due_ms for shard in mine if (due_ms := shard.next_due_ms()) is not None]
            self._metrics.timer_lag.labels(saga).set(max(now_ms - min(dues), 0) / 1_000 if dues else 0)
            self._metrics.timers_pending.labels(saga).set(sum(len(shard.timers) for shard in mine))  # as set for dues
            self._metrics.records_parked.labels(saga).set(sum(shard.parked.total() for shard in mine))
            starts = [start for shard in mine if (start := shard.census.oldest_start_ms()) is not None]
            if starts:
                self._metrics.saga_oldest_in_progress.labels(saga).set(min(starts) / 1_000)
            else:  # zero would be a saga of 1970 to every alert on its age
                self._metrics.saga_oldest_in_progress.remove(saga)

    def caught_up(self, shard: Shard) -> None:
        """A partition has been folded to its end: tell the operators what they may not have been told."""
        logger.info(
            "%s is folded up to offset %s; %s sagas in progress",
            shard.tp,
            shard.offset,
            shard.census.phases.total(),
            extra={"saga": shard.saga, "topic": shard.tp.topic, "partition": shard.tp.partition},
        )
        for state in shard.stuck():
            self._say_stuck(shard.saga, state)

    def _count(self, saga: str, seen: Seen) -> None:
        entry, before, (state, owed, note) = seen
        if state.started and not before.started:
            self._sagas[saga].started.inc()
        if state.finished_ms and not before.finished_ms and state.outcome is not None:
            self._sagas[saga].finished(state.outcome.kind, duration_s(state), state.traceparent)
        for decision in owed:
            if decision.kind == "stuck":
                self._say_stuck(saga, state)
        if self._tracers.wanted:
            self._tracers.tell(events_of(self._contracts(saga, state.version), seen))
        if note is not None:
            self._count_note(saga, seen)
        elif isinstance(entry.record, StepSkipped):
            self._metrics.steps_skipped.labels(saga, entry.record.step).inc()

    def _count_note(self, saga: str, seen: Seen) -> None:
        metrics, (entry, before, (_, _, note)) = self._metrics, seen
        record = entry.record
        about = {
            "saga": saga,
            "saga_id": record.saga_id,
            "step": record.step if isinstance(record, StepRecord) else None,
            "offset": entry.offset,
            "trace_id": trace_id_of(entry.traceparent),
        }
        what = type(record).__name__
        match note:
            case "duplicate":
                metrics.events_duplicate.labels(saga).inc()
            case "late" if isinstance(record, StepRecord):
                metrics.events_late.labels(saga, record.step).inc()
                logger.warning("%s came after its due; the step counts as failed and is undone", what, extra=about)
            case "repair":
                metrics.repairs.labels(saga).inc()
                logger.warning("%s after the saga's outcome: a possible effect is being undone", what, extra=about)
            case "before_start" if not before.truncated:
                logger.warning(
                    "%s of a saga whose start is not in the log: retention has deleted it, or it was refused. "
                    "Nothing will be decided for this saga",
                    what,
                    extra=about,
                )
            case "not_decided" | "unknown_start" | "unknown_step":
                logger.warning(
                    "%s changes nothing (%s): nothing before it in the log implies it", what, note, extra=about
                )
            case _:
                logger.info("%s was noted as %s", what, note, extra=about)

    def _say_stuck(self, saga: str, state: SagaState) -> None:
        for (step, saga_round), instance in state.instances.items():
            if instance.stuck:
                failure = instance.failure if instance.exhausted else instance.compensation_failure
                logger.error(
                    STUCK_FORWARD_ADVICE if instance.exhausted else STUCK_ADVICE,
                    state.saga_id,
                    step,
                    private(failure.message or failure.code or failure.kind) if failure else "no reason given",
                    extra={
                        "saga": saga,
                        "saga_id": state.saga_id,
                        "step": step,
                        "round": saga_round,
                        "trace_id": trace_id_of(state.traceparent),
                    },
                )
