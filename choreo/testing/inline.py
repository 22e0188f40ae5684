"""Sync handlers without threads: called one at a time, so that equal seeds give equal histories."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class InlineExecutor(Executor):
    """Calls what is submitted at once, in the caller's thread.

    The call sees no running event loop, as it would in a thread of its own: ``asyncio.run`` works in it.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        running = asyncio._get_running_loop()  # noqa: SLF001  # what asyncio offers to those who run loops
        asyncio._set_running_loop(None)  # noqa: SLF001
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  # it is the future's to tell, as with any executor
            future.set_exception(error)
        finally:
            asyncio._set_running_loop(running)  # noqa: SLF001
        return future
