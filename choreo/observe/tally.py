"""Counts of the hot path: plain numbers, added to their metrics when somebody looks at those.

A counter of the Prometheus client takes a lock and checks its arguments each time, a histogram goes through its
buckets; that is ten times what the addition costs. Counting is for one thread, that of the event loop; looking is for
any: what was counted only grows, and what of it was handed over is remembered beside it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from threading import Lock

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Tally:
    """What a counter is to be counted up by."""

    __slots__ = ("_child", "_count", "_handed_over")

    def __init__(self, child: Counter) -> None:
        """Count for a counter without labels, or with all of them filled in."""
        self._child = child
        self._count = self._handed_over = 0

    def inc(self, amount: int = 1) -> None:
        self._count += amount

    def hand_over(self) -> None:
        """Add to the metric."""
        count = self._count
        if count != self._handed_over:
            self._child.inc(count - self._handed_over)
            self._handed_over = count


class Observations:
    """What a histogram is to observe."""

    __slots__ = ("_bounds", "_child", "_counts", "_handed_over", "_sum", "_sum_handed_over")

    def __init__(self, child: Histogram, bounds: Sequence[float]) -> None:
        """Observe for a histogram with these upper bounds, likewise."""
        self._child = child
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._handed_over = self._counts.copy()
        self._sum = self._sum_handed_over = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def hand_over(self) -> None:
        """Add to the metric, whose buckets have no public way to add more than one at once."""
        counts, total = self._counts.copy(), self._sum
        if counts != self._handed_over:
            grown = zip(self._child._buckets, counts, self._handed_over, strict=True)  # noqa: SLF001
            for bucket, count, before in grown:
                bucket.inc(count - before)
            self._child._sum.inc(total - self._sum_handed_over)  # noqa: SLF001
            self._handed_over, self._sum_handed_over = counts, total


class Tallies(Collector):
    """All tallies of a registry. They are handed over before its metrics are collected."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """To be made before the registry has any metric: collectors are asked in the order of their coming."""
        self._tallies: list[Tally | Observations] = []
        self._looking = Lock()
        registry.register(self)

    def of(self, child: Counter) -> Tally:
        tally = Tally(child)
        self._tallies.append(tally)
        return tally

    def observations(self, child: Histogram, bounds: Sequence[float]) -> Observations:
        observations = Observations(child, bounds)
        self._tallies.append(observations)
        return observations

    def collect(self) -> Iterable[Metric]:
        """Nothing of its own."""
        with self._looking:
            for tally in self._tallies:
                tally.hand_over()
        return ()
