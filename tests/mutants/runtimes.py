"""The runtimes, broken on purpose: each function patches one place of production code while it is entered.

They are found out by the simulation. Those of the core are in ``tests/unit/core/switches.py``; ``registry`` has all.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import msgspec

from choreo import ids
from choreo.broker.memory import MemoryLog
from choreo.broker.offsets import OffsetTracker
from choreo.broker.port import Appended, Committed
from choreo.core import Decision, SagaState, evolve
from choreo.core.messages import owe
from choreo.errors import BrokerError, BrokerUnavailable, Undecodable
from choreo.messages.codec import decode
from choreo.messages.family import UndoRequested
from choreo.messages.records import Compensate, StepCompensated, StepCompleted
from choreo.saga_log.dead_letter import DeadLetters
from choreo.saga_log.outbound import Outbound
from choreo.saga_log.shard import Shard
from choreo.step import answer, worker
from choreo.step.answered import Answered, Scanned
from choreo.step.cancelling import StepCancelled
from choreo.step.job import Job
from choreo.step.lanes import Lane, Lanes
from choreo.step.partition import Partition
from choreo.step.publish import Publisher
from choreo.step.quick import Quick
from choreo.step.route import Delivery
from choreo.step.running import Runner
from choreo.store.memory import MemoryStore
from choreo.store.port import Advance


def commit_before_acknowledgement() -> Any:
    """A record is finished when its handler begins, not when its answer is in the log."""

    begin, finish = Partition._begin, Partition._finish

    def finished_first(self: Partition, delivery: Delivery, lane: Lane) -> Any:
        finish(self, delivery)
        return begin(self, delivery, lane)

    return patch.multiple(Partition, _begin=finished_first, _finish=lambda *_: None)


def random_run_ids() -> Any:
    """Every publishing of an outcome draws a run id of its own."""
    written = Publisher._written

    def with_another_run(self: Publisher, record: Any, *args: Any) -> Any:
        if isinstance(record, StepCompleted | StepCompensated):
            record = msgspec.structs.replace(record, run=f"{self._random.getrandbits(64):016x}")
        return written(self, record, *args)

    return patch.object(Publisher, "_written", with_another_run)


def no_scan_on_assignment() -> Any:
    """What is answered beyond the committed offset is not looked for."""

    async def scan(*_args: object, **_options: object) -> Scanned:
        return Scanned(0, None)

    return patch.object(worker, "scan", scan)


def no_memory_of_answers() -> Any:
    """A trigger that is in the log twice is run twice."""
    return patch.object(Answered, "get", lambda *_: None)


def timers_lost_on_restart() -> Any:
    """States that are loaded from the store have no timers."""
    admit = Shard.admit

    def without_timers(self: Shard, states: Iterable[SagaState]) -> None:
        with patch.object(Shard, "_set_timer", lambda *_: None):
            admit(self, states)

    return patch.object(Shard, "admit", without_timers)


def store_leads_the_log() -> Any:
    """The checkpoint is moved past a record whose saga has not been saved."""
    advance = Shard.advance

    def ahead(self: Shard) -> Advance | None:
        found = advance(self)
        return None if found is None else found._replace(rows=found.rows[:-1])

    return patch.object(Shard, "advance", ahead)


def owed_not_sent_on_takeover() -> Any:
    """What a loaded state owes is taken as sent."""
    admit = Shard.admit

    def without_debts(self: Shard, states: Iterable[SagaState]) -> None:
        owing = dict(self._owing)
        admit(self, states)
        self._owing = owing

    return patch.object(Shard, "admit", without_debts)


def lanes_not_serial() -> Any:
    """Every record has a lane of its own, so that a compensation can overtake its step."""

    def side_by_side(self: Lanes, delivery: Delivery) -> None:
        key = (delivery.message.key, f"{delivery.step}@{delivery.message.offset}")
        self._open(key).deliveries.append(delivery)

    return patch.object(Lanes, "add", side_by_side)


def reject_is_always_certain() -> Any:
    """A reject says that there is no effect even where an earlier run may have left one (rule 5)."""
    answer_of_step = answer.answer_of_step

    def certain(job: Any, ended: Any) -> Any:
        return answer_of_step(msgspec.structs.replace(job, is_fresh=True), ended._replace(in_doubt=False))

    return patch.object(answer, "answer_of_step", certain)


def cancelled_is_always_certain() -> Any:
    """A step that was cancelled in its middle is said to have had no effect (rules 5, 25)."""
    answer_of_step = answer.answer_of_step

    def certain(job: Any, ended: Any) -> Any:
        record = answer_of_step(job, ended)
        return msgspec.structs.replace(record, effect="none") if isinstance(ended.error, StepCancelled) else record

    return patch.object(answer, "answer_of_step", certain)


def answer_taken_as_sent() -> Any:
    """An error on the way to the broker counts as an acknowledgement."""
    send = Publisher.send

    async def once(self: Publisher, topic: str, **options: Any) -> Any:
        with patch.object(self, "_clock", _Hasty()):
            try:
                return await send(self, topic, **options)
            except _GaveUp:
                return None

    async def taken(self: Quick[Any, Any], run: Any, outcome: Any, ended: Any, sent: Any) -> None:
        try:
            appended = await sent
        except BrokerError:
            run.place.answered.settle(run.instance)
        else:
            self.acknowledged(run, outcome, ended, appended)

    both = ExitStack()
    both.enter_context(patch.object(Publisher, "send", once))
    both.enter_context(patch.object(Quick, "_see_through", taken))
    return both


def resent_under_another_id() -> Any:
    """An answer that is not acknowledged is sent again under a run id of its own."""
    publish = Publisher.publish

    async def anew(self: Publisher, topic: str, record: Any, **options: Any) -> Any:
        while True:
            try:
                with patch.object(self, "_clock", _Hasty()):
                    return await publish(self, topic, record, **options)
            except _GaveUp:
                await self._clock.sleep(0.1)
                if isinstance(record, StepCompleted | StepCompensated):
                    record = msgspec.structs.replace(record, run=f"{self._random.getrandbits(64):016x}")

    return patch.object(Publisher, "publish", anew)


def commit_beyond_the_lowest_unfinished() -> Any:
    """The committed offset is behind the last record that began."""

    def all_of_it(self: OffsetTracker) -> Committed | None:
        return Committed(self._next) if self._changed else None

    return patch.object(OffsetTracker, "committable", all_of_it)


def commit_of_what_another_owns() -> Any:
    """A group takes the offsets of whoever sends some."""

    async def commit(self: MemoryLog, group: str, _member: str, offsets: Any) -> None:
        for tp, place in offsets.items():
            self._committed[group, tp] = place

    return patch.object(MemoryLog, "commit", commit)


def save_without_comparing() -> Any:
    """A store takes whatever it is given: an instance that lags overwrites what a newer one has saved."""
    save = MemoryStore.save

    async def overwrite(self: MemoryStore, advances: Any) -> None:
        found = [(advance, self._checkpoints.get(advance.tp)) for advance in advances]
        await save(self, [a._replace(expected=None if there is None else there.offset) for a, there in found])

    return patch.object(MemoryStore, "save", overwrite)


def cache_forgets_what_is_stored() -> Any:
    """A saga that has left the memory is taken as new when a record of it comes."""
    return patch.object(Shard, "missing", lambda *_: set())


def dead_letters_dropped() -> Any:
    """What nobody can read is passed over in silence."""

    async def nowhere(*_: object) -> bool:
        return True

    return patch.object(DeadLetters, "put", nowhere)


def decision_taken_as_sent() -> Any:
    """A decision counts as said when it is not in the log."""

    async def once(self: Outbound, topic: str, *, key: str, value: bytes, headers: Any, wanted: object) -> Any:
        try:
            return await self._producer.send(topic, key=key, value=value, headers=headers)
        except BrokerUnavailable:
            return Appended(topic, 0, 0, 0)

    return patch.multiple(Outbound, bytes=once, _begin=lambda *_: None)


def key_without_the_start() -> Any:
    """Two starts of one saga share their idempotency keys (rule 13)."""

    def shared(self: Job) -> str:
        return ids.idempotency_key(self.saga_id, "0" * 16, self.step.name, self.key_round or self.round)

    return patch.object(Job, "step_key", property(shared))


def late_completion_triggers() -> Any:
    """A worker goes on from a completion that came after its due."""
    begin = Runner.begin

    def unaware(self: Runner, record: Any, *args: Any) -> Any:
        if isinstance(record, StepCompleted):
            record = msgspec.structs.replace(record, due_ms=2**53)
        return begin(self, record, *args)

    return patch.object(Runner, "begin", unaware)


def settled_before_its_lane() -> Any:
    """A step says that it has settled as soon as it is asked, not behind what may complete it (rule 15)."""
    add = Lanes.add

    def overtaking(self: Lanes, delivery: Delivery) -> None:
        try:
            record = decode(delivery.message.key, delivery.message.value, delivery.message.headers)
        except Undecodable:
            record = None
        if isinstance(record, Compensate) and record.settle:
            key = (delivery.message.key, f"{delivery.step}@{delivery.message.offset}")
            self._open(key).deliveries.append(delivery)
        else:
            add(self, delivery)

    return patch.object(Lanes, "add", overtaking)


def time_outs_count_at_any_time() -> Any:
    """A time-out of the saga-log counts although its own append time is not past the due (rule 15)."""
    return patch.object(evolve, "waits_on", lambda contract, state, entry, key: _only_in_flight(state, key))


def _only_in_flight(state: SagaState, key: Any) -> str | None:
    return None if state.instance(key).in_flight else "stale"


class _GaveUp(Exception):  # noqa: N818
    """Nobody waits for another try."""


class _Hasty:
    """A clock for those who do not wait."""

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, _seconds: float) -> None:
        raise _GaveUp


def completed_children_stay() -> Any:
    """A sub-saga that has completed says it is undone, and leaves what it has done (rule 19)."""
    is_compensated = property(lambda state: state.outcome is not None and state.outcome.kind == "compensated")
    return patch.object(SagaState, "is_unwanted", is_compensated)


def undoing_is_told_before_it_is_done() -> Any:
    """A sub-saga answers that it is undone as soon as it is asked (rule 19)."""
    undo_requested = evolve.OF_SAGA[UndoRequested]

    def hasty(contract: Any, state: SagaState, entry: Any, record: UndoRequested) -> Any:
        note = undo_requested(contract, state, entry, record)
        if note is None and state.started:
            state.undo_answered = record.generation
            owe(state, Decision("undone", generation=record.generation))
        return note

    return patch.dict(evolve.OF_SAGA, {UndoRequested: hasty})
