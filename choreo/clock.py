"""The one module that reads the time.

Whatever else needs it takes a ``Clock``, so that tests and simulations can let days pass in milliseconds.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A source of time."""

    def now_ms(self) -> int:
        """Wall clock, milliseconds since the Unix epoch. May jump, either way."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never falls, and is the same for all processes of one machine."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own time."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
