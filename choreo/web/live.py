"""Changes as they happen: the log is followed while somebody listens, and each record is told to who wants it.

One reader serves all listeners; it is let go when nobody has listened for a while. Changes are numbered, and the last
few thousand are kept, so that a browser whose connection broke goes on where it was. Who cannot be caught up is told to
``reset``: to read anew what it shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from choreo.broker.port import Broker, Message, Reader, TopicPartition
from choreo.broker.topics import saga_topic
from choreo.errors import BrokerError
from choreo.messages.headers import read_route
from choreo.web.shapes import Change, tag_of

logger = logging.getLogger(__name__)

KEPT = 5_000
QUEUED_MAX = 1_000
IDLE_S = 30.0
HEARTBEAT_S = 15.0
RETRY_S = 1.0


class Told(NamedTuple):
    """One event of a stream: a change, or the word that some were missed."""

    id: str
    what: Literal["change", "reset", "ready"]
    change: Change | None = None


class Feed:
    """The changes of some sagas. Use as ``async with Feed(…)``; streams end when it does."""

    def __init__(self, broker: Broker, sagas: Sequence[str]) -> None:
        self._broker = broker
        self._sagas = {saga_topic(saga): saga for saga in sagas}
        self._epoch = ""
        self._number = 0
        self._kept: deque[tuple[int, Change]] = deque(maxlen=KEPT)
        self._listeners: set[asyncio.Queue[tuple[int, Change] | None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._following = asyncio.Event()
        self._closed = False

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    async def close(self) -> None:
        """End all streams and let go of the log."""
        self._closed = True
        for queue in self._listeners:
            _put(queue, None)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def listen(
        self, last_id: str = "", saga: str | None = None, saga_id: str | None = None
    ) -> AsyncIterator[Told | None]:
        """Changes from now on, or from after ``last_id``; ``None`` when there was nothing to tell for a while.

        Args:
            last_id: of the last event that was heard before the connection broke.
        """
        queue: asyncio.Queue[tuple[int, Change] | None] = asyncio.Queue(QUEUED_MAX)
        self._listeners.add(queue)
        try:
            self._begin()
            await self._following.wait()
            missed = self._after(last_id)
            yield Told(f"{self._epoch}-{self._number}", "reset" if missed is None else "ready")
            for number, change in missed or ():
                if _wanted(change, saga, saga_id):
                    yield Told(f"{self._epoch}-{number}", "change", change)
            while not self._closed:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        told = await queue.get()
                except TimeoutError:
                    yield None
                    continue
                if told is None:
                    if not self._closed:  # it was slower than the log
                        yield Told(f"{self._epoch}-{self._number}", "reset")
                    return
                number, change = told
                if _wanted(change, saga, saga_id):
                    yield Told(f"{self._epoch}-{number}", "change", change)
        finally:
            self._listeners.discard(queue)

    def _after(self, last_id: str) -> list[tuple[int, Change]] | None:
        """What came after an event; ``None`` if nobody knows any more."""
        if not last_id:
            return []
        epoch, _, text = last_id.partition("-")
        number = int(text) if text.isdigit() and len(text) < 19 else -1
        oldest = self._kept[0][0] if self._kept else self._number + 1
        if epoch != self._epoch or not oldest - 1 <= number <= self._number:
            return None
        return [each for each in self._kept if each[0] > number]

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._following.clear()
            self._epoch, self._number = secrets.token_hex(4), 0
            self._kept.clear()
            self._task = asyncio.create_task(self._follow(), name="web/feed")

    async def _follow(self) -> None:
        """Read the log from its end until nobody has listened for a while."""
        while not self._closed:
            try:
                reader = await self._at_the_end()
                try:
                    self._following.set()
                    if await self._read(reader):
                        return
                finally:
                    await reader.close()
            except BrokerError as error:
                logger.info("changes cannot be followed now, trying again: %s", error)
                self._following.set()
                self._epoch = secrets.token_hex(4)  # what is appended meanwhile will not be told
                for queue in self._listeners:
                    _end(queue)
                await asyncio.sleep(RETRY_S)

    async def _at_the_end(self) -> Reader:
        tps = [
            TopicPartition(topic, number)
            for topic in self._sagas
            for number in range(await self._broker.partitions(topic))
        ]
        ends = await self._broker.offsets(tps)
        reader = await self._broker.reader()
        for tp, (_, end) in ends.items():
            reader.seek(tp, end)
        return reader

    async def _read(self, reader: Reader) -> bool:
        idle_since_s = asyncio.get_running_loop().time()
        while True:
            for message in await reader.poll(timeout_s=0.5):
                self._tell(message)
            now_s = asyncio.get_running_loop().time()
            if self._listeners:
                idle_since_s = now_s
            elif now_s - idle_since_s > IDLE_S:
                return True

    def _tell(self, message: Message) -> None:
        route = read_route(message.headers)
        if route.kind is None or message.key is None:
            return
        self._number += 1
        change = Change(
            saga=self._sagas[message.topic],
            saga_id=message.key.decode("utf-8", "replace"),
            type=tag_of(route.kind),
            step=route.step or None,
            round=max(route.round, 1),
            at_ms=message.timestamp_ms,
            partition=message.partition,
            offset=message.offset,
        )
        self._kept.append((self._number, change))
        for queue in self._listeners:
            if not _put(queue, (self._number, change)):
                _end(queue)


def as_event_stream(told: Told | None) -> bytes:
    """An event as ``text/event-stream`` has it (HTML Living Standard, 9.2)."""
    if told is None:
        return b": still here\n\n"
    data = msgspec.json.encode(told.change) if told.change is not None else b"{}"
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (told.id.encode(), told.what.encode(), data)


def _wanted(change: Change, saga: str | None, saga_id: str | None) -> bool:
    return saga in (None, change.saga) and saga_id in (None, change.saga_id)


def _put(queue: asyncio.Queue[tuple[int, Change] | None], told: tuple[int, Change] | None) -> bool:
    with contextlib.suppress(asyncio.QueueFull):
        queue.put_nowait(told)
        return True
    return False


def _end(queue: asyncio.Queue[tuple[int, Change] | None]) -> None:
    """Make the queue's listener stop: it is told to start anew."""
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(None)
