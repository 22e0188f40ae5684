"""What a handler is told: which saga and step it works for, the saga's values so far, and how much time is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from choreo.clock import Clock
from choreo.errors import Undecodable
from choreo.messages.codec import decode_user_value
from choreo.messages.records import Failure
from choreo.step.job import CompensationJob, Job, StepJob
from choreo.step.verdict import InvalidInput

T = TypeVar("T")
J = TypeVar("J", bound=Job)


class EffectsView(Mapping[str, Any]):
    """Effects by step name, as plain builtins; each is decoded when it is asked for."""

    __slots__ = ("_content_type", "_raw")
    _KIND = "effect of step"

    def __init__(self, raw: Mapping[str, msgspec.Raw], content_type: str) -> None:
        self._raw = raw
        self._content_type = content_type

    def __getitem__(self, step: str) -> Any:
        return self._decode(step, Any)

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def typed(self, step: str, kind: type[T]) -> T:
        """The effect as a value of the given type."""
        value: T = self._decode(step, kind)
        return value

    def _decode(self, step: str, kind: Any) -> Any:
        try:
            raw = self._raw[step]
        except KeyError:
            known = ", ".join(self._raw) or "none"
            raise KeyError(f"no {self._KIND} {step!r} is known here; there are {known}") from None
        return decode_value(raw, kind, f"{self._KIND} {step!r}", self._content_type)


class SignalsView(EffectsView):
    """Payloads of signals by name, likewise."""

    __slots__ = ()
    _KIND = "signal"


class BaseContext(Generic[J]):
    """What steps and compensations are told alike. One object for each attempt.

    Attributes:
        attempt: counted from 1 within this run.
    """

    __slots__ = ("_clock", "_ends_at", "_input", "_job", "attempt")

    def __init__(self, job: J, attempt: int, ends_at: float, clock: Clock) -> None:
        self._job = job
        self._clock = clock
        self._ends_at = ends_at
        self._input: Any = msgspec.UNSET
        self.attempt = attempt

    def end_now(self) -> None:
        """No time is left from here on. Called by the worker where it gives the attempt up."""
        self._ends_at = min(self._ends_at, self._clock.monotonic())

    @property
    def saga(self) -> str:
        """The contract's name."""
        return self._job.saga.name

    @property
    def version(self) -> int:
        """The contract's version."""
        return self._job.saga.version

    @property
    def saga_id(self) -> str:
        return self._job.saga_id

    @property
    def step(self) -> str:
        return self._job.step.name

    @property
    def round(self) -> int:
        """1, and one more for each time the saga went forward again."""
        return self._job.round

    @property
    def run(self) -> str:
        """Drawn for this execution; a redelivery is another run. For logs: dedupe with the idempotency key."""
        return self._job.run

    @property
    def due_ms(self) -> int:
        """When the answer is late: milliseconds since the Unix epoch, broker's clock."""
        return self._job.due_ms

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context to carry on."""
        return None if self._job.traceparent is None else self._job.traceparent.decode("ascii", "replace")

    @property
    def input(self) -> Any:
        """The saga's input as plain builtins."""
        if self._input is msgspec.UNSET:
            self._input = decode_value(self._job.input, Any, "input", self._job.content_type)
        return self._input

    def input_as(self, kind: type[T]) -> T:
        """The saga's input as a value of the given type.

        Raises:
            InvalidInput: it does not fit; left alone, this fails the step with code ``invalid_input``.
        """
        value: T = decode_value(self._job.input, kind, "input", self._job.content_type)
        return value

    @property
    def effects(self) -> EffectsView:
        """What the steps before this one returned, by step name, as plain builtins."""
        return EffectsView(self._job.effects, self._job.content_type)

    @property
    def signals(self) -> SignalsView:
        """The payload of the signal that the step waited for, by its name, as plain builtins."""
        return SignalsView(self._job.signals, self._job.content_type)

    def signal(self, name: str, kind: type[T]) -> T:
        """The payload of the signal that the step waited for, as a value of the given type.

        Raises:
            KeyError: the step waits for another one, or for none.
            InvalidInput: the payload does not fit the type.
        """
        return self.signals.typed(name, kind)

    def time_left_s(self) -> float:
        """Seconds until this attempt is cancelled, by its timeout or because the answer is due; at least 0."""
        return max(0.0, self._ends_at - self._clock.monotonic())


class Context(BaseContext[StepJob]):
    """What a step's handler is told."""

    __slots__ = ()

    @property
    def idempotency_key(self) -> str:
        """Constant over all attempts and redeliveries of this step in this round."""
        return self._job.key

    def effect(self, step: str, kind: type[T]) -> T:
        """What an earlier step returned, as a value of the given type.

        Raises:
            KeyError: this step does not build on that one.
            InvalidInput: the effect does not fit the type.
        """
        return self.effects.typed(step, kind)


class CompensationContext(BaseContext[CompensationJob]):
    """What a compensation's handler is told. ``input`` and ``effects`` are as they were when the step ran."""

    __slots__ = ()

    def about(self, job: CompensationJob) -> CompensationContext:
        """The same attempt, with more known of what it is about."""
        return self if job is self._job else CompensationContext(job, self.attempt, self._ends_at, self._clock)

    @property
    def idempotency_key(self) -> str:
        """Constant over all attempts and redeliveries of this command; another one in the next generation."""
        return self._job.key

    @property
    def step_key(self) -> str:
        """The idempotency key that the step itself ran with: what to look its effect up by."""
        return self._job.step_key

    @property
    def effect(self) -> Any:
        """What the step returned, as plain builtins; ``None`` if it never completed (there may still be an effect)."""
        return self._effect(Any)

    def effect_as(self, kind: type[T]) -> T | None:
        """What the step returned, as a value of the given type; ``None`` if it never completed.

        Raises:
            InvalidInput: the effect does not fit the type.
        """
        value: T | None = self._effect(kind)
        return value

    def _effect(self, kind: Any) -> Any:
        raw = self._job.effect
        if isinstance(raw, msgspec.UnsetType):
            return None
        return decode_value(raw, kind, f"effect of step {self.step!r}", self._job.content_type)

    def effect_of(self, step: str, kind: type[T]) -> T:
        """What a step before this one returned. Raises as ``Context.effect`` does."""
        return self.effects.typed(step, kind)

    @property
    def failure(self) -> Failure | None:
        """What the saga goes back for; ``None`` after a cancel."""
        return self._job.failure

    @property
    def generation(self) -> int:
        """1, and one more for each time the command had to be given again."""
        return self._job.generation

    @property
    def own(self) -> bool:
        """Whether this step is itself one that failed; only then may the answer be ``Continue``."""
        return self._job.own

    @property
    def may_continue(self) -> bool:
        """Whether ``Continue`` may count: the step itself failed, in a way that its ``recover_from`` names."""
        failure = self._job.failure
        return self._job.own and failure is not None and self._job.step.may_recover_from(failure.kind)


def decode_value(raw: msgspec.Raw, kind: Any, what: str, content_type: str) -> Any:
    """A value of the context. Raises ``InvalidInput`` that says which value does not fit, and where."""
    try:
        return decode_user_value(raw, kind, content_type=content_type)
    except Undecodable as error:
        raise InvalidInput(f"{what}: {error}") from error
