"""Runs that are cancelled because the saga has turned back: the worker's half of rule 25.

The saga-log says ``CancelStep`` for each step at work that need not go on. Whoever reads it knows more: in that round
nothing is wanted any more. So a trigger behind it, of whichever step that may be cancelled, is not run at all. That is
remembered here, for each partition, and found again by the scan at assignment; where a worker has missed it (restarted
between the two), the command about its own step comes later, and cancels what runs by then.

An async handler is cancelled. A sync one cannot be: its context says that no time is left, and the rest is as at a
timeout (``attempts``).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from choreo.broker.port import Message
from choreo.errors import Undecodable
from choreo.messages.codec import decode
from choreo.messages.records import CancelStep
from choreo.step.context import BaseContext

T = TypeVar("T")


class StepCancelled(Exception):  # noqa: N818  # stands in for the exception that a cancelled handler does not have
    """The saga has turned back; ``code`` is ``sibling_failed``, or ``saga_cancelled`` where nothing has failed."""

    def __init__(self, failed: str | None) -> None:
        self.code = "saga_cancelled" if failed is None else "sibling_failed"
        super().__init__("the saga was cancelled" if failed is None else f"step {failed!r} has failed")


class Lost(NamedTuple):
    """A round of a saga in which nothing is wanted any more."""

    key: bytes | None
    start: str
    round: int


class Cancellation:
    """Whether a run is to end before its time.

    Attributes:
        asked: done when it is.
        reason: why; ``None`` until then.
    """

    def __init__(self) -> None:
        self.asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reason: StepCancelled | None = None
        self._scope: asyncio.Timeout | None = None
        self._context: BaseContext[Any] | None = None

    @property
    def is_asked(self) -> bool:
        return self.reason is not None

    def ask(self, reason: StepCancelled) -> None:
        """End the run."""
        if self.reason is not None:
            return
        self.reason = reason
        self.asked.set_result(None)
        if self._context is not None:
            self._context.end_now()
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    def tell(self, context: BaseContext[Any]) -> None:
        """The context of the attempt that begins."""
        self._context = context

    async def cut(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Await it unless the end is asked for, and no longer. What it came to; ``None`` if it was not let end."""
        if self.is_asked:
            work.close()
            return None
        try:
            async with asyncio.timeout(None) as scope:
                self._scope = scope
                return await work
        except TimeoutError:
            if not scope.expired():
                raise
            return None
        finally:
            self._scope = None


class Cancellations:
    """The lost rounds of one partition, as far as they are known, and the runs that they end."""

    def __init__(self, saga: str, capacity: int) -> None:
        """Remember the last ``capacity`` rounds."""
        self._saga = saga
        self._capacity = capacity
        self._lost: OrderedDict[Lost, StepCancelled] = OrderedDict()
        self._running: dict[Lost, list[Cancellation]] = {}

    def see(self, message: Message) -> None:
        """``CancelStep`` was read."""
        try:
            record = decode(message.key, message.value, message.headers)
        except Undecodable:
            return  # then the step settles
        if not isinstance(record, CancelStep) or record.saga != self._saga:
            return
        lost, reason = Lost(message.key, record.start, record.round), StepCancelled(record.failed)
        self._lost[lost] = reason
        if len(self._lost) > self._capacity:
            self._lost.popitem(last=False)
        for cancellation in self._running.get(lost, ()):
            cancellation.ask(reason)

    @contextmanager
    def watch(self, lost: Lost) -> Iterator[Cancellation]:
        """A run in that round, for as long as the block lasts."""
        cancellation = Cancellation()
        if (reason := self._lost.get(lost)) is not None:
            cancellation.ask(reason)
        self._running.setdefault(lost, []).append(cancellation)
        try:
            yield cancellation
        finally:
            self._running[lost].remove(cancellation)
            if not self._running[lost]:
                del self._running[lost]
