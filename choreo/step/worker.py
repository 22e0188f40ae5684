"""A member of a service's consumer group: polls, hands records to partitions, commits, follows rebalances."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from prometheus_client import Counter

from choreo.broker.offsets import OffsetTracker
from choreo.broker.port import Broker, Committed, Consumer, Message, TopicPartition
from choreo.broker.topics import saga_topic
from choreo.clock import Clock
from choreo.errors import BrokerError, CommitRefused
from choreo.observe.metrics import Metrics
from choreo.step.answered import Answered, scan
from choreo.step.cancelling import Cancellations
from choreo.step.options import Options
from choreo.step.partition import Partition
from choreo.step.perform import Performer
from choreo.step.place import BrokerTime, Place
from choreo.step.route import Routes
from choreo.step.service import Service

logger = logging.getLogger(__name__)

BUSY_POLL_TIMEOUT_S = 0.01  # while something is paused or draining, so that it is looked after soon
OUTAGE_PAUSE_S = 0.5

_PLACE = attrgetter("topic", "partition")


class Worker:
    """Reads the log for one service."""

    def __init__(
        self,
        service: Service,
        routes: Routes,
        performer: Performer,
        broker: Broker,
        *,
        clock: Clock,
        metrics: Metrics,
        options: Options,
    ) -> None:
        self._service = service
        self._routes = routes
        self._performer = performer
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self._options = options
        self._consumed: dict[str, Counter] = {}  # by topic
        self._saga_of_topic = {saga_topic(saga): saga for saga, _ in service.contracts}
        self._partitions: dict[TopicPartition, Partition] = {}
        self._paused: set[TopicPartition] = set()
        self._commit_lock = asyncio.Lock()
        self._is_stopping = False
        self._polled_at: float | None = None
        self._was_assigned = False
        self._consumer: asyncio.Future[Consumer] | None = None
        self._tasks: asyncio.TaskGroup | None = None

    def stop(self) -> None:
        """Take no more records, and end when those in work have ended; see ``Options.shutdown_timeout_s``."""
        self._is_stopping = True

    def not_ready_because(self) -> str | None:
        """Why the service cannot do its work now; ``None`` if it can."""
        group = self._service.group
        if self._is_stopping:
            return f"{group} is stopping"
        if not self._was_assigned or self._polled_at is None:
            return f"{group} has not been assigned its partitions yet"
        if (silent_s := self._clock.monotonic() - self._polled_at) > self._options.ready_within_s:
            return f"{group} has not polled for {silent_s:.0f} s"
        return None

    async def run(self) -> None:
        """Work until stopped. Cancelled, it commits nothing, as if the process had died."""
        self._consumer = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as self._tasks:
            consumer = await self._broker.consumer(
                self._service.group, self._routes.topics, on_assigned=self._assigned, on_revoked=self._revoked
            )
            self._consumer.set_result(consumer)
            try:
                await self._poll_until_stopped(consumer)
                await self._end(self._partitions.values(), timeout_s=0)
                await self._commit(self._partitions)
            finally:
                # Before we leave the group: the next owner of a partition must not run what still runs here.
                await self._end(self._partitions.values(), timeout_s=0)
                await consumer.close()
                for tp in self._partitions:
                    self._metrics.drop_partition(tp.topic, tp.partition, self._service.group)

    async def _poll_until_stopped(self, consumer: Consumer) -> None:
        options, clock = self._options, self._clock
        last_poll = self._metrics.last_poll.labels(self._service.group)
        commit_at = clock.monotonic() + options.commit_interval_s
        give_up_at: float | None = None
        while True:
            if self._is_stopping:
                # Polling goes on while handlers end: it keeps our membership, and what they finish can be committed.
                if give_up_at is None:
                    give_up_at = clock.monotonic() + options.shutdown_timeout_s
                    for partition in self._partitions.values():
                        partition.stop()
                if all(each.is_idle for each in self._partitions.values()) or clock.monotonic() >= give_up_at:
                    return
                consumer.pause(tuple(self._partitions))
            else:
                self._pause_and_resume(consumer)
            timeout_s = BUSY_POLL_TIMEOUT_S if self._paused or self._is_stopping else options.poll_timeout_s
            messages = await consumer.poll(timeout_s=timeout_s)
            now = self._polled_at = clock.monotonic()
            last_poll.set(clock.now_ms() / 1_000)
            if messages and not self._is_stopping:
                self._take(consumer, messages, now)
            finished = sum(partition.finished for partition in self._partitions.values())
            if now >= commit_at or finished >= options.commit_records:
                await self._commit(self._partitions)
                self._show_lag(consumer)
                commit_at = clock.monotonic() + options.commit_interval_s

    def _take(self, consumer: Consumer, messages: Sequence[Message], now: float) -> None:
        ours: list[tuple[TopicPartition, int]] = []
        for (topic, number), taken in groupby(messages, _PLACE):
            partition = self._partitions.get(TopicPartition(topic, number))
            if partition is not None:  # otherwise it was given up while the records were on their way
                records = list(taken)
                if (consumed := self._consumed.get(topic)) is None:
                    consumed = self._metrics.messages_consumed.labels(topic, self._service.group)
                    self._consumed[topic] = consumed
                consumed.inc(len(records))
                ours += partition.take(records, now)
        if ours:
            consumer.worked_on(ours)

    def _pause_and_resume(self, consumer: Consumer) -> None:
        full = {tp for tp, each in self._partitions.items() if each.is_full and tp not in self._paused}
        if full:
            consumer.pause(full)
            self._paused |= full
        roomy = {tp for tp in self._paused if tp not in self._partitions or self._partitions[tp].has_room}
        if roomy:
            consumer.resume(roomy & self._partitions.keys())
            self._paused -= roomy

    async def _assigned(self, tps: Collection[TopicPartition]) -> None:
        assert self._consumer is not None
        consumer = await self._consumer
        self._metrics.consumer_rebalances.labels(self._service.group, "assigned").inc()
        logger.info("%s gets %s", self._service.group, ", ".join(map(str, tps)) or "no partitions")
        for tp in tps:
            if self._is_stopping:
                return
            if (held := self._partitions.pop(tp, None)) is not None:
                await self._end([held], timeout_s=0)  # given again without having been taken: its position is another
            if (opened := await self._open(consumer, tp)) is not None:
                self._partitions[tp] = opened
        self._paused.clear()  # a rebalance resumes everything
        self._was_assigned = True

    async def _open(self, consumer: Consumer, tp: TopicPartition) -> Partition | None:
        """Find our place in a partition, and what is answered beyond it. Tries again through outages, until stopped."""
        while not self._is_stopping:
            try:
                return await self._try_open(consumer, tp)
            except BrokerError as error:
                logger.warning("cannot begin with %s, trying again: %s", tp, error)
                await self._clock.sleep(OUTAGE_PAUSE_S)
        return None

    async def _try_open(self, consumer: Consumer, tp: TopicPartition) -> Partition:
        assert self._tasks is not None
        committed = await consumer.committed(tp)
        first, end = (await self._broker.offsets([tp]))[tp]
        if committed is None or not first <= committed.offset <= end:
            if committed is not None:
                logger.warning("%s: offset %d is gone; beginning at %d", tp, committed.offset, first)
            committed = Committed(first)
        saga = self._saga_of_topic[tp.topic]
        answered = Answered(self._options.answers_remembered)
        cancellations = Cancellations(saga, self._options.answers_remembered)
        is_cancelled = self._routes.may_be_cancelled(tp.topic)
        time = BrokerTime()
        if committed.offset < end:
            # An inbox knows what is answered. Then only the broker's time is looked for, in the last record.
            looks_back = self._service.inbox is None or is_cancelled
            start = committed.offset if looks_back else max(committed.offset, end - 1)
            scanned = await scan(
                self._broker,
                tp,
                start=start,
                end=end,
                source=self._service.source.encode(),
                own_steps=self._routes.own_steps(tp.topic) if self._service.inbox is None else frozenset(),
                answered=answered,
                cancellations=cancellations if is_cancelled else None,
            )
            self._metrics.records_replayed.labels("scan").inc(scanned.records)
            if scanned.append_ms_newest is not None:
                time.see(scanned.append_ms_newest, self._clock.monotonic())
        consumer.seek(tp, committed.offset)
        return Partition(
            tp,
            Place(saga, end, answered, time, cancellations),
            OffsetTracker(committed.offset, committed.metadata),
            self._routes,
            self._performer,
            self._tasks,
            service=self._service.name,
            options=self._options,
        )

    async def _revoked(self, tps: Collection[TopicPartition]) -> None:
        self._metrics.consumer_rebalances.labels(self._service.group, "revoked").inc()
        logger.info("%s gives up %s", self._service.group, ", ".join(map(str, tps)) or "no partitions")
        leaving = {tp: self._partitions.pop(tp) for tp in tps if tp in self._partitions}
        self._paused.clear()
        await self._end(leaving.values(), timeout_s=self._options.drain_timeout_s)
        await self._commit(leaving)
        for tp in leaving:
            self._metrics.drop_partition(tp.topic, tp.partition, self._service.group)

    async def _end(self, partitions: Collection[Partition], *, timeout_s: float) -> None:
        """End what is in work there. What is not finished by then is delivered again to the next owner."""
        for stubborn in await asyncio.gather(*(partition.drain(timeout_s) for partition in tuple(partitions))):
            for task in stubborn:
                logger.error(
                    "%s does not end though it was cancelled; its handler may overlap with the next run",
                    task.get_name(),
                )

    async def _commit(self, partitions: Mapping[TopicPartition, Partition]) -> None:
        assert self._consumer is not None
        consumer = await self._consumer
        async with self._commit_lock:  # a rebalance may commit beside the loop; an older place must not come last
            places = {tp: place for tp, each in partitions.items() if (place := each.to_commit()) is not None}
            if not places:
                return
            try:
                await consumer.commit(places)
            except CommitRefused as error:
                logger.info("%s: commit refused, the next owner will know the answers: %s", self._service.group, error)
            except BrokerError as error:
                logger.warning("%s: cannot commit now, trying later: %s", self._service.group, error)
            else:
                for tp, place in places.items():
                    if tp in partitions:
                        partitions[tp].was_committed(place)

    def _show_lag(self, consumer: Consumer) -> None:
        for tp in self._partitions:
            if (lag := consumer.lag(tp)) is not None:
                self._metrics.consumer_lag.labels(tp.topic, str(tp.partition), self._service.group).set(lag)
