"""A saga for a test: its steps, how their handlers behave, and what was called and done."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest

from choreo.contract import Saga
from choreo.errors import SagaFailed
from choreo.messages.records import AnyRecord, Failure, SagaCompleted, SagaStuck
from choreo.step import Abort, CompensationContext, Context, Continue, Reject, Service
from choreo.testing import Ledger

if TYPE_CHECKING:
    from tests.semantics.world import Stage

Behaviour = Callable[[Any], Any]
"""What a handler does with its context, sync or async: it returns or raises as a user's handler would."""


class Call(NamedTuple):
    """One call of a handler."""

    act: str
    step: str
    saga_id: str
    round: int
    attempt: int
    key: str
    input: Any
    effects: Mapping[str, Any]
    at_ms: int
    effect: Any = None
    failure: Failure | None = None
    own: bool = False
    generation: int = 0


class Play:
    """A saga and its services, one for each step.

    A step that returns has its effect in the ledger, and a compensation that returns has it struck out; whatever is
    created twice, undone twice or out of order fails the test.

    Attributes:
        calls: of all handlers, in order.
        saga_id: the saga that was started last.
    """

    def __init__(
        self,
        world: Stage,
        saga: Saga,
        do: Mapping[str, Behaviour],
        undo: Mapping[str, Behaviour],
        bind: Mapping[str, Mapping[str, Any]],
        prefix: str = "",
    ) -> None:
        """Make the services.

        Args:
            do: how steps behave; they work, if nothing is said.
            undo: how compensations behave.
            bind: options of the steps' bindings (``retry_on``, …), for step and compensation alike.
            prefix: of the services' names.
        """
        self.saga = saga
        self.prefix = prefix
        self.calls: list[Call] = []
        self.ledger = Ledger(saga)
        self.saga_id = ""
        self._world: Any = world
        unknown = {*do, *undo, *bind} - {step.name for step in saga.steps}
        assert not unknown, f"no steps of this saga: {unknown}"
        self.services = [
            self._service(
                step.name,
                do.get(step.name, works),
                undo.get(step.name, undoes),
                bind.get(step.name, {}),
                has_compensation=step.compensation is not None,
            )
            for step in saga.steps
            if step.child is None
        ]

    # What clients do

    async def run(self, value: Any = None, **options: Any) -> SagaCompleted:
        """Start the saga and wait until it is completed."""
        outcome: SagaCompleted = await self._world.run(self.saga, value, **options)
        self.saga_id = outcome.saga_id
        return outcome

    async def fails(self, value: Any = None, **options: Any) -> SagaFailed:
        """Start the saga, wait until it is compensated, and return the error."""
        with pytest.raises(SagaFailed) as failed:
            await self._world.run(self.saga, value, **options)
        self.saga_id = failed.value.saga_id
        return failed.value

    async def start(self, value: Any = None, **options: Any) -> str:
        self.saga_id = await self._world.start(self.saga, value, **options)
        return self.saga_id

    async def ends(self, **options: Any) -> SagaCompleted:
        """Wait until it is completed."""
        outcome: SagaCompleted = await self._world.wait(self.saga, self.saga_id, **options)
        return outcome

    async def ends_compensated(self, **options: Any) -> SagaFailed:
        """Wait until it is compensated, and return the error."""
        with pytest.raises(SagaFailed) as failed:
            await self._world.wait(self.saga, self.saga_id, **options)
        return failed.value

    async def is_called(self, act: str, step: str, times: int = 1) -> Call:
        """Wait until the handler has been called so often, and return the last call."""
        await self._world.until(lambda: len(self.called(act, step)) >= times)
        return self.called(act, step)[-1]

    async def is_stuck(self) -> Any:
        """Wait until the saga-log has said that the saga is stuck, and return its status."""

        async def status() -> Any:
            found = await self._world.status(self.saga, self.saga_id)
            return found if found.phase == "stuck" and await self.said(SagaStuck) else None

        return await self._world.until(status)

    def service(self, step: str) -> Service:
        """The service that runs the step."""
        return self.services[[each.name for each in self.saga.steps if each.child is None].index(step)]

    # What was done

    @property
    def story(self) -> str:
        """What happened to the world: ``+a`` an effect was made, ``-a`` undone, ``~a`` replaced."""
        return self.ledger.story(self.saga_id)

    def called(self, act: str, step: str) -> list[Call]:
        """The calls to ``do`` or ``undo`` a step."""
        return [call for call in self.calls if (call.act, call.step) == (act, step)]

    def order(self, act: str = "do") -> list[str]:
        """The steps whose handlers were called, in order."""
        return [call.step for call in self.calls if call.act == act]

    async def history(self) -> list[AnyRecord]:
        found: list[AnyRecord] = await self._world.history(self.saga, self.saga_id)
        return found

    async def said(self, kind: type[Any], step: str | None = None) -> list[Any]:
        """The records of a kind, those about one step if it is given."""
        return [
            record
            for record in await self.history()
            if isinstance(record, kind) and step in (None, getattr(record, "step", None))
        ]

    def check(self) -> None:
        """Nothing was done to the world that a saga must not do."""
        self.ledger.check()

    # Inside

    def _service(
        self, step: str, do: Behaviour, undo: Behaviour, bind: Mapping[str, Any], *, has_compensation: bool
    ) -> Service:
        service = Service(self._world.named(f"{self.prefix}{step.replace('_', '-')}"))

        @service.step(self.saga, step, **bind)
        async def handle(ctx: Context) -> Any:
            self._note("do", ctx)
            effect = await _behave(do, ctx)
            self.ledger.ensure(ctx)
            return effect

        if has_compensation:

            @service.compensation(self.saga, step, **bind)
            async def compensate(ctx: CompensationContext) -> Any:
                self._note("undo", ctx, effect=ctx.effect, failure=ctx.failure, own=ctx.own, generation=ctx.generation)
                answer = await _behave(undo, ctx)
                self.ledger.forget(ctx)
                if isinstance(answer, Continue) and ctx.own:
                    self.ledger.replace(ctx)
                return answer

        return service

    def _note(self, act: str, ctx: Context | CompensationContext, **more: Any) -> None:
        self.calls.append(
            Call(
                act,
                ctx.step,
                ctx.saga_id,
                ctx.round,
                ctx.attempt,
                ctx.idempotency_key,
                ctx.input,
                dict(ctx.effects),
                self._world.clock.now_ms(),
                **more,
            )
        )


