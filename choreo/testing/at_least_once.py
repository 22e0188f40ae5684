"""What at-least-once delivery does to a step, tried on the step itself: ``check_step``.

Each situation gets a log of its own, so that the worker knows no more than a worker does that has just taken over. The
service, its inbox and its database are the user's own; what stands of an effect, the user's ``observe`` says.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from choreo import ids
from choreo.broker.embedded.rules import HEARTBEAT_MS, SESSION_TIMEOUT_MS
from choreo.broker.memory import MemoryBroker, MemoryLog
from choreo.broker.port import Appended, Headers, Producer
from choreo.broker.registry import ensure_saga_topics
from choreo.broker.topics import saga_topic
from choreo.clock import SystemClock
from choreo.contract.policy import NO_DUE_MS
from choreo.contract.saga import Saga
from choreo.errors import ConfigurationError, DefinitionError
from choreo.messages.codec import decode, encode, encode_user_value
from choreo.messages.headers import CE_TYPE, JSON, make_headers
from choreo.messages.records import (
    Compensate,
    CompensationFailed,
    Execute,
    StepCompensated,
    StepCompleted,
    StepFailed,
)
from choreo.step import Options, Service, StepRuntime
from choreo.step.route import ce_type_of

Answer = StepCompleted | StepFailed | StepCompensated | CompensationFailed
Observe = Callable[[str], Any | Awaitable[Any]]

_ANSWERS = (StepCompleted, StepFailed, StepCompensated, CompensationFailed)
_CE_TYPES = frozenset(CE_TYPE[kind] for kind in _ANSWERS)
_OPTIONS = Options(poll_timeout_s=0.02, commit_interval_s=0.02)
_KEY = "make it conditional on ctx.idempotency_key (ctx.step_key in the compensation), or give the service an inbox"


class Finding(NamedTuple):
    """What a situation has done that it must not do.

    Attributes:
        situation: in words.
        expected, found: what ``observe`` should have returned, and what it did; or what was answered.
        advice: what to do about it.
    """

    situation: str
    expected: Any
    found: Any
    advice: str

    def __str__(self) -> str:
        return f"{self.situation}: {self.found!r} stands, expected {self.expected!r}; {self.advice}"


class StepReport(NamedTuple):
    """What ``check_step`` has come to.

    Attributes:
        tried: all situations, in order.
        findings: those in which something was wrong.
    """

    step: str
    tried: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def is_ok(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        verdict = "bears what at-least-once delivery does" if self.is_ok else f"{len(self.findings)} findings"
        return "\n".join([f"step {self.step!r}: {verdict}", *(f"  - {finding}" for finding in self.findings)])


async def check_step(
    service: Service,
    saga: Saga,
    step: str,
    input: object,  # noqa: A002 - the user's word
    *,
    observe: Observe,
    effects: Mapping[str, object] | None = None,
    timeout_s: float = 20.0,
) -> StepReport:
    """Run a step as crashes, rebalances and replicas make it run, and say what is not idempotent.

        report = await check_step(payment, ORDER, "charge_card", {"amount": 10}, observe=charges_of)
        assert report.is_ok, report

    Tried are: a second delivery to a worker that knows nothing of the first; a death between effect and answer; the
    compensation, twice; a death in the middle of that; the step again behind its compensation; and the compensation
    before its step. In real time, with sagas of new ids each time.

    Args:
        service: runs the step, with the database that it would have.
        input: with which the step succeeds.
        observe: what stands of the step's effects for a saga id, sync or async: rows, an amount. What it returns
            before the step, it has to return again when all is undone.
        effects: what the steps before this one have returned, by name.
        timeout_s: bound of each situation.

    Raises:
        DefinitionError: the service does not run this step.
        ConfigurationError: the step fails with this input, or ``observe`` sees nothing of it.
    """
    if (saga.name, saga.version, step) not in service.hosted():
        raise DefinitionError(f"service {service.name!r}", (f"it does not run step {step!r} of saga {saga.name!r}",))
    return await _Check(service, saga, step, input, observe, effects or {}, timeout_s).run()


class _Check:
    """One check at work."""

    def __init__(
        self,
        service: Service,
        saga: Saga,
        step: str,
        value: object,
        observe: Observe,
        effects: Mapping[str, object],
        timeout_s: float,
    ) -> None:
        self._service = service
        self._saga = saga
        self._step = step
        self._input = encode_user_value(value)
        self._effects = {name: msgspec.Raw(encode_user_value(effect)) for name, effect in effects.items()}
        self._observe = observe
        self._timeout_s = timeout_s
        self._tried: list[str] = []
        self._findings: list[Finding] = []

    async def run(self) -> StepReport:
        await self._delivered_again()
        await self._dies_before_it_answers()
        if self._saga[self._step].compensation is not None:
            await self._undone_twice()
            await self._dies_while_it_undoes()
            await self._undone_before_it_comes()
        return StepReport(self._step, tuple(self._tried), tuple(self._findings))

    # Situations

    async def _delivered_again(self) -> None:
        saga_id, nothing, once, _ = await self._ran()
        if once == nothing:
            raise ConfigurationError(
                f"observe({saga_id!r}) returns {once!r} before step {self._step!r} and behind it; it has to return "
                "what stands of the step's effects"
            )
        await self._deliver(saga_id, self._trigger(saga_id))
        await self._expect(saga_id, once, "the step is delivered a second time", f"the effect is made again: {_KEY}")

    async def _dies_before_it_answers(self) -> None:
        saga_id = _new_id()
        await self._deliver(saga_id, self._trigger(saga_id), dies=True)
        once = await self._seen(saga_id)
        await self._deliver(saga_id, self._trigger(saga_id))
        about = "the process dies between effect and answer, and the step is delivered again"
        await self._expect(saga_id, once, about, f"the effect is made again: {_KEY}")

    async def _undone_twice(self) -> None:
        saga_id, nothing, _, effect = await self._ran()
        if not await self._undone(saga_id, effect, "the step is compensated"):
            return
        advice = "the compensation does not undo all that the step does"
        await self._expect(saga_id, nothing, "the step is compensated", advice)
        behind = await self._seen(saga_id)
        await self._undone(saga_id, effect, "it is compensated a second time")
        await self._expect(saga_id, behind, "it is compensated a second time", f"it is undone again: {_KEY}")
        await self._deliver(saga_id, self._trigger(saga_id))
        advice = f"the effect comes back, and nobody undoes it: refuse a step that is compensated; {_KEY}"
        await self._expect(saga_id, behind, "the step is delivered again behind its compensation", advice)

    async def _dies_while_it_undoes(self) -> None:
        saga_id, nothing, _, effect = await self._ran()
        await self._deliver(saga_id, self._command(saga_id, effect), dies=True)
        about = "the process dies in the compensation, and it is delivered again"
        await self._undone(saga_id, effect, about)
        await self._expect(saga_id, nothing, about, f"it is undone again: {_KEY}")

    async def _undone_before_it_comes(self) -> None:
        saga_id = _new_id()
        nothing = await self._seen(saga_id)
        about = "the compensation comes before its step"
        await self._undone(saga_id, msgspec.UNSET, about)
        await self._expect(saga_id, nothing, about, f"something is undone that was never done: {_KEY}")
        await self._deliver(saga_id, self._trigger(saga_id))
        advice = f"the late effect stands for ever: record that it was compensated, and refuse the step; {_KEY}"
        await self._expect(saga_id, nothing, "the step comes behind its compensation", advice)

    # What they are made of

    async def _ran(self) -> tuple[str, Any, Any, msgspec.Raw]:
        """A saga whose step has run: what stood before and behind it, and what it returned."""
        saga_id = _new_id()
        nothing = await self._seen(saga_id)
        answer = await self._deliver(saga_id, self._trigger(saga_id))
        if not isinstance(answer, StepCompleted):
            said = answer.failure.message if isinstance(answer, StepFailed) else type(answer).__name__
            raise ConfigurationError(f"step {self._step!r} fails with this input ({said}); give one that it takes")
        return saga_id, nothing, await self._seen(saga_id), answer.effect

    async def _undone(self, saga_id: str, effect: msgspec.Raw | msgspec.UnsetType, about: str) -> bool:
        answer = await self._deliver(saga_id, self._command(saga_id, effect))
        if isinstance(answer, CompensationFailed):
            advice = "a compensation has to answer also where there is nothing (left) to undo"
            self._findings.append(Finding(about, "no error", answer.failure.message, advice))
            return False
        return True

    async def _expect(self, saga_id: str, expected: Any, about: str, advice: str) -> None:
        self._tried.append(about)
        found = await self._seen(saga_id)
        if found != expected:
            self._findings.append(Finding(about, expected, found, advice))

    async def _seen(self, saga_id: str) -> Any:
        seen = self._observe(saga_id)
        return await seen if inspect.isawaitable(seen) else seen

    async def _deliver(self, saga_id: str, record: Execute | Compensate, *, dies: bool = False) -> Answer | None:
        """Hand a record to a worker that knows nothing; what it answers, or ``None`` if it dies before it does."""
        log = MemoryLog(SystemClock().now_ms, SESSION_TIMEOUT_MS, HEARTBEAT_MS)
        broker = _Broker(log, dies=dies)
        await ensure_saga_topics(broker, self._service.contracts.values(), partitions=1)
        headers = make_headers(record, source="/choreo/check-step", content_type=JSON, traceparent=None)
        log.append(saga_topic(self._saga.name), saga_id, encode(record), headers)
        runtime = StepRuntime(self._service, broker, options=_OPTIONS)
        working = asyncio.create_task(runtime.run(), name=f"check-step/{saga_id}")
        answered = asyncio.create_task(broker.answered.wait())
        try:
            done, _ = await asyncio.wait(
                (working, answered), timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if working in done:
                working.result()
            if not done:
                raise ConfigurationError(f"step {self._step!r} has not answered within {self._timeout_s:g} s")
        finally:
            answered.cancel()
            working.cancel()
            await asyncio.wait((working, answered))
        return broker.answer

    def _trigger(self, saga_id: str) -> Execute:
        return Execute(
            **self._about(saga_id), saga_due_ms=NO_DUE_MS, input=msgspec.Raw(self._input), effects=self._effects
        )

    def _command(self, saga_id: str, effect: msgspec.Raw | msgspec.UnsetType) -> Compensate:
        return Compensate(
            **self._about(saga_id),
            generation=1,
            deadline_ms=round(self._timeout_s * 1_000),
            input=msgspec.Raw(self._input),
            effects=self._effects,
            effect=effect,
        )

    def _about(self, saga_id: str) -> dict[str, Any]:
        return {
            "saga": self._saga.name,
            "version": self._saga.version,
            "saga_id": saga_id,
            "start": ids.input_hash(self._input),
            "step": self._step,
            "round": 1,
        }


class _Broker(MemoryBroker):
    """Tells of the first answer; to a process that is to die, it never acknowledges one, nor is it in the log."""

    def __init__(self, log: MemoryLog, *, dies: bool) -> None:
        super().__init__("memory://check-step", log)
        self.answered = asyncio.Event()
        self.answer: Answer | None = None
        self._dies = dies

    async def producer(self) -> Producer:  # type: ignore[override]  # all that is promised is the port
        return _Producer(self, await super().producer())

    async def take(self, key: str, value: bytes, headers: Headers) -> None:
        if ce_type_of(headers) not in _CE_TYPES:
            return
        if not self._dies:
            record = decode(key.encode(), value, headers)
            assert isinstance(record, _ANSWERS), "its header says so"
            self.answer = record
        self.answered.set()
        if self._dies:
            await asyncio.Event().wait()


class _Producer:
    def __init__(self, broker: _Broker, inner: Producer) -> None:
        self._broker = broker
        self._inner = inner

    async def send(self, topic: str, *, key: str, value: bytes, headers: Headers = ()) -> Appended:
        await self._broker.take(key, value, headers)
        return await self._inner.send(topic, key=key, value=value, headers=headers)

    async def close(self) -> None:
        await self._inner.close()


def _new_id() -> str:
    return f"check-{secrets.token_hex(6)}"
