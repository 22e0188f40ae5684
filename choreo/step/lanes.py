"""Lanes: the records of one saga and step one at a time, in log order; different ones side by side (rule 3).

Only so many handlers of a partition run at once; a lane that waits (for its turn, or between attempts) is at *rest*: it
holds no slot, and it can be ended at any moment without harm, because what it was about to do has not begun.

What begins is begun in a task that takes the lanes that are ready, one after the other. Most handlers of a busy service
end without a wait, and all that is left then is an answer that waits for its acknowledgement (``Sent``): such a lane
needs no task, it goes on where the acknowledgement comes. A lane that waits for anything else keeps the task for its
own, as a handler must have one (time-outs and cancellation are a task's), and another goes on with what is ready.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from choreo.step.call import drive
from choreo.step.route import Delivery

CANCEL_TIMEOUT_S = 2.0  # for a cancelled handler to clean up

TURNS_MAX = 200  # lanes that one task takes before others have a turn; their answers go out in one request

LaneKey = tuple[bytes | None, str]
"""Key of the record (the saga id) and step."""

Work = Coroutine[Any, Any, None]
"""What is left to do for a delivery."""


class Sent(ABC):
    """An answer on its way: nothing is left to do for a delivery before it is acknowledged."""

    __slots__ = ()
    acknowledgement: asyncio.Future[Any]

    @abstractmethod
    def acknowledged(self) -> Work | None:
        """The acknowledgement has come, or never will: do what is left, or say it if it has to be waited for."""


Begin = Callable[[Delivery, "Lane"], Sent | Work | None]
"""Begins what a delivery asks for, in a task, and says what is left; ``None`` if that is nothing."""


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
    """The waiting work of one saga and step.

    Attributes:
        at: the delivery that is in work.
        task: that does it, if it has one of its own.
        sent: the answer whose acknowledgement it waits for without one.
    """

    __slots__ = ("at", "deliveries", "is_resting", "key", "sent", "slots", "task")

    def __init__(self, key: LaneKey, slots: Slots) -> None:
        self.key = key
        self.deliveries: deque[Delivery] = deque()
        self.at: Delivery | None = None
        self.slots = slots
        self.is_resting = False
        self.task: asyncio.Task[None] | None = None
        self.sent: Sent | None = None

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
        begin: Begin,
        finish: Callable[[Delivery], None],
        *,
        concurrency: int,
    ) -> None:
        """Make room for lanes.

        Args:
            name: of the partition, for the names of tasks.
            tasks: the block in which the work is done.
            begin: with what a delivery asks for.
            finish: nothing of it is left to do.
            concurrency: handlers that run at once.
        """
        self._name = name
        self._tasks = tasks
        self._begin = begin
        self._finish = finish
        self._slots = Slots(concurrency)
        self._lanes: dict[LaneKey, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._is_taken_from = False  # whether there is a task that takes those that are ready
        self._is_stopping = False
        self._context = copy_context()

    @property
    def busy(self) -> int:
        """Lanes that have work."""
        return len(self._lanes)

    def add(self, delivery: Delivery) -> None:
        """Put work behind what its lane has already."""
        key = (delivery.message.key, delivery.step)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._open(key)
        lane.deliveries.append(delivery)

    def _open(self, key: LaneKey) -> Lane:
        """A new lane, which is ready as soon as it has work."""
        lane = self._lanes[key] = Lane(key, self._slots)
        self._be_ready(lane)
        return lane

    def stop(self) -> None:
        """Begin nothing new: lanes at rest end now, the others after what they are doing."""
        self._is_stopping = True
        for lane in self._ready:
            del self._lanes[lane.key]
        self._ready.clear()
        for lane in tuple(self._lanes.values()):
            if lane.is_resting and lane.task is not None:
                lane.task.cancel()

    async def drain(self, timeout_s: float) -> Collection[asyncio.Task[None]]:
        """Stop, and wait until all lanes have ended; those that have not by then are cancelled.

        Returns the tasks that even a cancellation has not ended: handlers that do not let go.
        """
        self.stop()
        tasks = [lane.task or self._task_of(lane) for lane in self._lanes.values()]
        if not tasks:
            return ()
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        if not late:
            return ()
        for task in late:
            task.cancel()
        _, stubborn = await asyncio.wait(late, timeout=CANCEL_TIMEOUT_S)
        return stubborn

    def _be_ready(self, lane: Lane) -> None:
        self._ready.append(lane)
        if not self._is_taken_from:
            self._have_them_taken()

    def _have_them_taken(self) -> None:
        self._is_taken_from = bool(self._ready)
        if self._ready:
            self._tasks.create_task(self._take_ready(), name=f"lanes/{self._name}", context=self._context.copy())

    async def _take_ready(self) -> None:
        """Begin one lane's work after the other's, until one has to wait: on with that to its end."""
        turns = 0
        while self._ready:
            turns += 1
            if turns % TURNS_MAX == 0:
                await asyncio.sleep(0)
                continue  # meanwhile they may have been told to stop
            lane = self._ready.popleft()
            # Each in a context of its own, as if in a task: what a handler sets there is not the next one's.
            context = self._context.copy()
            lane.at = lane.deliveries.popleft()
            try:
                begun = context.run(self._begin, lane.at, lane)
            except BaseException:
                del self._lanes[lane.key]
                raise
            if begun is None:
                self._ended(lane)
                continue
            if isinstance(begun, Sent):
                lane.sent = begun
                begun.acknowledgement.add_done_callback(partial(self._acknowledged, lane, begun), context=context)
                continue
            self._have_them_taken()
            await self._work_on(lane, begun, context)
            return
        self._is_taken_from = False

    async def _work_on(self, lane: Lane, work: Work, context: Context) -> None:
        """Go on with what has begun, in a task that is the lane's own."""
        lane.task = task = asyncio.current_task()
        assert task is not None, "a coroutine runs in one"
        task.set_name(f"lane/{self._name}/{lane.key[1]}")
        try:
            await drive(work, partial(work.send, None), context.run)
        except BaseException:
            del self._lanes[lane.key]
            raise
        lane.task = None
        self._ended(lane)

    def _acknowledged(self, lane: Lane, sent: Sent, _: asyncio.Future[Any]) -> None:
        """Go on with a lane that waited for an acknowledgement. Called in the lane's context."""
        if lane.sent is not sent:
            return  # it has a task by now
        lane.sent = None
        try:
            more = sent.acknowledged()
            if more is None:
                self._ended(lane)
                return
        except BaseException as error:  # noqa: BLE001  # raised where the failures of all work are
            more = _fail(error)
        work = self._work_on(lane, more, copy_context())
        lane.task = self._tasks.create_task(work, context=self._context.copy())

    def _task_of(self, lane: Lane) -> asyncio.Task[None]:
        """A task for a lane that waits for an acknowledgement without one."""
        sent, lane.sent = lane.sent, None
        assert sent is not None, "what is not ready waits, in a task or without"

        async def see_through() -> None:
            await asyncio.wait((sent.acknowledgement,))
            if (more := sent.acknowledged()) is not None:
                await more

        # Not in the block of tasks, which takes none when it is about to fail: who asks for it waits for it.
        lane.task = asyncio.create_task(self._work_on(lane, see_through(), self._context.copy()))
        return lane.task

    def _ended(self, lane: Lane) -> None:
        """A delivery has been worked on; there may be more of them."""
        assert lane.at is not None, "it has begun"
        self._finish(lane.at)
        if lane.deliveries and not self._is_stopping:
            self._be_ready(lane)
        else:
            del self._lanes[lane.key]


async def _fail(error: BaseException) -> None:
    raise error
