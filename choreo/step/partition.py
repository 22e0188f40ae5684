"""One partition of a worker: what is in work, what is finished, what can be committed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from choreo.broker.offsets import OffsetTracker
from choreo.broker.port import Committed, Message, TopicPartition
from choreo.observe.log import about_from_here
from choreo.step.lanes import Lane, Lanes, Sent, Work
from choreo.step.options import Options
from choreo.step.pauses import Pauses
from choreo.step.perform import Performer
from choreo.step.place import Place
from choreo.step.route import CANCELLING, PAUSING, Delivery, Routes


class Partition:
    """A partition that is ours.

    Attributes:
        finished: records finished since the last commit.
    """

    def __init__(
        self,
        tp: TopicPartition,
        place: Place,
        tracker: OffsetTracker,
        routes: Routes,
        performer: Performer,
        tasks: asyncio.TaskGroup,
        *,
        service: str,
        options: Options,
    ) -> None:
        self.tp = tp
        self.finished = 0
        self._place = place
        self._tracker = tracker
        self._routes = routes
        self._performer = performer
        self._service = service
        self._unfinished_max = options.unfinished_max
        self._lanes = Lanes(str(tp), tasks, self._begin, self._finish, concurrency=options.concurrency)
        self._deliveries_left: dict[int, int] = {}  # of records that concern more than one of our steps
        self._committed: Committed | None = None
        self._pauses = Pauses(place.saga)

    def take(self, messages: Sequence[Message], monotonic: float) -> list[tuple[TopicPartition, int]]:
        """Begin with the records that were polled at that moment. Returns the places of those that are for us."""
        self._place.time.see(messages[-1].timestamp_ms, monotonic)
        tracker, match = self._tracker, self._routes.match
        ours: list[tuple[TopicPartition, int]] = []
        begun = -1
        for message in messages:
            steps = match(message)
            if not steps:
                continue
            if steps is PAUSING:
                self._pauses.see(message)
                continue
            if steps is CANCELLING:
                self._place.cancellations.see(message)
                continue
            if self._pauses.hold(message) or tracker.is_finished(message.offset):
                continue
            begun = message.offset
            tracker.begin(begun)
            ours.append((self.tp, begun))
            if len(steps) > 1:
                self._deliveries_left[begun] = len(steps)
            for step in steps:
                self._lanes.add(Delivery(message, step))
        if begun != messages[-1].offset:
            # What is not for us is not tracked one by one; the last of it is, so that the commit moves on behind it.
            tracker.begin(messages[-1].offset)
            tracker.finish(messages[-1].offset)
            self.finished += 1
        return ours

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in work."""
        return self._lanes.busy == 0

    @property
    def is_full(self) -> bool:
        """Whether it should get no more records for now."""
        return self._tracker.unfinished >= self._unfinished_max or self._tracker.tail_is_nearly_full

    @property
    def has_room(self) -> bool:
        """Whether a paused one should get records again: well below full, so that it does not change all the time."""
        return self._tracker.unfinished <= self._unfinished_max // 2 and not self._tracker.tail_is_nearly_full

    def to_commit(self) -> Committed | None:
        """The place to commit, if it is another than the last one committed."""
        place = self._tracker.committable()
        return None if place == self._committed else place

    def was_committed(self, place: Committed) -> None:
        self._committed = place
        self.finished = 0

    def stop(self) -> None:
        """Begin nothing new."""
        self._lanes.stop()

    async def drain(self, timeout_s: float) -> Collection[asyncio.Task[None]]:
        """Stop, and end what is in work: by itself if it does in time, cancelled otherwise. See ``Lanes.drain``."""
        return await self._lanes.drain(timeout_s)

    def _begin(self, delivery: Delivery, lane: Lane) -> Sent | Work | None:
        message = delivery.message
        about_from_here(
            service=self._service,
            saga=self._place.saga,
            saga_id=(message.key or b"").decode("utf-8", "replace"),
            step=delivery.step,
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
        )
        return self._performer.begin(delivery, lane, self._place)

    def _finish(self, delivery: Delivery) -> None:
        offset = delivery.message.offset
        left = self._deliveries_left.pop(offset, 1) - 1
        if left:
            self._deliveries_left[offset] = left
            return
        self._tracker.finish(offset)
        self.finished += 1
