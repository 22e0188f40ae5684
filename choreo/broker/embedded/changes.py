"""Waking those who wait for something new in the log, without losing a wake-up."""

from __future__ import annotations

import asyncio
from collections.abc import Container

from choreo.broker.port import TopicPartition


class Changes:
    """A counter of changes that can be waited on. Used on one event loop.

    Note ``revision``, look at the log, then ``wait`` for a change since that revision: a change between the look and
    the wait ends the wait at once.
    """

    def __init__(self) -> None:
        self.revision = 0
        self._waiters: dict[asyncio.Future[None], Container[TopicPartition]] = {}  # woken in the order they came in

    def notify(self, tp: TopicPartition | None = None) -> None:
        """Something has changed: in that partition, or somewhere.

        Whoever waits for other partitions is left alone: most appends are news to few, and waking costs more than
        appending.
        """
        self.revision += 1
        for waiter, wanted in self._waiters.items():
            if (tp is None or tp in wanted) and not waiter.done():
                waiter.set_result(None)

    async def wait(self, revision: int, timeout_s: float, wanted: Container[TopicPartition]) -> None:
        """Return as soon as there is a change since ``revision``, or after ``timeout_s``.

        Args:
            wanted: the partitions whose records are waited for; asked at each change, so it may change meanwhile.
        """
        if self.revision != revision or timeout_s <= 0:
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters[waiter] = wanted
        alarm = loop.call_later(timeout_s, _wake, waiter)
        try:
            await waiter
        finally:
            alarm.cancel()
            del self._waiters[waiter]


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
