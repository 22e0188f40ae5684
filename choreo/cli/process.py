"""What ``run`` and ``saga-log`` have in common: a runtime that works until a signal, and its HTTP port."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Protocol, TypeVar

from choreo.errors import ConfigurationError
from choreo.observe.metrics import Metrics

T = TypeVar("T")

COLLECT_AFTER_OBJECTS = 20_000  # Python's default is 700


class Runtime(Protocol):
    """A step service's or the saga-log's runtime."""

    async def run(self) -> None: ...

    async def stop(self) -> None: ...

    def not_ready_because(self) -> str | None: ...


def run_async(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run on uvloop where it is installed, on asyncio's own loop otherwise."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


async def work_until_signal(
    runtime: Runtime, metrics: Metrics, server: AbstractAsyncContextManager[Any] | None, address: str
) -> None:
    """Run until SIGTERM or SIGINT, then stop gracefully. A second signal ends the process at once.

    Args:
        server: what answers on the HTTP port meanwhile.
        address: where, for an error.

    Raises:
        ConfigurationError: the HTTP port cannot be had.
    """
    stopping: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    collect_rarely()
    metrics.show_build(loop=type(loop).__module__.partition(".")[0])

    def on_signal() -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)
        stopping.add(loop.create_task(runtime.stop(), name="stop"))

    async with AsyncExitStack() as stack:
        if server is not None:
            try:
                await stack.enter_async_context(server)
            except OSError as error:
                raise ConfigurationError(
                    f"cannot listen on {address}: {error.strerror or error}; choose another --http-port"
                ) from error
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, on_signal)
        await runtime.run()
        await asyncio.gather(*stopping)


def collect_rarely() -> None:
    """Spare a long-lived process most garbage collections: at the default they took a sixth of its CPU time.

    What was imported is never garbage, so it is not looked at again; and what a record leaves behind is freed by
    counting references, so that looking for cycles can wait until much has piled up.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, 20, 20)
