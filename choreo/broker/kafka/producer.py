"""Appending: one idempotent producer for all tasks, replaced when it breaks, with everything sent again.

aiokafka's producer keeps order and adds no duplicates through short outages, but it can break for good: a batch that
it gives up leaves a gap in the sequence numbers and every later one of the partition is refused, a fenced producer
stays fenced, a dead sender task takes its batches with it. So whatever has not been acknowledged is kept here, in the
order in which it was sent. When anything fails the producer is retired, a new one is made, and all that is kept goes
out again in that order. A record may then be in the log twice. It is never lost, and its first copies are in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError
from aiokafka.structs import RecordMetadata
from aiokafka.structs import TopicPartition as KafkaTopicPartition

from choreo.broker.kafka import internals
from choreo.broker.kafka.errors import REFUSED, TOO_LARGE, translated
from choreo.broker.kafka.settings import KafkaSettings
from choreo.broker.port import Appended, Headers
from choreo.errors import BrokerUnavailable, TopicError

log = logging.getLogger(__name__)

RECORD_BYTES_MAX = 16 * 1024 * 1024  # the topic's own limit is far below; this keeps a request below the broker's
IN_FLIGHT_S = 2.0  # what requests on the wire get for their answers when their producer is replaced
CLOSE_S = 5.0
RESTART_BACKOFF_S = 0.2
UNKNOWN = -1

PartitionOf = Callable[[str, bytes], Awaitable[int]]
PartitionNow = Callable[[str, bytes], int | None]


class _Sending:
    """One record on its way."""

    __slots__ = ("acked", "alone", "headers", "key", "partition", "sent_at", "topic", "value")

    def __init__(
        self,
        topic: str,
        partition: int,
        key: bytes,
        value: bytes,
        headers: Headers,
        acked: asyncio.Future[Appended],
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.key = key
        self.value = value
        self.headers = headers
        self.acked = acked
        self.sent_at = 0.0  # on the loop's clock, where nobody else looks after the deadline
        self.alone = False  # goes out in a batch of its own, to learn which record is too large


class SupervisedProducer:
    """The producer of one broker object, behind every ``KafkaProducer``."""

    def __init__(
        self, settings: KafkaSettings, url: str, partition_of: PartitionOf, partition_now: PartitionNow
    ) -> None:
        self._settings = settings
        self._url = url
        self._partition_of = partition_of
        self._partition_now = partition_now
        self._delivery_timeout_s = settings.delivery_timeout_ms / 1_000
        self._kafka: AIOKafkaProducer | None = None
        self._epoch = 0  # of the producer; what an older one reports about failures is out of date
        self._ready = asyncio.Event()
        self._replacement: asyncio.Task[None] | None = None
        self._closed = False
        self._unacked: dict[_Sending, None] = {}  # in the order of sending
        self._lanes: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._queued: Counter[tuple[str, int]] = Counter()  # who is in a lane, or waits for it
        self._batches: dict[Any, list[tuple[_Sending, Any]]] = {}  # what was put into batches, and where there
        self._overdue: asyncio.TimerHandle | None = None
        self.replaced = 0

    async def start(self) -> None:
        """Connect.

        Raises:
            KafkaError, OSError, TimeoutError: no broker answers.
        """
        self._kafka = await self._connect(self._epoch)
        self._ready.set()

    def send(self, topic: str, key: str, value: bytes, headers: Headers) -> Awaitable[Appended]:
        """As ``Producer.send``."""
        key_bytes = key.encode()
        loop = asyncio.get_running_loop()
        acked: asyncio.Future[Appended] = loop.create_future()
        partition_now = self._partition_now(topic, key_bytes)
        if partition_now is not None:
            sending = _Sending(topic, partition_now, key_bytes, value, headers, acked)
            if self._put_now(sending, loop):
                return acked
        return self._send_in_turn(topic, key_bytes, value, headers, acked)

    def _put_now(self, sending: _Sending, loop: asyncio.AbstractEventLoop) -> bool:
        """Put a record into a batch if that needs no wait: the way of nearly all. Otherwise it has to queue."""
        kafka, tp = self._kafka, KafkaTopicPartition(sending.topic, sending.partition)
        if self._closed or kafka is None or not self._ready.is_set() or self._queued.get(tp):
            return False
        if len(sending.value) > self._settings.batch_bytes:
            return False
        put = internals.append_now(kafka, tp, sending.key, sending.value, sending.headers)
        if put is None:
            return False
        batch, place = put
        sent = self._batches.get(batch)
        if sent is None:
            sent = self._batches[batch] = []
            batch.future.add_done_callback(partial(self._batch_answered, batch, self._epoch))
        sent.append((sending, place))
        self._unacked[sending] = None
        sending.sent_at = loop.time()
        if self._overdue is None:
            self._overdue = loop.call_later(self._delivery_timeout_s, self._give_up_overdue, loop)
        return True

    def _give_up_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell those who have waited for too long, and look again when the next one may have."""
        self._overdue = None
        latest = loop.time() - self._delivery_timeout_s
        for sending in list(self._unacked):
            if not sending.sent_at:
                continue  # its sender looks after its own deadline
            if sending.sent_at > latest:
                self._overdue = loop.call_at(sending.sent_at + self._delivery_timeout_s, self._give_up_overdue, loop)
                return
            self._refuse(sending, self._not_acknowledged(sending.topic))

    def _not_acknowledged(self, topic: str) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"send to {topic} at {self._url}: not acknowledged within {self._settings.delivery_timeout_ms} ms"
        )

    async def _send_in_turn(
        self, topic: str, key_bytes: bytes, value: bytes, headers: Headers, acked: asyncio.Future[Appended]
    ) -> Appended:
        sending: _Sending | None = None
        try:
            async with asyncio.timeout(self._delivery_timeout_s):
                partition = await self._find_partition(topic, key_bytes)
                sending = _Sending(topic, partition, key_bytes, value, headers, acked)
                # The lock hands on in the order of arrival. Without it, callers who wait for room in a full batch would
                # be overtaken by callers who come when there is room again.
                self._queued[topic, partition] += 1
                try:
                    async with self._lanes[topic, partition]:
                        await self._enqueue(sending)
                finally:
                    self._queued[topic, partition] -= 1
                return await acked
        except TimeoutError:
            raise self._not_acknowledged(topic) from None
        finally:
            if sending is not None:
                self._unacked.pop(sending, None)

    async def flush(self, timeout_s: float) -> None:
        """Wait until all that was sent is acknowledged, or the time is over."""
        if waiting := [sending.acked for sending in self._unacked]:
            await asyncio.wait(waiting, timeout=timeout_s)

    async def close(self) -> None:
        if self._closed:
            return
        await self.flush(CLOSE_S)
        self._closed = True
        self._epoch += 1
        if self._overdue is not None:
            self._overdue.cancel()
        self._ready.set()  # who still waits to send is told that it is over
        if self._replacement is not None:
            self._replacement.cancel()
            await asyncio.wait({self._replacement})
        if self._kafka is not None:
            await internals.retire(self._kafka, IN_FLIGHT_S)
            self._kafka = None
        for sending in list(self._unacked):
            self._refuse(
                sending, BrokerUnavailable(f"send to {sending.topic}: the producer was closed before the answer")
            )

    async def _find_partition(self, topic: str, key: bytes) -> int:
        while True:
            try:
                return await self._partition_of(topic, key)
            except BrokerUnavailable:
                await asyncio.sleep(RESTART_BACKOFF_S)  # our caller's deadline ends this

    async def _enqueue(self, sending: _Sending) -> None:
        while True:
            await self._ready.wait()
            kafka, epoch = self._kafka, self._epoch
            if self._closed or kafka is None:
                raise BrokerUnavailable(f"send to {sending.topic}: the producer is closed")
            try:
                future = await self._hand_over(kafka, sending)
            except KafkaTimeoutError:
                continue  # no room in the batch; our caller's deadline ends this
            except (*TOO_LARGE, *REFUSED) as error:
                raise translated(error, f"send to {sending.topic}") from error
            except KafkaError as error:
                self._suspect(epoch, error)
                continue
            if epoch == self._epoch:
                self._expect(sending, future, epoch)
                return
            # The producer was replaced while we waited for room, and took this record with it.
            future.add_done_callback(_look_at)

    async def _hand_over(self, kafka: AIOKafkaProducer, sending: _Sending) -> asyncio.Future[RecordMetadata]:
        try:
            future: asyncio.Future[RecordMetadata] = await kafka.send(
                sending.topic, sending.value, sending.key, sending.partition, headers=list(sending.headers)
            )
        except AssertionError as error:
            # aiokafka asserts that the partition is in its metadata: the topic was made anew, and smaller.
            raise TopicError(f"send to {sending.topic}: it has no partition {sending.partition} any more") from error
        return future

    def _expect(self, sending: _Sending, future: asyncio.Future[RecordMetadata], epoch: int) -> None:
        self._unacked[sending] = None
        future.add_done_callback(lambda done: self._answered(sending, done, epoch))

    def _batch_answered(self, batch: Any, epoch: int, future: asyncio.Future[RecordMetadata | None]) -> None:
        sent = self._batches.pop(batch)
        error = None if future.cancelled() else future.exception()
        metadata = future.result() if error is None and not future.cancelled() else None
        if metadata is not None and metadata.log_start_offset != UNKNOWN:
            for sending, place in sent:
                self._unacked.pop(sending, None)
                if not sending.acked.done():
                    append_ms = metadata.timestamp if metadata.timestamp != UNKNOWN else place.timestamp
                    sending.acked.set_result(
                        Appended(sending.topic, sending.partition, metadata.offset + place.offset, append_ms)
                    )
            return
        if epoch == self._epoch:
            for sending, _ in sent:
                self._look_into(sending, error)
            self._suspect(epoch, error)

    def _answered(self, sending: _Sending, future: asyncio.Future[RecordMetadata], epoch: int) -> None:
        error = None if future.cancelled() else future.exception()
        if error is None and not future.cancelled():
            metadata = future.result()
            if metadata.log_start_offset != UNKNOWN:
                self._unacked.pop(sending, None)
                if not sending.acked.done():
                    sending.acked.set_result(
                        Appended(sending.topic, sending.partition, metadata.offset, metadata.timestamp)
                    )
                return
            # "A duplicate, and I forgot where the first one is." Sent once more, the record has coordinates.
        if epoch != self._epoch:
            return  # its successor has sent the record again
        self._look_into(sending, error)
        # Whatever failed has used up sequence numbers: this producer's next batch would be refused.
        self._suspect(epoch, error)

    def _look_into(self, sending: _Sending, error: BaseException | None) -> None:
        if isinstance(error, TOO_LARGE) and not sending.alone:
            sending.alone = True  # the batch was too large; is it this record?
        elif error is not None and isinstance(error, (*TOO_LARGE, *REFUSED)):
            self._refuse(sending, translated(error, f"send to {sending.topic}"))

    def _refuse(self, sending: _Sending, error: Exception) -> None:
        self._unacked.pop(sending, None)
        if not sending.acked.done():
            sending.acked.set_exception(error)

    def _suspect(self, epoch: int, error: BaseException | None) -> None:
        if epoch != self._epoch or self._closed:
            return
        log.warning("producer at %s is replaced after: %r", self._url, error or "its sender task has ended")
        self._epoch += 1
        self._ready.clear()
        if self._replacement is None or self._replacement.done():
            self._replacement = asyncio.create_task(self._replace(), name="kafka-producer/replace")

    async def _replace(self) -> None:
        while not self._closed:
            epoch = self._epoch
            try:
                if self._kafka is not None:
                    retired, self._kafka = self._kafka, None
                    await internals.retire(retired, IN_FLIGHT_S)
                self._kafka = await self._connect(epoch)
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("no new producer at %s yet: %s", self._url, error)
                await asyncio.sleep(RESTART_BACKOFF_S)
                continue
            self.replaced += 1
            if await self._send_again(self._kafka, epoch):
                self._ready.set()
                return

    async def _send_again(self, kafka: AIOKafkaProducer, epoch: int) -> bool:
        """Everything unacknowledged, in order. False: this producer, too, is suspect by now."""
        for sending in list(self._unacked):
            if sending.acked.done():
                self._unacked.pop(sending, None)
                continue
            try:
                if sending.alone:
                    await kafka.flush()
                future = await self._hand_over(kafka, sending)
            except (*REFUSED, TopicError) as error:
                refusal = error if isinstance(error, TopicError) else translated(error, f"send to {sending.topic}")
                self._refuse(sending, refusal)
                continue
            except KafkaError as error:
                self._suspect(epoch, error)
                return False
            self._expect(sending, future, epoch)
            if sending.alone:
                await asyncio.wait({future})
                await asyncio.sleep(0)  # its callback comes first
            if epoch != self._epoch:
                return False
        return epoch == self._epoch

    async def _connect(self, epoch: int) -> AIOKafkaProducer:
        kafka = AIOKafkaProducer(
            **self._settings.connection(),
            acks="all",
            enable_idempotence=True,
            linger_ms=self._settings.linger_ms,
            max_batch_size=self._settings.batch_bytes,
            max_request_size=RECORD_BYTES_MAX,
            request_timeout_ms=self._settings.request_timeout_ms,
        )
        try:
            async with asyncio.timeout(self._settings.open_timeout_ms / 1_000):
                await kafka.start()
        except BaseException:
            await kafka.stop()
            raise
        internals.sender_task(kafka).add_done_callback(lambda _: self._suspect(epoch, None))
        return kafka


class KafkaProducer:
    """A handle on the broker's one producer."""

    def __init__(self, shared: SupervisedProducer) -> None:
        self._shared = shared
        self._closed = False

    def send(self, topic: str, *, key: str, value: bytes, headers: Headers = ()) -> Awaitable[Appended]:
        if self._closed:
            raise BrokerUnavailable(f"send to {topic}: the producer is closed")
        return self._shared.send(topic, key, value, headers)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._shared.flush(CLOSE_S)


def _look_at(future: asyncio.Future[RecordMetadata]) -> None:
    """Asyncio complains about errors that nobody has looked at."""
    if not future.cancelled():
        future.exception()
