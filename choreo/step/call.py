"""One call of a user's function, sync or async, that ends in time or is cancelled, and never raises.

An async function ends when it is cancelled. A sync one runs in a thread, and a thread cannot be ended: it *lingers*,
and the caller is handed the future to wait for.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from choreo.step.verdict import Reject

S_contra = TypeVar("S_contra", contravariant=True)

Steps = Generator[Any, Any, Any]
"""What an awaitable does, one step at a time; it yields what it waits for."""

Lingering = asyncio.Future[Any]
"""A thread that is still at work."""


class AttemptTimeout(TimeoutError):  # noqa: N818  # stands in for the exception that a cancelled handler does not have
    """The attempt was cancelled. ``code`` is ``timeout`` (its own bound) or ``deadline`` (the answer is due)."""

    def __init__(self, code: str, seconds: float) -> None:
        self.code = code
        super().__init__(
            f"cancelled after its timeout of {seconds:g} s" if code == "timeout" else "cancelled: its answer is due"
        )


class UnfitInput(Reject):
    """The input does not fit the type that the handler declares. The function has not run, so there is no effect."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, code="invalid_input")


class Callee(Protocol[S_contra]):
    """A function with what it takes to call it about a subject: a context, an event."""

    @property
    def function(self) -> Callable[..., Any]: ...

    @property
    def is_async(self) -> bool:
        """Whether calling it gives a coroutine; otherwise it may block, and is called in a thread."""
        ...

    def arguments(self, subject: S_contra) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments for a call. Raises ``UnfitInput``."""
        ...


async def call(
    callee: Callee[S_contra], subject: S_contra, executor: Executor, limit_s: float, code: str = "timeout"
) -> tuple[Any, BaseException | None, Lingering | None]:
    """Call what there is to call: what it returned, what it raised, and its thread if that goes on.

    Args:
        subject: what it is about.
        executor: where a sync function runs.
        limit_s: bound of the call.
        code: of the ``AttemptTimeout`` that stands for an exception past the bound.
    """
    if callee.is_async:
        value, error = await call_async(callee, subject, limit_s, code)
        return value, error, None
    return await call_in_thread(callee, subject, executor, limit_s, code)


async def call_in_thread(
    callee: Callee[S_contra],
    subject: S_contra,
    executor: Executor,
    limit_s: float,
    code: str,
    until: asyncio.Future[None] | None = None,
) -> tuple[Any, BaseException | None, Lingering | None]:
    """``call`` for a sync function. When ``until`` is done, it is given up as past its bound."""
    try:
        positional, keywords = callee.arguments(subject)
    except UnfitInput as unfit:
        return None, unfit, None
    in_context = copy_context()  # so that what the handler logs has the lane's fields

    def in_thread() -> tuple[Any, BaseException | None]:
        # Caught here because not every exception can be set on a future (StopIteration would hang its waiter).
        try:
            return in_context.run(callee.function, *positional, **keywords), None
        except BaseException as raised:  # noqa: BLE001  # SystemExit in a thread ends nothing, it is a crash
            return None, raised

    submitted = executor.submit(in_thread)
    future = asyncio.wrap_future(submitted)
    try:
        if until is None:
            await asyncio.wait((future,), timeout=limit_s)
        else:
            await asyncio.wait((future, until), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        submitted.cancel()  # what still waits for a thread must not begin when nobody listens any more
        raise
    if future.done():
        value, error = future.result()
        return value, error, None
    never_began = submitted.cancel()
    return None, AttemptTimeout(code, limit_s), None if never_began else future


class Begun(NamedTuple):
    """A call whose first step was taken.

    Attributes:
        error: what it raised.
        waits_for, steps: what it waits for, and its further steps; ``None`` if it has ended.
        value: what it returned, if it has ended and raised nothing.
    """

    error: BaseException | None
    waits_for: Any
    steps: Steps | None
    limit_s: float
    code: str
    value: Any = None

    @classmethod
    def ended(cls, value: Any) -> Begun:
        """One that has returned."""
        return cls(None, None, None, 0.0, "", value)

    def __repr__(self) -> str:
        return "Begun()"  # the error and the frames are the user's, and may hold what is not for a log

    async def end(self) -> tuple[Any, BaseException | None]:
        """Go on with it, in the task in which it began: what it returned, what it raised."""
        if self.steps is None:
            return self.value, self.error
        return await _call_waiting(self.waits_for, self.steps, self.limit_s, self.code)


def begin_async(callee: Callee[S_contra], subject: S_contra, limit_s: float, code: str) -> tuple[Any, Begun | None]:
    """Take the first step of an async function: what it returned, or what has begun if it has not.

    Most handlers of a busy service end with their first step, and need no timer.
    """
    try:
        positional, keywords = callee.arguments(subject)
        steps = callee.function(*positional, **keywords).__await__()
        waits_for = steps.send(None)
    except StopIteration as ended:
        return ended.value, None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  # whatever a handler raises, SystemExit too, is its failure
        return None, Begun(error, None, None, limit_s, code)
    return None, Begun(None, waits_for, steps, limit_s, code)


async def call_async(
    callee: Callee[S_contra], subject: S_contra, limit_s: float, code: str
) -> tuple[Any, BaseException | None]:
    """``call`` for an async function, which never lingers."""
    value, begun = begin_async(callee, subject, limit_s, code)
    return (value, None) if begun is None else await begun.end()


def limit_of(timeout_s: float, left_s: float) -> tuple[float, str]:
    """How long an attempt may take, and the code of the ``AttemptTimeout`` past that."""
    return (timeout_s, "timeout") if timeout_s <= left_s else (left_s, "deadline")


async def _call_waiting(waits_for: Any, steps: Steps, limit_s: float, code: str) -> tuple[Any, BaseException | None]:
    """Go on with a call that waits for something."""
    task = asyncio.current_task()
    assert task is not None, "handlers are called in tasks"
    cancellations = task.cancelling()
    try:
        async with asyncio.timeout(limit_s) as scope:
            return await drive(steps, lambda: waits_for), None
    except asyncio.CancelledError as error:
        if task.cancelling() > cancellations:
            raise  # we are told to end
        return None, error  # the handler waited for a task of its own that was cancelled: a crash like any other
    except TimeoutError as error:
        return None, AttemptTimeout(code, limit_s) if scope.expired() else error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  # as above
        return None, error


def _plainly(step: Callable[[], Any]) -> Any:
    return step()


@types.coroutine
def drive(
    steps: Steps | Coroutine[Any, Any, Any], step: Callable[[], Any], run: Callable[[Callable[[], Any]], Any] = _plainly
) -> Steps:
    """Take an awaitable's steps, from ``step`` on, as awaiting it would.

    Args:
        step: takes the next one; it gives what is waited for then, as ``steps.send`` does.
        run: takes a step in its own way, as in a context.
    """
    while True:
        try:
            waits_for = run(step)
        except StopIteration as ended:
            return ended.value
        try:
            yield waits_for
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as thrown:  # noqa: BLE001  # a cancellation; it is the awaitable's to answer
            step = partial(steps.throw, thrown)
        else:
            step = partial(steps.send, None)
