"""A discrete-event model of sagas on their way through processes: queues, fixed seeds, no clock but its own.

Each process is one server that takes records in order, as one core does; its partitions' records come to it alone. A
saga is a chain of records in one partition: every group reads each of them, the one that it is for handles it (and
writes the next), all others drop it. Time on the wire between the two is a constant.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple


class Group(NamedTuple):
    """A consumer group.

    Attributes:
        processes: how many; partitions are spread evenly over them.
        handled_s, dropped_s: mean CPU seconds for a record that is for the group, and for one that is not.
        handles: which records of a saga are for it, by their place in the chain.
    """

    name: str
    processes: int
    handled_s: float
    dropped_s: float
    handles: frozenset[int]


class Down(NamedTuple):
    """A process of a group that is away for a while; its records wait."""

    group: str
    begin_s: float
    end_s: float


class Simulated(NamedTuple):
    """What was seen.

    Attributes:
        latencies_s: of sagas that started after the warm-up, sorted.
        busy: share of the time in which the processes of each group were at work.
        recovered_s: from the beginning of the failure until a saga's way through the process is as quick as before.
    """

    latencies_s: Sequence[float]
    busy: dict[str, float]
    recovered_s: float | None

    def percentile_s(self, share: float) -> float:
        return self.latencies_s[min(len(self.latencies_s) - 1, int(share * len(self.latencies_s)))]


def simulate(
    groups: Sequence[Group],
    *,
    records: int,
    sagas_per_s: float,
    seconds: float,
    wire_s: float = 0.0,
    seed: int = 1,
    is_exponential: bool = True,
    down: Down | None = None,
    warmup_share: float = 0.2,
) -> Simulated:
    """Let sagas arrive as a Poisson process, and see the last of them through.

    Args:
        records: of a saga. The last one is its outcome, and nobody handles that.
        wire_s: from a record's sending to its delivery.
        is_exponential: times of service vary a lot (coefficient of variation 1); else not at all.
        down: a failure; its process is the first of its group.
        warmup_share: of the time; sagas that start in it are not counted.
    """
    rng = random.Random(seed)
    servers = [
        _Servers(group, rng, down if down and down.group == group.name else None, is_exponential=is_exponential)
        for group in groups
    ]
    arrivals = _arrivals(rng, sagas_per_s, seconds, wire_s)
    # Delivery, saga, place in the chain, start of the saga; of the sagas to come only the next.
    events: list[tuple[float, int, int, float]] = [next(arrivals)]
    latencies: list[float] = []
    while events:
        now, saga, place, started = heapq.heappop(events)
        if place == 0 and (following := next(arrivals, None)) is not None:
            heapq.heappush(events, following)
        for each in servers:
            done = each.serve(now, saga, place)
            if place not in each.group.handles:
                continue
            heapq.heappush(events, (done + wire_s, saga, place + 1, started))
            if place + 1 == records - 1 and started >= warmup_share * seconds:
                latencies.append(done + wire_s - started)  # the outcome is with who waits for it
    busy = {each.group.name: each.worked_s / (each.group.processes * seconds) for each in servers}
    recovered = next((each.recovered_s for each in servers if each.down), None)
    return Simulated(sorted(latencies), busy, recovered)


def _arrivals(
    rng: random.Random, sagas_per_s: float, seconds: float, wire_s: float
) -> Iterator[tuple[float, int, int, float]]:
    now = 0.0
    for saga in count():
        now += rng.expovariate(sagas_per_s)
        if now >= seconds:
            return
        yield now + wire_s, saga, 0, now


class _Servers:
    """The processes of a group."""

    def __init__(self, group: Group, rng: random.Random, down: Down | None, *, is_exponential: bool) -> None:
        self.group = group
        self.down = down
        self.worked_s = 0.0
        self.recovered_s: float | None = None
        self._rng = rng
        self._is_exponential = is_exponential
        self._free_at = [0.0] * group.processes
        self._waits: list[float] = []

    def serve(self, now: float, saga: int, place: int) -> float:
        """A record comes; when it is done with."""
        process = saga % self.group.processes
        handles = place in self.group.handles
        begins = max(now, self._free_at[process])
        if self.down is not None and process == 0:
            if self.down.begin_s <= begins < self.down.end_s:
                begins = self.down.end_s
            if handles:
                self._look(self.down, now, begins - now)
        mean = self.group.handled_s if handles else self.group.dropped_s
        took = self._rng.expovariate(1 / mean) if self._is_exponential and mean else mean
        self.worked_s += took
        self._free_at[process] = begins + took
        return begins + took

    def _look(self, down: Down, now: float, wait: float) -> None:
        """Recovered is who waits no longer than 99 of 100 did before."""
        if now < down.begin_s:
            self._waits.append(wait)
        elif now + wait >= down.end_s and self.recovered_s is None:
            usual = sorted(self._waits)[int(0.99 * len(self._waits))] if self._waits else 0.0
            if wait <= usual:
                self.recovered_s = now + wait - down.begin_s
