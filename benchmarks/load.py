"""A closed loop: so many operations in flight, each followed by the next, for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec


class Measured(msgspec.Struct, frozen=True):
    """What a closed loop has measured.

    Attributes:
        seconds: the measured time, warm-up excluded.
        latencies_ms: of the operations that ended in that time, sorted.
    """

    in_flight: int
    seconds: float
    latencies_ms: list[float]

    @property
    def per_second(self) -> float:
        return len(self.latencies_ms) / self.seconds

    def percentile_ms(self, share: float) -> float:
        """The latency that this share of the operations did not exceed; NaN if there were none."""
        if not self.latencies_ms:
            return float("nan")
        return self.latencies_ms[min(len(self.latencies_ms) - 1, int(share * len(self.latencies_ms)))]


async def closed_loop(
    operation: Callable[[], Awaitable[object]], *, in_flight: int, seconds: float, warmup_s: float
) -> Measured:
    """Keep ``in_flight`` operations going for warm-up and measurement; count those that end in the measured time."""
    latencies: list[float] = []
    begin = time.perf_counter() + warmup_s
    end = begin + seconds

    async def lane() -> None:
        while (started := time.perf_counter()) < end:
            await operation()
            finished = time.perf_counter()
            if begin <= finished < end:
                latencies.append((finished - started) * 1_000)

    async with asyncio.TaskGroup() as lanes:
        for _ in range(in_flight):
            lanes.create_task(lane())
    return Measured(in_flight, seconds, sorted(latencies))
