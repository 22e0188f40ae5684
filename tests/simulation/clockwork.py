"""An event loop on which the same program takes the same course: no sockets, no threads, no real time, no addresses."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from heapq import heappop, heappush
from typing import Any, TypeVar

from choreo.testing import VirtualClock, virtual_time
from choreo.testing.clock import TICK_S, JumpingSelector

T = TypeVar("T")

BEGAN_S = 1_000.0  # what the loop's time is at first, so that sums of times are rounded alike in every run
TICKS_PER_S = 2.0**20


class _Task(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address: a group cancels its tasks in the order of a set."""

    def __init__(self, number: int, coroutine: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number


class _Deaf(selectors.BaseSelector):
    """Nothing outside of the loop has anything to say."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}


class _Loop(asyncio.SelectorEventLoop):
    """asyncio's loop, in the order in which that works, without all that has to do with a world outside.

    Half of a run's events are its own: what they cost is what a run costs.
    """

    _ready: deque[asyncio.Handle]  # what asyncio keeps, and does not show
    _selector: selectors.BaseSelector
    _stopping: bool

    def __init__(self) -> None:
        super().__init__(_Deaf())
        numbers = itertools.count()
        self._moments: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._moment_numbers = itertools.count()

        def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
            return _Task(next(numbers), coroutine, loop=loop, **options)

        self.set_task_factory(make)

    def time(self) -> float:
        return BEGAN_S

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        # A wait that is a little too short by rounding would be asked for again, and two of them might wake each other.
        when = math.ceil(when * TICKS_PER_S) / TICKS_PER_S
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._moments, (when, next(self._moment_numbers), handle))
        return handle

    def _run_once(self) -> None:
        ready, moments, clock = self._ready, self._moments, self._selector
        while moments and moments[0][2]._cancelled:
            heappop(moments)
        if isinstance(clock, JumpingSelector):
            clock.now += TICK_S
            if not ready and not self._stopping:
                if not moments:
                    raise RuntimeError("everybody waits, and nothing will ever happen")
                clock.now = max(clock.now, moments[0][0])
            while moments and moments[0][0] <= clock.now:
                ready.append(heappop(moments)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()


def run(program: Callable[[VirtualClock], Coroutine[Any, Any, T]]) -> T:
    """Run a program on such a loop, in virtual time, and end whatever it leaves behind."""

    async def in_virtual_time() -> T:
        with virtual_time() as clock:
            return await program(clock)

    collects = gc.isenabled()
    gc.disable()  # the end of a forgotten generator is an event of the loop: not to depend on what else is in memory
    try:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            return runner.run(in_virtual_time())
    finally:
        if collects:
            gc.enable()
