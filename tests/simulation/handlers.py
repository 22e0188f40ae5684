"""The handlers of the services: they make and undo effects, and do all that handlers do wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from choreo.step import (
    Abort,
    AbortRetries,
    CompensationContext,
    Context,
    Continue,
    NothingToUndo,
    Reject,
    Retry,
    Service,
)
from tests.simulation.effects import Refused
from tests.simulation.judge import Judge
from tests.simulation.process import Process
from tests.simulation.shapes import SYNC_STEPS, Shape

HANG_S = 60.0


class HandlerFailed(Exception):  # noqa: N818  # whatever a handler may raise
    """The handler has crashed."""


def bind(
    service: Service, shape: Shape, process: Process, judge: Judge, inside: Callable[[str], Any] = lambda _: None
) -> Service:
    """Bind the handlers of a service's steps, for one life of a process.

    Args:
        inside: handlers of a step that work in the transactions of its service's inbox, if they do.
    """
    for step in shape.services[service.name]:
        if (handlers_inside := inside(step)) is not None:
            service.step(shape.contract, step)(handlers_inside.run)
            if shape.contract[step].compensation is not None:
                service.compensation(shape.contract, step)(handlers_inside.undo)
            continue
        handlers = Handlers(process, judge)
        service.step(shape.contract, step)(handlers.run_in_thread if step in SYNC_STEPS else handlers.run)
        if shape.contract[step].compensation is not None:
            service.compensation(shape.contract, step)(handlers.undo)
    return service


class Handlers:
    """The handlers of a step."""

    def __init__(self, process: Process, judge: Judge) -> None:
        self._process = process
        self._judge = judge

    async def run(self, ctx: Context) -> dict[str, Any]:
        process, faults = self._process, self._process.faults
        await process.gate()
        work = self._judge.started(process, ctx)
        try:
            if faults.happens("step_is_slow"):
                await process.pause(faults.seconds(longest=3.0))
            if faults.happens("step_hangs_before_effect"):
                await process.pause(HANG_S)
            process.may_die("dies_before_effect")
            effect = self._do(ctx)
            process.may_die("dies_after_effect")
            if faults.happens("step_hangs_after_effect"):
                await process.pause(HANG_S)
            if faults.happens("step_fails_after_effect"):
                raise HandlerFailed
            await asyncio.sleep(0)
            await process.gate()
            return effect
        finally:
            self._judge.ended(process, work)

    def run_in_thread(self, ctx: Context) -> dict[str, Any]:
        work = self._judge.started(self._process, ctx)
        try:
            effect = self._do(ctx)
            if self._process.faults.happens("step_fails_after_effect"):
                raise HandlerFailed
            return effect
        finally:
            self._judge.ended(self._process, work)

    def _do(self, ctx: Context) -> dict[str, Any]:
        faults, key = self._process.faults, ctx.idempotency_key
        if faults.happens("step_fails_before_effect"):
            raise HandlerFailed
        if faults.happens(
            "step_rejects"
        ):  # also where an earlier run has done it: what is asked first is not its database
            raise Reject("not today", code="rejected")
        if faults.happens("step_aborts"):
            raise Abort("never", code="aborted")
        builds_on = frozenset(effect["key"] for effect in ctx.effects.values() if effect["key"])
        try:
            self._judge.make(self._process, key, builds_on)
        except Refused as refused:
            raise Reject(str(refused), code="compensated") from refused
        return {"key": key}

    async def undo(self, ctx: CompensationContext) -> Any:
        process, faults = self._process, self._process.faults
        await process.gate()
        work = self._judge.started(process, ctx)
        try:
            if faults.happens("undo_is_slow"):
                await process.pause(faults.seconds(longest=2.0))
            if faults.happens("undo_hangs"):
                await process.pause(HANG_S)
            if self._judge.fails_for_good(ctx.idempotency_key, faults) or faults.happens("undo_fails_once"):
                raise HandlerFailed
            process.may_die("dies_before_effect")
            undone = self._judge.undo(process, ctx.step_key)
            process.may_die("dies_after_effect")
            if faults.happens("undo_fails_after_effect"):
                raise HandlerFailed
            await asyncio.sleep(0)
            await process.gate()
            if faults.happens("undo_asks_for_retry"):
                return Retry(3, base_backoff=faults.random.choice((0, 50, 20_000)), max_backoff=20_000)
            if ctx.own and faults.happens("undo_continues"):
                return Continue({"key": ""})
            if faults.happens("undo_aborts_retries"):
                return AbortRetries()
            return None if undone else NothingToUndo()
        finally:
            self._judge.ended(process, work)
