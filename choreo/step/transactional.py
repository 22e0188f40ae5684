"""Handlers in a transaction of the service's database: effect, row and record commit together, or nothing does.

Each is made for one run and called once for each attempt, in the handler's place. What was committed stands in
``recorded``; where that is ``None`` behind the last attempt, nothing was, and the failure is recorded by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from choreo.errors import Unencodable
from choreo.inbox.transaction import Transaction, drive, raise_unavailable
from choreo.inbox.transient import is_transient
from choreo.messages.codec import decode_user_value
from choreo.messages.records import CompensationFailed, StepCompensated, StepCompleted, StepFailed
from choreo.step import answer, recorded
from choreo.step.attempts import Ended
from choreo.step.call import AttemptTimeout
from choreo.step.context import BaseContext, CompensationContext, Context
from choreo.step.failure import crash
from choreo.step.handler import Handler
from choreo.step.job import CompensationJob, StepJob
from choreo.step.recorded import StepOutcome, UndoAnswer, subject_of
from choreo.step.recorder import Recorder

R = TypeVar("R", StepOutcome, UndoAnswer)


class _InTransaction(Generic[R]):
    """What both have in common.

    Attributes:
        recorded: what was committed, by this run or by another one before it.
        refused: what the last attempt came to after its handler had returned, which was rolled back for that.
    """

    def __init__(self, recorder: Recorder, handler: Handler) -> None:
        self.is_async = handler.is_async
        self.retried = handler.retried
        self.function: Callable[..., Any] = self._run_async if handler.is_async else self._run_in_thread
        self.recorded: R | None = None
        self.refused: R | None = None
        self._recorder = recorder
        self._handler = handler
        self._began = recorder.clock.monotonic()

    def arguments(self, context: Any) -> tuple[list[Any], dict[str, Any]]:
        return [context], {}

    async def _run_async(self, context: Any) -> Any:
        transaction = self._recorder.inbox.transaction()
        try:
            return await self._run(transaction, context)
        finally:
            await asyncio.shield(transaction.close())

    def _run_in_thread(self, context: Any) -> Any:
        async def run() -> Any:
            transaction = self._recorder.inbox.transaction()
            try:
                return await self._run(transaction, context)
            finally:
                await transaction.close()

        return drive(run())

    async def _run(self, transaction: Transaction, context: Any) -> Any:
        raise NotImplementedError

    async def _call(self, transaction: Transaction, context: BaseContext[Any]) -> Any:
        """Call the handler with the database filled in."""
        handler = self._handler
        positional, keywords = handler.arguments(context)
        for name, resource in handler.resources:
            keywords[name] = await transaction.fill(resource)
        try:
            result = handler.function(*positional, **keywords)
            value = await result if handler.is_async else result
        except Exception as error:
            if is_transient(error):
                raise_unavailable(error)
            raise
        await transaction.finish_handler()
        return value

    async def _commit(self, transaction: Transaction, context: BaseContext[Any]) -> None:
        if context.time_left_s() <= 0:
            # A thread that was given up: nobody waits for its result, so it must not have any.
            raise AttemptTimeout("timeout", 0)
        await transaction.commit()

    def _ended(self, value: Any, context: BaseContext[Any]) -> Ended:
        duration_ms = round((self._recorder.clock.monotonic() - self._began) * 1_000)
        return Ended(value, None, context.attempt, duration_ms, in_doubt=False, lingering=None)


class TransactionalStep(_InTransaction[StepOutcome]):
    """A run of a step.

    Attributes:
        is_vouched: runs that were not recorded have certainly left nothing (rule 5).
        was_recorded: another run was recorded before, and no handler was called.
    """

    def __init__(self, recorder: Recorder, handler: Handler, job: StepJob) -> None:
        super().__init__(recorder, handler)
        self.is_vouched = True
        self.was_recorded = False
        self._job = job

    async def _run(self, transaction: Transaction, context: Context) -> Any:
        job, clock = self._job, self._recorder.clock
        subject = subject_of(job)
        row = subject.begun(job.content_type)
        self.refused = None
        await transaction.begin()
        if not await transaction.claim(row, clock.now_ms(), context.time_left_s()):
            row = await transaction.row(subject.key)
            if (standing := recorded.recorded_outcome(row, subject)) is not None:
                self.recorded, self.was_recorded = standing, True
                return _value_of(standing, row.content_type)
            self.is_vouched = False  # a run that has begun outside, or has ended its transaction by itself
        value = await self._call(transaction, context)
        reply = answer.answer_of_step(job, self._ended(value, context))
        if isinstance(reply, StepCompleted):
            try:
                row = recorded.completed_row(row, reply, job.content_type)
            except Unencodable as error:
                reply = answer.failed(job, crash(error, code="context_too_large"), "unknown")
        if isinstance(reply, StepFailed):
            self.refused = reply
            return value
        await transaction.write(row, clock.now_ms())
        await self._commit(transaction, context)
        self.recorded = reply
        return value


class TransactionalUndo(_InTransaction[UndoAnswer]):
    """A run of a compensation.

    Attributes:
        is_empty: there was nothing to undo.
        was_recorded: the answer was there before, or is given by the inbox alone, and no handler was called.
    """

    def __init__(
        self,
        recorder: Recorder,
        handler: Handler,
        job: CompensationJob,
        to_answer: Callable[[CompensationJob, Ended], UndoAnswer],
        *,
        is_inside: bool,
    ) -> None:
        """Prepare a run.

        Args:
            to_answer: makes the answer of what the handler has returned.
            is_inside: whether the step's handler works in the transaction.
        """
        super().__init__(recorder, handler)
        self.is_empty = False
        self.was_recorded = False
        self._job = job
        self._to_answer = to_answer
        self._is_inside = is_inside

    async def _run(self, transaction: Transaction, context: CompensationContext) -> Any:
        clock = self._recorder.clock
        self.refused = None
        await transaction.begin()
        undo, row = await self._recorder.plan_within(
            transaction, self._job, context.time_left_s(), is_inside=self._is_inside
        )
        self.is_empty = undo.is_empty
        if undo.answer is not None:
            await self._commit(transaction, context)
            self.recorded, self.was_recorded = undo.answer, True
            return None
        value = await self._call(transaction, context.about(undo.job))
        reply = self._to_answer(self._job, self._ended(value, context))
        if isinstance(reply, StepCompensated):
            reply = recorded.emptied(reply) if undo.is_empty else reply
            try:
                row = recorded.undone_row(row, reply, self._job.content_type, is_empty=undo.is_empty)
            except Unencodable as error:
                failure = crash(error, code="unencodable_effect")
                reply = answer.compensation_failed(self._job, failure, self._ended(value, context))
        if isinstance(reply, CompensationFailed):
            self.refused = reply
            return value
        await transaction.write(row, clock.now_ms())
        await self._commit(transaction, context)
        self.recorded = reply
        return value


def _value_of(standing: StepOutcome, content_type: str) -> Any:
    """What tracers are shown of a run that another one was quicker than."""
    if isinstance(standing, StepFailed):
        return None
    return decode_user_value(standing.effect, Any, content_type=content_type)
