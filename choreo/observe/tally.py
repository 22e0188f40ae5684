"""Counts of the hot path: plain numbers, added to their metrics when somebody looks at those.

A counter of the Prometheus client takes a lock and checks its arguments each time, a histogram goes through its
buckets; that is ten times what the addition costs. Used from one thread, that of the event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Tally:
    """What a counter was counted up by since somebody looked."""

    __slots__ = ("_child", "_count")

    def __init__(self, child: Counter) -> None:
        """Count for a counter without labels, or with all of them filled in."""
        self._child = child
        self._count = 0

    def inc(self, amount: int = 1) -> None:
        self._count += amount

    def hand_over(self) -> None:
        """Add to the metric."""
        count, self._count = self._count, 0
        if count:
            self._child.inc(count)


class Observations:
    """What a histogram has observed since somebody looked."""

    __slots__ = ("_bounds", "_child", "_counts", "_sum")

    def __init__(self, child: Histogram, bounds: Sequence[float]) -> None:
        """Observe for a histogram with these upper bounds, likewise."""
        self._child = child
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def hand_over(self) -> None:
        """Add to the metric, whose buckets have no public way to add more than one at once."""
        counts, self._counts = self._counts, [0] * len(self._counts)
        total, self._sum = self._sum, 0.0
        if any(counts):
            for bucket, count in zip(self._child._buckets, counts, strict=True):  # noqa: SLF001
                bucket.inc(count)
            self._child._sum.inc(total)  # noqa: SLF001


class Tallies(Collector):
    """All tallies of a registry. They are handed over before its metrics are collected."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """To be made before the registry has any metric: collectors are asked in the order of their coming."""
        self._tallies: list[Tally | Observations] = []
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
        for tally in self._tallies:
            tally.hand_over()
        return ()
