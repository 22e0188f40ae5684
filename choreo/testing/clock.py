"""Virtual time on an asyncio event loop: it all but stands still while there is work, and jumps when everything waits.

``virtual_time`` turns the running loop's time virtual, so everything that waits on that loop does: backoffs, timeouts,
deadlines, and the ``asyncio.sleep`` of users' handlers. No wait takes longer than the work that is left to do.

What is under way outside of the loop takes real time, and time must not jump over it, or a query of three
milliseconds would end in a timeout of thirty seconds. Work in executors is counted, as is what runs inside
``outside_work``; for the rest (sockets of the loop, threads of drivers) a jump waits for a moment of silence.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from choreo.errors import ConfigurationError

EPOCH_MS = 1_767_225_600_000  # 2026-01-01T00:00Z: the same in every run, so that equal seeds give equal histories
SILENCE_S = 0.05
TICK_S = 1e-9

_Ready = list[tuple[selectors.SelectorKey, int]]


class VirtualClock:
    """The time of a loop whose time is virtual; a ``choreo.clock.Clock``. Made by ``virtual_time``."""

    def __init__(self, selector: JumpingSelector, epoch_ms: int) -> None:
        self._selector = selector
        self._began = selector.now
        self._epoch_ms = epoch_ms

    def now_ms(self) -> int:
        return self._epoch_ms + round((self._selector.now - self._began) * 1_000)

    def monotonic(self) -> float:
        return self._selector.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @contextmanager
    def outside_work(self) -> Iterator[None]:
        """Time is real while this runs: something is under way that the loop cannot see (a driver's own thread)."""
        self._selector.outside += 1
        try:
            yield
        finally:
            self._selector.outside -= 1


@contextmanager
def virtual_time(*, epoch_ms: int = EPOCH_MS) -> Iterator[VirtualClock]:
    """Make the running loop's time virtual in this block. Blocks may overlap; each has a clock of its own.

    Behind the last of them time goes on from where it was, at its usual pace.

    Args:
        epoch_ms: what the clock shows at first, milliseconds since the Unix epoch.

    Raises:
        ConfigurationError: the loop is none of asyncio's own (uvloop keeps its time where nobody can reach it).
    """
    loop = asyncio.get_running_loop()
    selector = _jumping(loop)
    selector.users += 1
    try:
        yield VirtualClock(selector, epoch_ms)
    finally:
        selector.users -= 1
        if selector.users == 0:
            selector.let_go()


class JumpingSelector(selectors.BaseSelector):
    """A loop's selector, and its time. Where the loop would wait for its next timer, time goes there instead.

    Attributes:
        now: seconds, what the loop's ``time`` gives.
        outside: pieces of work known to be under way outside of the loop.
        users: blocks of ``virtual_time`` that are open.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, inner: selectors.BaseSelector) -> None:
        self.now = loop.time()
        self.outside = 0
        self.users = 0
        self._loop = loop
        self._inner = inner
        self._run_in_executor = loop.run_in_executor
        vars(loop).update(_selector=self, time=lambda: self.now, run_in_executor=self._count_in_executor)

    def select(self, timeout: float | None = None) -> _Ready:
        # Each turn of the loop takes some time, however little. Whoever waits for the last billionth of a second of a
        # wait (what is left of it after rounding) would otherwise ask for ever: a timer of no length is due at once.
        self.now += max(TICK_S, 4 * math.ulp(self.now))
        if timeout is None or timeout <= 0:  # nothing is scheduled, or something is ready
            return self._inner.select(timeout)
        if self.outside:
            ready = self._inner.select(timeout)
        else:
            ready = self._inner.select(min(timeout, SILENCE_S) if self._may_be_spoken_to() else 0)
        if not ready:
            self.now += timeout
        return ready

    def let_go(self) -> None:
        """Give the loop its own selector back; its time goes on from now."""
        own = vars(self._loop)
        own["_selector"] = self._inner
        del own["time"], own["run_in_executor"]
        ahead_s = self.now - self._loop.time()
        own_time = self._loop.time
        own["time"] = lambda: own_time() + ahead_s

    def _may_be_spoken_to(self) -> bool:
        """Whether anything outside could have an answer under way: sockets besides the loop's own pipe, or threads."""
        if len(self._inner.get_map()) > 1:
            return True
        known = (threading.current_thread(), threading.main_thread())
        return any(thread not in known for thread in threading.enumerate())

    def _count_in_executor(self, executor: Any, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self._run_in_executor(executor, function, *args)
        self.outside += 1
        future.add_done_callback(self._came_back)
        return future

    def _came_back(self, _: object) -> None:
        self.outside -= 1

    # The rest of a selector is as it was.

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def close(self) -> None:
        self._inner.close()

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._inner.get_map()


def _jumping(loop: asyncio.AbstractEventLoop) -> JumpingSelector:
    selector = getattr(loop, "_selector", None)
    if isinstance(selector, JumpingSelector):
        return selector
    if not isinstance(selector, selectors.BaseSelector) or not hasattr(loop, "__dict__"):
        raise ConfigurationError(
            f"the time of a {type(loop).__module__}.{type(loop).__qualname__} cannot be made virtual; "
            "run on one of asyncio's selector loops, or choose real time"
        )
    return JumpingSelector(loop, selector)
