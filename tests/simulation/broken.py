"""Builds that are broken on purpose, each by a patch of production code: the simulation has to notice every one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import msgspec

from choreo.core import SagaState
from choreo.messages.records import StepCompensated, StepCompleted
from choreo.saga_log.shard import Shard
from choreo.step import answer, worker
from choreo.step.answered import Answered, Scanned
from choreo.step.lanes import Lane, Lanes
from choreo.step.partition import Partition
from choreo.step.publish import Publisher
from choreo.step.route import Delivery
from choreo.store.port import Advance


def commit_before_acknowledgement() -> Any:
    """A record is finished when its handler begins, not when its answer is in the log."""

    async def work(self: Partition, delivery: Delivery, lane: Lane) -> None:
        if self._deliveries_left.get(delivery.message.offset, 1) == 1:
            self._tracker.finish(delivery.message.offset)
            self.finished += 1
        else:
            self._deliveries_left[delivery.message.offset] -= 1
        await self._performer.perform(delivery, lane, self._place)

    return patch.object(Partition, "_work", work)


def random_run_ids() -> Any:
    """Every publishing of an outcome draws a run id of its own."""
    publish = Publisher.publish

    async def with_another_run(self: Publisher, topic: str, record: Any, **options: Any) -> Any:
        if isinstance(record, StepCompleted | StepCompensated):
            record = msgspec.structs.replace(record, run=f"{self._random.getrandbits(64):016x}")
        return await publish(self, topic, record, **options)

    return patch.object(Publisher, "publish", with_another_run)


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
        untimed = set(self._untimed)
        admit(self, states)
        self._untimed = untimed

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
        lane = self._lanes[key] = Lane(self._slots)
        lane.task = self._tasks.create_task(self._run(key, lane))
        lane.deliveries.append(delivery)

    return patch.object(Lanes, "add", side_by_side)


def reject_is_always_certain() -> Any:
    """A reject says that there is no effect even where an earlier run may have left one (rule 5)."""
    answer_of_step = answer.answer_of_step

    def certain(job: Any, ended: Any) -> Any:
        return answer_of_step(msgspec.structs.replace(job, is_fresh=True), ended._replace(in_doubt=False))

    return patch.object(answer, "answer_of_step", certain)


BROKEN = {
    each.__name__: each
    for each in (
        commit_before_acknowledgement,
        random_run_ids,
        no_scan_on_assignment,
        no_memory_of_answers,
        timers_lost_on_restart,
        store_leads_the_log,
        owed_not_sent_on_takeover,
        lanes_not_serial,
        reject_is_always_certain,
    )
}


@contextmanager
def broken(name: str) -> Iterator[None]:
    """Run with a broken build in this block."""
    with BROKEN[name]():
        yield
