"""Lanes: the records of one saga and step one at a time, in log order; different ones side by side (rule 3).

A lane is a task that lives as long as it has work. Only so many handlers of a partition run at once; a lane that
waits (for its turn, or between attempts) is at *rest*: it holds no slot, and it can be ended at any moment without
harm, because what it was about to do has not begun.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection

from choreo.step.route import Delivery

CANCEL_TIMEOUT_S = 2.0  # for a cancelled handler to clean up

LaneKey = tuple[bytes | None, str]
"""Key of the record (the saga id) and step."""


class Slots:
    """Places for running handlers, given in the order of asking. Taking a free one costs no wait and no coroutine."""

    __slots__ = ("_free", "_waiting")

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[asyncio.Future[None]] = deque()

    def try_take(self) -> bool:
        """Take a place if one is free."""
        if self._free and not self._waiting:
            self._free -= 1
            return True
        return False

    async def take(self) -> None:
        """Wait for a place."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()  # it was ours already
            raise

    def give_back(self) -> None:
        self._free += 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._free -= 1
                turn.set_result(None)


class Lane:
    """The waiting work of one saga and step, and the task that does it."""

    __slots__ = ("deliveries", "is_resting", "slots", "task")

    def __init__(self, slots: Slots) -> None:
        self.deliveries: deque[Delivery] = deque()
        self.slots = slots
        self.is_resting = False
        self.task: asyncio.Task[None] | None = None

    async def rest(self, wait: Awaitable[object]) -> None:
        """Wait for something, doing nothing meanwhile."""
        self.is_resting = True
        try:
            await wait
        finally:
            self.is_resting = False


class Lanes:
    """The lanes of one partition."""

    def __init__(
        self,
        name: str,
        tasks: asyncio.TaskGroup,
        work: Callable[[Delivery, Lane], Awaitable[None]],
        *,
        concurrency: int,
    ) -> None:
        """Make room for lanes.

        Args:
            name: of the partition, for the names of tasks.
            tasks: the block in which lanes live.
            work: does what a delivery asks for; returns when nothing of it is left to do.
            concurrency: handlers that run at once.
        """
        self._name = name
        self._tasks = tasks
        self._work = work
        self._slots = Slots(concurrency)
        self._lanes: dict[LaneKey, Lane] = {}
        self._is_stopping = False

    @property
    def busy(self) -> int:
        """Lanes that have work."""
        return len(self._lanes)

    def add(self, delivery: Delivery) -> None:
        """Put work behind what its lane has already."""
        key = (delivery.message.key, delivery.step)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(self._slots)
            lane.task = self._tasks.create_task(self._run(key, lane), name=f"lane/{self._name}/{delivery.step}")
        lane.deliveries.append(delivery)

    def stop(self) -> None:
        """Begin nothing new: lanes at rest end now, the others after what they are doing."""
        self._is_stopping = True
        for lane in tuple(self._lanes.values()):
            if lane.is_resting and lane.task is not None:
                lane.task.cancel()

    async def drain(self, timeout_s: float) -> Collection[asyncio.Task[None]]:
        """Stop, and wait until all lanes have ended; those that have not by then are cancelled.

        Returns the tasks that even a cancellation has not ended: handlers that do not let go.
        """
        self.stop()
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        if not tasks:
            return ()
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        if not late:
            return ()
        for task in late:
            task.cancel()
        _, stubborn = await asyncio.wait(late, timeout=CANCEL_TIMEOUT_S)
        return stubborn

    async def _run(self, key: LaneKey, lane: Lane) -> None:
        try:
            while lane.deliveries and not self._is_stopping:
                await self._work(lane.deliveries.popleft(), lane)
        finally:
            del self._lanes[key]