async def _behave(behaviour: Behaviour, ctx: Any) -> Any:
    result = behaviour(ctx)
    return await result if inspect.isawaitable(result) else result


# How handlers behave


def done(ctx: Any) -> str:
    """The effect of a step that has nothing special to return."""
    return f"{ctx.step} {ctx.round}"


def works(ctx: Any) -> str:
    return done(ctx)


def undoes(_: Any) -> None:
    return None


def returns(value: Any) -> Behaviour:
    """A step's effect, or a compensation's answer."""
    return lambda _: value


def rejects(reason: str = "no", code: str = "") -> Behaviour:
    def reject(_: Any) -> None:
        raise Reject(reason, code=code)

    return reject


def aborts(reason: str = "never") -> Behaviour:
    def abort(_: Any) -> None:
        raise Abort(reason)

    return abort


def raises(error: BaseException) -> Behaviour:
    def fail(_: Any) -> None:
        raise error

    return fail


def sleeps(seconds: float, then: Behaviour = works) -> Behaviour:
    async def sleep(ctx: Any) -> Any:
        await asyncio.sleep(seconds)
        return await _behave(then, ctx)

    return sleep


async def hangs(_: Any) -> None:
    await asyncio.sleep(10_000)


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Another one for each call; the last one for all further calls."""
    left = list(behaviours)

    async def behave(ctx: Any) -> Any:
        return await _behave(left.pop(0) if len(left) > 1 else left[0], ctx)

    return behave


def in_round(behaviours: Mapping[int, Behaviour], otherwise: Behaviour = works) -> Behaviour:
    """Another one for each round of the saga."""

    async def behave(ctx: Any) -> Any:
        return await _behave(behaviours.get(ctx.round, otherwise), ctx)

    return behave


def read(outcome: SagaCompleted, step: str | None = None) -> Any:
    """An outcome's result, or the effect of a step, whatever it is written in."""
    raw = outcome.result if step is None else outcome.effects[step]
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return msgspec.msgpack.decode(raw)
