"""Reading as a member of a group."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from aiokafka import AIOKafkaConsumer
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
    UnsupportedCodecError,
)
from aiokafka.structs import TopicPartition as KafkaTopicPartition

from choreo.broker.kafka import internals
from choreo.broker.kafka.errors import REBALANCED, translated, translating
from choreo.broker.kafka.fetching import FETCH_WAIT_MS, Fetching, Quarantine
from choreo.broker.kafka.partitioner import Partitioner
from choreo.broker.kafka.settings import KafkaSettings
from choreo.broker.kafka.stalls import StallWatch
from choreo.broker.port import (
    COMMIT_METADATA_MAX_CHARS,
    AssignmentListener,
    Committed,
    Message,
    TopicPartition,
)
from choreo.errors import BrokerError, BrokerUnavailable, CommitRefused

log = logging.getLogger(__name__)

STOP_S = 5.0
END_OFFSETS_S = 5.0
REPLACE_BACKOFF_S_BASE = 0.5
REPLACE_BACKOFF_S_MAX = 30.0

# Another consumer would fare no better.
HOPELESS = (TopicAuthorizationFailedError, GroupAuthorizationFailedError, UnsupportedCodecError)

Offsets = Callable[[Collection[TopicPartition]], Awaitable[Mapping[TopicPartition, tuple[int, int]]]]


class KafkaConsumer:
    """A member of a group, on an aiokafka consumer that is replaced when it breaks or stalls.

    ``on_assigned`` runs in a task of its own while its partitions deliver nothing, because aiokafka sends no heartbeats
    while its listener is busy. What a listener raises is raised by the next ``poll``.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        group: str,
        topics: Collection[str],
        *,
        on_assigned: AssignmentListener,
        on_revoked: AssignmentListener,
        offsets: Offsets,
        quarantine: Quarantine,
        partitioner: Partitioner,
    ) -> None:
        self._settings = settings
        self._group = group
        self._topics = sorted(topics)
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._offsets = offsets
        self._quarantine = quarantine
        self._partitioner = partitioner
        self._kafka: AIOKafkaConsumer | None = None
        self._fetching: Fetching | None = None
        self._ours: frozenset[TopicPartition] = frozenset()
        self._held_back: set[TopicPartition] = set()  # paused by the user, before or while on_assigned runs
        self._assigning: asyncio.Task[None] | None = None
        self._joining_since: float | None = None
        self._listener_error: Exception | None = None
        self._commits: set[asyncio.Task[None]] = set()
        self._watch = StallWatch(settings.stall_timeout_ms / 1_000, time.monotonic())
        self._look: asyncio.Task[bool] | None = None
        self._replace_at = 0.0
        self._replace_backoff_s = REPLACE_BACKOFF_S_BASE
        self.closed = False
        self.replaced = 0

    async def start(self) -> None:
        """Connect and begin to join; the first assignment comes with a later poll.

        Raises:
            KafkaError, OSError, TimeoutError: no broker answers.
        """
        kafka = new_consumer(
            self._settings,
            group_id=self._group,
            session_timeout_ms=self._settings.session_timeout_ms,
            heartbeat_interval_ms=self._settings.heartbeat_interval_ms,
            rebalance_timeout_ms=self._settings.rebalance_timeout_ms,
            # A join is answered when all members have come, so it may take as long as a rebalance.
            request_timeout_ms=self._settings.rebalance_timeout_ms + self._settings.request_timeout_ms,
            # One assignor: aiokafka would send a join for each. Sticky, because moving a partition means reading much
            # of it again. A class of our own, because it keeps its member's partitions in class attributes.
            partition_assignment_strategy=[type("StickyAssignor", (StickyPartitionAssignor,), {})],
        )
        await started(kafka, self._settings.open_timeout_ms / 1_000)
        self._kafka = kafka
        self._fetching = Fetching(kafka, self._quarantine, lambda tp: self._start_of(kafka, tp), self._partitioner)
        self._joining_since = time.monotonic()
        self._watch.reset()
        kafka.subscribe(self._topics, listener=_Listener(self, kafka))

    async def poll(self, *, timeout_s: float, records_max: int = 500) -> Sequence[Message]:
        if self.closed:
            raise BrokerError(f"group {self._group}: the consumer is closed")
        if self._listener_error is not None:
            error, self._listener_error = self._listener_error, None
            raise error
        if self._fetching is None:
            await self._replace_or_wait(timeout_s)
            return ()
        try:
            messages = await self._fetching.poll(timeout_s, records_max)
        except HOPELESS as error:
            raise translated(error, f"group {self._group}") from error
        except KafkaError as error:
            log.warning("group %s: the consumer is replaced after: %r", self._group, error)
            await self._drop()
            return ()
        if messages:
            self._replace_backoff_s = REPLACE_BACKOFF_S_BASE
        elif self._seems_stalled():
            log.warning("group %s: the consumer is replaced: it lags and does not move", self._group)
            await self._drop()
        return messages

    def assignment(self) -> frozenset[TopicPartition]:
        return self._ours

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        if not offsets:
            return
        if self._kafka is None:
            raise BrokerUnavailable(f"group {self._group}: not connected")
        self._check_commit(offsets)
        # In a task, so that a rebalance can end it. aiokafka repeats a commit for as long as the coordinator is away,
        # and would then do so under the next generation, for partitions that may be somebody else's by that time.
        commit = asyncio.create_task(
            self._kafka.commit({KafkaTopicPartition(*tp): tuple(place) for tp, place in offsets.items()}),
            name=f"kafka/{self._group}/commit",
        )
        self._commits.add(commit)
        try:
            done, _ = await asyncio.wait({commit}, timeout=self._settings.commit_timeout_ms / 1_000)
        finally:
            self._commits.discard(commit)
            if not commit.done():
                commit.cancel()
        if not done:
            raise BrokerUnavailable(
                f"group {self._group}: no answer to a commit in {self._settings.commit_timeout_ms} ms"
            )
        if commit.cancelled():
            raise CommitRefused(f"group {self._group}: a rebalance came first")
        error = commit.exception()
        if isinstance(error, REBALANCED):
            raise CommitRefused(f"group {self._group}: {error}") from error
        if error is not None:
            raise translated(error, f"group {self._group}, commit") from error

    def _check_commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        for tp, place in offsets.items():
            if tp not in self._ours:
                raise CommitRefused(f"group {self._group}: {tp} is not ours (any more)")
            if len(place.metadata) > COMMIT_METADATA_MAX_CHARS or not place.metadata.isascii():
                raise BrokerError(f"{tp}: commit metadata is ASCII of at most {COMMIT_METADATA_MAX_CHARS} characters")

    async def committed(self, tp: TopicPartition) -> Committed | None:
        if self._kafka is None:
            raise BrokerUnavailable(f"group {self._group}: not connected")
        with translating(f"group {self._group}, committed offset of {tp}"):
            async with asyncio.timeout(self._settings.commit_timeout_ms / 1_000):
                found = await internals.fetch_committed(self._kafka, KafkaTopicPartition(*tp))
        return None if found is None else Committed(found.offset, found.metadata)

    async def end_offset(self, tp: TopicPartition) -> int:
        return (await self._offsets((tp,)))[tp][1]

    def worked_on(self, places: Sequence[tuple[TopicPartition, int]]) -> None:
        if self._fetching is not None:
            self._fetching.worked_on(places)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        if tp in self._ours and self._fetching is not None:
            self._fetching.seek(KafkaTopicPartition(*tp), offset)

    def pause(self, tps: Collection[TopicPartition]) -> None:
        ours = self._ours.intersection(tps)
        self._held_back |= ours
        if self._fetching is not None and self._assigning is None:
            self._fetching.pause([KafkaTopicPartition(*tp) for tp in ours])

    def resume(self, tps: Collection[TopicPartition]) -> None:
        ours = self._ours.intersection(tps)
        self._held_back -= ours
        if self._fetching is not None and self._assigning is None:
            self._fetching.resume([KafkaTopicPartition(*tp) for tp in ours])

    def lag(self, tp: TopicPartition) -> int | None:
        if tp not in self._ours or self._fetching is None:
            return None
        return self._fetching.lag(KafkaTopicPartition(*tp))

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._assigning is not None:
            self._assigning.cancel()
            await asyncio.wait({self._assigning})
        await self._stop()
        self._ours = frozenset()

    # Called by aiokafka, through the listener, in the coordinator's task.

    async def partitions_revoked(self, kafka: AIOKafkaConsumer) -> None:
        """A rebalance begins: everything is given up, to be assigned again or not."""
        if kafka is not self._kafka:
            return
        self._joining_since = time.monotonic()
        await self._give_up()

    def partitions_assigned(self, kafka: AIOKafkaConsumer, tps: Collection[KafkaTopicPartition]) -> None:
        """A rebalance has ended."""
        if kafka is not self._kafka or self._fetching is None:
            return
        self._joining_since = None
        self._watch.reset()
        self._ours = frozenset(TopicPartition(*tp) for tp in tps)
        self._held_back.clear()
        self._fetching.assigned(tps)
        if tps:
            self._fetching.pause(tps)
            self._assigning = asyncio.create_task(self._take_over(self._fetching), name=f"kafka/{self._group}/assigned")

    async def _take_over(self, fetching: Fetching) -> None:
        ours = self._ours
        try:
            await self._on_assigned(ours)
        except Exception as error:  # noqa: BLE001 -- it belongs to whoever polls, not to aiokafka, which would only log it
            self._listener_error = error
            return
        finally:
            self._assigning = None
        fetching.resume([KafkaTopicPartition(*tp) for tp in ours - self._held_back])

    async def _give_up(self) -> None:
        if self._assigning is not None:
            await asyncio.wait({self._assigning})  # first things first: nobody is told of a loss before the gain
        if self._ours:
            try:
                await self._on_revoked(self._ours)
            except Exception as error:  # noqa: BLE001 -- as above
                self._listener_error = error
        lost, self._ours = self._ours, frozenset()
        self._held_back.clear()
        if self._fetching is not None:
            self._fetching.assigned([KafkaTopicPartition(*tp) for tp in lost])
        for commit in self._commits:
            commit.cancel()

    async def _start_of(self, kafka: AIOKafkaConsumer, tp: KafkaTopicPartition) -> int:
        """Where the group begins to read the partition."""
        if (found := await internals.fetch_committed(kafka, tp)) is not None:
            return int(found.offset)
        offsets = await self._offsets((TopicPartition(*tp),))
        return offsets[TopicPartition(*tp)][0]

    def _seems_stalled(self) -> bool:
        """What the last look said; begins another when it is time. Looking takes long when the broker is away."""
        if self._look is None:
            if self._watch.due(time.monotonic()):
                self._look = asyncio.create_task(self._is_stalled(), name=f"kafka/{self._group}/stalled")
            return False
        if not self._look.done():
            return False
        look, self._look = self._look, None
        return look.result()

    async def _is_stalled(self) -> bool:
        kafka, fetching, now = self._kafka, self._fetching, time.monotonic()
        assert kafka is not None
        assert fetching is not None
        watched = [KafkaTopicPartition(*tp) for tp in self._ours - self._held_back] if self._assigning is None else []
        try:
            known = await self._offsets([TopicPartition(*tp) for tp in watched])
        except BrokerError:
            self._watch.reset()  # nobody moves while the broker is away
            if self._joining_since is not None:
                self._joining_since = now
            return False
        if self._joining_since is not None:
            return now - self._joining_since > self._watch.timeout_s + self._settings.rebalance_timeout_ms / 1_000
        ends = {tp: known[TopicPartition(*tp)][1] for tp in watched}
        try:
            # Its own ends, if it can still ask: they stop at an open transaction, where waiting is right.
            async with asyncio.timeout(END_OFFSETS_S):
                ends = await kafka.end_offsets(watched) if watched else {}
        except (KafkaError, OSError, TimeoutError):
            log.warning("group %s: the broker answers, but not this consumer", self._group)
        return self._watch.stalled({tp: fetching.position(tp) for tp in watched}, ends, time.monotonic())

    async def _drop(self) -> None:
        """Let go of a consumer that is of no use any more; a later poll makes another."""
        await self._give_up()
        await self._stop()
        self._replace_at = time.monotonic() + self._replace_backoff_s
        self._replace_backoff_s = min(self._replace_backoff_s * 2, REPLACE_BACKOFF_S_MAX)

    async def _replace_or_wait(self, timeout_s: float) -> None:
        wait_s = self._replace_at - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(min(wait_s, timeout_s))
            return
        try:
            await self.start()
            self.replaced += 1
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("group %s: no new consumer yet: %s", self._group, error)
            self._replace_at = time.monotonic() + self._replace_backoff_s

    async def _stop(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        kafka, fetching = self._kafka, self._fetching
        self._kafka = self._fetching = None
        if kafka is not None and fetching is not None:
            await fetching.close()
            await stopped(kafka, STOP_S)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, consumer: KafkaConsumer, kafka: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._kafka = kafka

    async def on_partitions_revoked(self, revoked: Collection[KafkaTopicPartition]) -> None:  # noqa: ARG002
        await self._consumer.partitions_revoked(self._kafka)

    async def on_partitions_assigned(self, assigned: Collection[KafkaTopicPartition]) -> None:
        self._consumer.partitions_assigned(self._kafka, assigned)


def new_consumer(settings: KafkaSettings, **options: object) -> AIOKafkaConsumer:
    """An aiokafka consumer with the options that are right for all of ours; not started."""
    return AIOKafkaConsumer(
        **settings.connection(),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=FETCH_WAIT_MS,
        **{"isolation_level": "read_committed", **options},
    )


async def started(kafka: AIOKafkaConsumer, timeout_s: float) -> None:
    """Connect, or clean up and raise."""
    try:
        async with asyncio.timeout(timeout_s):
            await kafka.start()
            await internals.fetch_lean(kafka)
    except BaseException:
        await stopped(kafka, STOP_S)
        raise


async def stopped(kafka: AIOKafkaConsumer, timeout_s: float) -> None:
    """Stop it in good order if that is done within the time, anyhow otherwise."""
    # In a task, because ``stop`` may raise the CancelledError of a fetch that it has cancelled itself.
    stop = asyncio.create_task(kafka.stop(), name="kafka/stop")
    await asyncio.wait({stop}, timeout=timeout_s)
    if not stop.done() or stop.cancelled() or stop.exception() is not None:
        stop.cancel()
        log.info("a consumer did not stop in good order")
        await internals.abandon(kafka)
