"""Tracers: told before and after each attempt, in bounded time, and unable to harm it.

``choreo.observe.events`` says what a tracer is.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from choreo.broker.port import Message
from choreo.clock import Clock
from choreo.errors import Unencodable
from choreo.messages.codec import encode_user_value
from choreo.messages.records import Failure
from choreo.observe.events import AttemptEnded, AttemptEvent, OutcomeEvent, TracedResult
from choreo.observe.metrics import Metrics
from choreo.step.call import AttemptTimeout, Lingering, call
from choreo.step.failure import crash, failure_of
from choreo.step.handler import is_async
from choreo.step.job import CompensationJob, Job, StepJob

logger = logging.getLogger(__name__)

J = TypeVar("J", bound=Job)

ARGUMENTS = {
    "before_step": 1,
    "after_step": 2,
    "before_compensation": 1,
    "after_compensation": 2,
    "on_outcome": 1,
    "traceparent": 1,
}
"""The methods of a tracer, and how many arguments each is called with."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")


def problems_of_tracer(tracer: object) -> list[str]:
    """What keeps an object from being a tracer."""
    known = {name: method for name in ARGUMENTS if callable(method := getattr(tracer, name, None))}
    if not known:
        return [f"it has none of the methods {', '.join(ARGUMENTS)}"]
    problems = []
    for name, method in known.items():
        try:
            inspect.signature(method).bind(*range(ARGUMENTS[name]))
        except TypeError as error:
            taken = "event, state" if ARGUMENTS[name] == 2 else "state" if name == "traceparent" else "event"
            problems.append(f"{name} must be callable as {name}({taken}): {error}")
        except ValueError:
            continue  # a builtin that does not tell its signature
    if "traceparent" in known and is_async(known["traceparent"]):
        problems.append("traceparent must not be async: it is asked between two steps of the event loop")
    return problems


