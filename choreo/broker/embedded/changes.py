"""Waking those who wait for something new in the log, without losing a wake-up."""

from __future__ import annotations

import asyncio


class Changes:
    """A counter of changes that can be waited on. Used on one event loop.

    Note ``revision``, look at the log, then ``wait`` for a change since that revision: a change between the look and
    the wait ends the wait at once.
    """

    def __init__(self) -> None:
        self.revision = 0
        self._waiters: dict[asyncio.Future[None], None] = {}  # woken in the order in which they came

    def notify(self) -> None:
        """Something has changed."""
        self.revision += 1
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, revision: int, timeout_s: float) -> None:
        """Return as soon as there is a change since ``revision``, or after ``timeout_s``."""
        if self.revision != revision or timeout_s <= 0:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            self._waiters.pop(waiter, None)
