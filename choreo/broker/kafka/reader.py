"""Reading without a group, from wherever one likes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition as KafkaTopicPartition

from choreo.broker.kafka.consumer import END_OFFSETS_S, HOPELESS, Offsets, new_consumer, started, stopped
from choreo.broker.kafka.errors import translated
from choreo.broker.kafka.fetching import Fetching, Quarantine
from choreo.broker.kafka.partitioner import Partitioner
from choreo.broker.kafka.settings import KafkaSettings
from choreo.broker.kafka.stalls import StallWatch
from choreo.broker.port import Message, TopicPartition
from choreo.errors import BrokerError

log = logging.getLogger(__name__)

STOP_S = 1.0  # it is in no group, so that nobody waits for its good-bye


class KafkaReader:
    """Reads the partitions that were sought, on an aiokafka consumer that is replaced when it breaks or stalls."""

    def __init__(
        self, settings: KafkaSettings, *, offsets: Offsets, quarantine: Quarantine, partitioner: Partitioner
    ) -> None:
        self._settings = settings
        self._offsets = offsets
        self._quarantine = quarantine
        self._partitioner = partitioner
        self._kafka: AIOKafkaConsumer | None = None
        self._fetching: Fetching | None = None
        self._sought: dict[KafkaTopicPartition, int] = {}
        self._watch = StallWatch(settings.stall_timeout_ms / 1_000, time.monotonic())
        self._look: asyncio.Task[bool] | None = None
        self.closed = False

    async def start(self) -> None:
        """Connect.

        Raises:
            KafkaError, OSError, TimeoutError: no broker answers.
        """
        kafka = new_consumer(self._settings, request_timeout_ms=self._settings.request_timeout_ms)
        await started(kafka, self._settings.open_timeout_ms / 1_000)
        self._kafka, self._fetching = kafka, Fetching(kafka, self._quarantine, self._start_of, self._partitioner)
        self._watch.reset()
        self._assign(kafka, self._fetching)

    async def poll(self, *, timeout_s: float, records_max: int = 500) -> Sequence[Message]:
        if self.closed:
            raise BrokerError("the reader is closed")
        if not self._sought:
            await asyncio.sleep(timeout_s)
            return ()
        if self._fetching is None:
            await self._replace(timeout_s)
            return ()
        try:
            messages = await self._fetching.poll(timeout_s, records_max)
        except HOPELESS as error:
            raise translated(error, "read") from error
        except KafkaError as error:
            log.warning("a reader is replaced after: %r", error)
            await self._stop()
            return ()
        if not messages and self._seems_stalled():
            log.warning("a reader is replaced: it lags and does not move")
            await self._stop()
        return messages

    def worked_on(self, places: Sequence[tuple[TopicPartition, int]]) -> None:
        if self._fetching is not None:
            self._fetching.worked_on(places)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        sought = KafkaTopicPartition(*tp)
        new = sought not in self._sought
        self._sought[sought] = offset
        if self._kafka is None or self._fetching is None:
            return
        if new:
            self._remember()
            self._sought[sought] = offset
            self._assign(self._kafka, self._fetching)
        else:
            self._fetching.seek(sought, offset)

    def position(self, tp: TopicPartition) -> int:
        sought = KafkaTopicPartition(*tp)
        if sought not in self._sought:
            raise BrokerError(f"{tp} was not sought by this reader")
        position = None if self._fetching is None else self._fetching.position(sought)
        return self._sought[sought] if position is None else position

    async def close(self) -> None:
        self.closed = True
        await self._stop()

    def _assign(self, kafka: AIOKafkaConsumer, fetching: Fetching) -> None:
        """All partitions at once: aiokafka forgets those it had, and where it was in them."""
        if self._sought:
            kafka.assign(list(self._sought))
            fetching.assigned(self._sought)
            for tp, offset in self._sought.items():
                fetching.seek(tp, offset)

    def _remember(self) -> None:
        if self._fetching is not None:
            for tp in self._sought:
                position = self._fetching.position(tp)
                if position is not None:
                    self._sought[tp] = position

    async def _start_of(self, tp: KafkaTopicPartition) -> int:
        return self._sought[tp]

    def _seems_stalled(self) -> bool:
        """What the last look said; begins another when it is time. Looking takes long when the broker is away."""
        if self._look is None:
            if self._watch.due(time.monotonic()):
                self._look = asyncio.create_task(self._is_stalled(), name="kafka/reader/stalled")
            return False
        if not self._look.done():
            return False
        look, self._look = self._look, None
        return look.result()

    async def _is_stalled(self) -> bool:
        kafka, fetching = self._kafka, self._fetching
        assert kafka is not None
        assert fetching is not None
        try:
            known = await self._offsets([TopicPartition(*tp) for tp in self._sought])
        except BrokerError:
            self._watch.reset()
            return False
        ends = {tp: known[TopicPartition(*tp)][1] for tp in self._sought}
        try:
            async with asyncio.timeout(END_OFFSETS_S):
                ends = await kafka.end_offsets(list(self._sought))
        except (KafkaError, OSError, TimeoutError):
            log.warning("the broker answers, but not this reader")
        return self._watch.stalled({tp: fetching.position(tp) for tp in self._sought}, ends, time.monotonic())

    async def _replace(self, timeout_s: float) -> None:
        try:
            await self.start()
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("no new reader yet: %s", error)
            await asyncio.sleep(timeout_s)

    async def _stop(self) -> None:
        self._remember()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        kafka, fetching = self._kafka, self._fetching
        self._kafka = self._fetching = None
        if kafka is not None and fetching is not None:
            await fetching.close()
            await stopped(kafka, STOP_S)