class _Method(NamedTuple):
    """A method of a tracer, callable as ``call`` wants it."""

    function: Callable[..., Any]
    is_async: bool

    def arguments(self, subject: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
        return list(subject), {}


class _Tracer:
    """One tracer, guarded."""

    def __init__(self, tracer: object, executor: Executor, metrics: Metrics, timeout_s: float) -> None:
        self._name = type(tracer).__qualname__
        self._methods = {
            name: _Method(method, is_async(method))
            for name in ARGUMENTS
            if callable(method := getattr(tracer, name, None))
        }
        self._executor = executor
        self._errors = metrics.observer_errors.labels("tracer")
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()
        self._lingering: Lingering | None = None
        self._is_slow = False  # and that is logged

    async def tell(self, name: str, *subject: Any) -> Any:
        """Call the method if there is one. What it returns; ``None`` if it fails."""
        method = self._methods.get(name)
        if method is None:
            return None
        error: BaseException | None
        if method.is_async:
            value, error, _ = await call(method, subject, self._executor, self._timeout_s)
        else:
            value, error = await self._in_thread(method, subject)
        if error is None:
            self._is_slow = False
        else:
            self._complain(name, error)
        return value

    def traceparent(self, state: Any) -> bytes | None:
        """The trace context that it wants to be handed on."""
        method = self._methods.get("traceparent")
        if method is None:
            return None
        try:
            given = method.function(state)
            if given is None:
                return None
            if not (isinstance(given, str) and _TRACEPARENT.match(given)):
                raise ValueError(f"{given!r} is no W3C traceparent")  # noqa: TRY301  # told as all that goes wrong here
        except Exception as error:  # noqa: BLE001  # whatever it raises, the saga goes on
            self._complain("traceparent", error)
            return None
        return given.encode()

    async def _in_thread(self, method: _Method, subject: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
        # One thread for each tracer: if it hangs, it holds one thread of the handlers' pool, never all of them.
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._turn.acquire()
        except TimeoutError:
            return None, AttemptTimeout("timeout", self._timeout_s)
        try:
            if self._lingering is not None and not self._lingering.done():
                return None, AttemptTimeout("timeout", 0)
            value, error, self._lingering = await call(method, subject, self._executor, self._timeout_s)
        finally:
            self._turn.release()
        return value, error

    def _complain(self, name: str, error: BaseException) -> None:
        self._errors.inc()
        if isinstance(error, AttemptTimeout):
            if not self._is_slow:
                logger.error("tracer %s takes too long in %s; it is passed over while it hangs", self._name, name)
            self._is_slow = True
            return
        logger.error("tracer %s failed in %s, which is ignored", self._name, name, exc_info=error)


class Tracers:
    """The tracers of one service."""

    def __init__(
        self,
        tracers: Sequence[object],
        service: str,
        group: str,
        *,
        executor: Executor,
        clock: Clock,
        metrics: Metrics,
        timeout_s: float,
    ) -> None:
        """Equip them.

        Args:
            executor: where sync methods run.
            timeout_s: bound of each call.
        """
        self._tracers = tuple(_Tracer(tracer, executor, metrics, timeout_s) for tracer in tracers)
        self.want_outcomes = any(callable(getattr(tracer, "on_outcome", None)) for tracer in tracers)
        self.service = service
        self.group = group
        self.clock = clock

    @property
    def are_there(self) -> bool:
        return bool(self._tracers)

    def watch(self, job: J, message: Message) -> Watch[J] | None:
        """What tells them of the attempts of a run; ``None`` if there is nobody to tell."""
        return Watch(self, self._tracers, job, message) if self._tracers else None

    async def on_outcome(self, event: OutcomeEvent) -> None:
        """Tell them of an outcome."""
        for tracer in self._tracers:
            await tracer.tell("on_outcome", event)


class Watch(Generic[J]):
    """The attempts of one run, as tracers are told of them.

    Attributes:
        job: with the trace context to hand on.
    """

    def __init__(self, owner: Tracers, tracers: Sequence[_Tracer], job: J, message: Message) -> None:
        self.job = job
        self._clock = owner.clock
        self._tracers = tracers
        self._original = job
        self._what = "compensation" if isinstance(job, CompensationJob) else "step"
        self._about: dict[str, Any] = {
            "service": owner.service,
            "group": owner.group,
            "saga": job.saga.name,
            "version": job.saga.version,
            "saga_id": job.saga_id,
            "step": job.step.name,
            "round": job.round,
            "generation": job.generation if isinstance(job, CompensationJob) else 0,
            "run": job.run,
            "idempotency_key": job.key if isinstance(job, (StepJob, CompensationJob)) else job.step_key,
            "due_ms": job.due_ms,
            "traceparent": None if job.traceparent is None else job.traceparent.decode("ascii", "replace"),
            "topic": message.topic,
            "partition": message.partition,
            "offset": message.offset,
            "message_id": (message.header("ce_id") or b"").decode("utf-8", "replace"),
        }
        self._states: list[Any] | None = None  # of the attempt that is under way
        self._began = 0.0

    async def before(self, attempt: int) -> J:
        """An attempt begins. Returns the job as its handler is to see it."""
        self._about |= {"attempt": attempt, "started_ms": self._clock.now_ms()}
        event = AttemptEvent(**self._about)
        states = self._states = []
        self.job = self._original
        for tracer in self._tracers:
            state = await tracer.tell(f"before_{self._what}", event)
            states.append(state)
            if (traceparent := tracer.traceparent(state)) is not None:
                self.job = msgspec.structs.replace(self.job, traceparent=traceparent)
        self._began = self._clock.monotonic()
        return self.job

    async def after(self, value: Any, error: BaseException | None, result: TracedResult, *, is_last: bool) -> None:
        """The attempt has ended; nothing happens if none was under way."""
        states, self._states = self._states, None
        if states is None:
            return
        duration_s = self._clock.monotonic() - self._began
        failure: Failure | None = None if error is None else failure_of(error)
        effect: bytes | None = None
        if result == "ok" and self._what == "step":
            try:
                effect = encode_user_value(value, content_type=self.job.content_type)
            except Unencodable as unencodable:
                result, failure = "crashed", crash(unencodable, code="unencodable_effect")
        event = AttemptEnded(
            **self._about,
            result=result,
            duration_s=duration_s,
            failure=failure,
            effect=effect,
            content_type=self.job.content_type,
            is_last=is_last,
        )
        # Cancelled in the middle of ``before``, there are fewer states than tracers: the others were told nothing.
        for tracer, state in reversed(list(zip(self._tracers, states, strict=False))):
            await tracer.tell(f"after_{self._what}", event, state)
