"""Load: so many operations in flight, each followed by the next; or so many a second, whatever comes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

Operation = Callable[[], Awaitable[object]]


class Load(NamedTuple):
    """How much is asked for. ``kind`` is ``in flight`` (a closed loop) or ``a second`` (an open one)."""

    amount: int
    kind: str = "in flight"

    def __str__(self) -> str:
        return f"{self.amount} {self.kind}"


class Measured(msgspec.Struct, frozen=True):
    """What a load has measured.

    Attributes:
        seconds: the measured time, warm-up excluded.
        latencies_ms: of the operations that ended in that time, sorted. In an open loop they count from the moment at
            which the operation was to begin.
        cpu_us: of all processes together, for each operation.
    """

    load: Load
    seconds: float
    latencies_ms: list[float]
    cpu_us: float = 0.0

    @property
    def per_second(self) -> float:
        return len(self.latencies_ms) / self.seconds

    def percentile_ms(self, share: float) -> float:
        """The latency that this share of the operations did not exceed; NaN if there were none."""
        if not self.latencies_ms:
            return float("nan")
        return self.latencies_ms[min(len(self.latencies_ms) - 1, int(share * len(self.latencies_ms)))]


async def apply(
    load: Load, operation: Operation, *, seconds: float, warmup_s: float, look: Callable[[], None] = lambda: None
) -> Measured:
    """Apply the load for warm-up and measurement; count the operations that end in the measured time.

    Args:
        look: called at the beginning and at the end of the measured time.
    """
    latencies: list[float] = []
    begin = time.perf_counter() + warmup_s
    end = begin + seconds

    async def one(started: float) -> None:
        await operation()
        finished = time.perf_counter()
        if begin <= finished < end:
            latencies.append((finished - started) * 1_000)

    async def lane() -> None:
        while (started := time.perf_counter()) < end:
            await one(started)

    async with asyncio.TaskGroup() as tasks:
        loop = asyncio.get_running_loop()
        loop.call_later(warmup_s, look)
        loop.call_later(warmup_s + seconds, look)
        if load.kind == "in flight":
            for _ in range(load.amount):
                tasks.create_task(lane())
        else:
            due = time.perf_counter()
            while due < end:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.create_task(one(due))
                due += 1 / load.amount
        await asyncio.sleep(max(0.0, end - time.perf_counter()) + 0.01)  # so that the last look was taken
    return Measured(load, seconds, sorted(latencies))
