"""What goes wrong, one kind each, drawn from a seed. Each does its harm, mends it, and says what it hit."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from tests.chaos.cluster import Cluster
from tests.chaos.system import REPLICAS_MAX, System

SESSION_S = 6.0  # of group members; a frozen process is out of its group after that
FROZEN_S = (SESSION_S + 2, SESSION_S + 6)
ANSWERS_LOST_S = (1.0, 4.0)
NODE_DOWN_S = (1.0, 8.0)
SCALED_S = (4.0, 10.0)


class Faults:
    """Makes faults happen.

    Attributes:
        fired: how many of each kind.
        mattered: of these, how many happened while sagas were on their way.
    """

    def __init__(self, rng: random.Random, system: System, cluster: Cluster, on_their_way: Callable[[], int]) -> None:
        self.fired: Counter[str] = Counter()
        self.mattered: Counter[str] = Counter()
        self._rng = rng
        self._system = system
        self._cluster = cluster
        self._on_their_way = on_their_way
        self._broker_busy = asyncio.Lock()
        self._scaled: set[str] = set()
        self._kinds: dict[str, tuple[int, Callable[[], Awaitable[bool]]]] = {
            "kill -9 of a service or saga-log": (0, self._kill),
            "freeze beyond the session (SIGSTOP)": (6, self._freeze),
            "scale 1 to 4 to 1": (3, self._scale),
            "answers of the broker lost": (6, self._lose_answers),
            "broker killed (kill -9)": (3, self._kill_broker),
            "broker restarted in order": (2, self._restart_broker),
        }

    async def run(self, *, kills: int, over_s: float) -> None:
        """Let the faults happen, spread over a time: so many kills, and the other kinds as often in proportion.

        Ends when all of them are mended.
        """
        others = [
            kind
            for kind, (weight, _) in self._kinds.items()
            for _ in range(max(weight * kills // 40, 1 if weight else 0))
        ]
        plan = ["kill -9 of a service or saga-log"] * kills + others
        self._rng.shuffle(plan)
        async with asyncio.TaskGroup() as tasks:
            for kind in plan:
                await asyncio.sleep(self._rng.uniform(0.5, 1.5) * over_s / len(plan))
                self._system.restart_the_dead()
                tasks.create_task(self._fire(kind), name=f"fault/{kind}")
        self._system.thaw_all()
        self._system.restart_the_dead()

    async def _fire(self, kind: str) -> None:
        on_their_way = self._on_their_way()
        if await self._kinds[kind][1]():
            self.fired[kind] += 1
            if on_their_way:
                self.mattered[kind] += 1

    async def _kill(self) -> bool:
        name = self._rng.choice(self._system.free())
        self._system.kill(name)
        await asyncio.sleep(self._rng.choice((0.0, 0.0, 0.5, 3.0)))
        self._system.start(name)
        return True

    async def _freeze(self) -> bool:
        name = self._rng.choice(self._system.free())
        self._system.freeze(name)
        await asyncio.sleep(self._rng.uniform(*FROZEN_S))
        if name in self._system.frozen:
            self._system.thaw(name)
        return True

    async def _scale(self) -> bool:
        """More replicas of one part: partitions move, twice."""
        free = [name for name in self._system.first if name not in self._scaled]
        if not free:
            return False
        name = self._rng.choice(free)
        self._scaled.add(name)
        more = [f"{name}-{number}" for number in range(2, REPLICAS_MAX + 1)]
        self._system.start(*more)
        await asyncio.sleep(self._rng.uniform(*SCALED_S))
        for each in more:
            while each in self._system.frozen or each not in self._system.running:  # another fault has it
                await asyncio.sleep(0.2)
            await self._system.stop(each)
        self._scaled.discard(name)
        return True

    async def _lose_answers(self) -> bool:
        async with self._broker_busy:  # a broker that is down has no answers to lose
            proxy = self._rng.choice(self._cluster.proxies)
            lost = proxy.answers_lost
            await proxy.lose_answers(self._rng.uniform(*ANSWERS_LOST_S))
        return proxy.answers_lost > lost

    async def _kill_broker(self) -> bool:
        async with self._broker_busy:  # of three nodes one may be down at a time
            node = self._rng.choice(self._cluster.nodes)
            await asyncio.to_thread(node.kill)
            await asyncio.sleep(self._rng.uniform(*NODE_DOWN_S))
            await asyncio.to_thread(node.start)
        return True

    async def _restart_broker(self) -> bool:
        async with self._broker_busy:
            node = self._rng.choice(self._cluster.nodes)
            await asyncio.to_thread(node.restart)
            await asyncio.sleep(1)
        return True
