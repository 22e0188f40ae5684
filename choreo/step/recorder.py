"""The service's inbox at work: what is recorded is looked up, begun and concluded, through outages of the database.

Whatever the database says, nothing is given up here: without it nobody knows what is recorded, so nothing may be
published. The lane waits, the others go on, and ``choreo_inbox_errors_total`` counts.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from random import Random
from typing import Any, NamedTuple, TypeVar

from choreo.clock import Clock
from choreo.contract.policy import Retries
from choreo.errors import InboxUnavailable
from choreo.inbox import Inbox
from choreo.inbox.table import Row
from choreo.inbox.transaction import Transaction
from choreo.inbox.transient import is_of_database
from choreo.messages.records import StepFailed
from choreo.observe.metrics import Metrics
from choreo.step import recorded
from choreo.step.job import CompensationJob, StepJob
from choreo.step.lanes import Lane, Slots
from choreo.step.recorded import StepOutcome, Subject, Undo, UndoAnswer, subject_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

BOUND_S = 10.0
"""Of a transaction of ours alone; what takes longer waits for somebody, and is tried again."""

CLEAN_UP_S = 3_600.0
CLEAN_UP_PAUSE_S = 0.1  # between two batches, so that the service's own work comes between them

INBOX_BACKOFF = Retries(backoff_ms_base=50, backoff_ms_max=5_000)


class Claim(NamedTuple):
    """What was found when a run was about to begin.

    Attributes:
        outcome: what is recorded; then nothing is run.
        is_first: no run has begun before.
    """

    outcome: StepOutcome | None
    is_first: bool


class Recorder:
    """The inbox of one service in one process.

    Attributes:
        slots: of transactions that may be open at once.
    """

    def __init__(
        self,
        inbox: Inbox,
        slots: Slots,
        group: str,
        *,
        executor: Executor,
        clock: Clock,
        random: Random,
        metrics: Metrics,
    ) -> None:
        """Equip it.

        Args:
            slots: shared by the services that share the inbox.
            executor: where a sync driver's calls run.
        """
        self.inbox = inbox
        self.slots = slots
        self.clock = clock
        self._executor = executor
        self._random = random
        self._errors = metrics.inbox_errors.labels(group)
        self._deleted = metrics.inbox_rows_deleted.labels(group)

    async def find(self, job: StepJob, lane: Lane) -> StepOutcome | None:
        """The recorded outcome of a step, if there is one."""
        subject = subject_of(job)

        async def work(transaction: Transaction) -> StepOutcome | None:
            row = await transaction.find(subject.key)
            return None if row is None else recorded.recorded_outcome(row, subject)

        return await self._insist(work, lane)

    async def claim(self, job: StepJob, lane: Lane) -> Claim:
        """Record that a run begins that works outside of a transaction, unless an outcome is recorded."""
        subject = subject_of(job)

        async def work(transaction: Transaction) -> Claim:
            if await transaction.claim(subject.begun(job.content_type), self.clock.now_ms(), BOUND_S):
                await transaction.commit()
                return Claim(None, is_first=True)
            return Claim(recorded.recorded_outcome(await transaction.row(subject.key), subject), is_first=False)

        return await self._insist(work, lane)

    async def conclude(
        self, subject: Subject, outcome: StepOutcome, content_type: str, *, is_inside: bool
    ) -> StepOutcome:
        """Record what a run has come to, and return what stands: another run's, if that was recorded first."""

        async def work(transaction: Transaction) -> StepOutcome:
            row, _ = await self._claimed(transaction, subject.begun(content_type))
            concluded = recorded.conclude(row, subject, outcome, content_type, is_inside=is_inside)
            if concluded.row is not None:
                await transaction.write(concluded.row, self.clock.now_ms())
                await transaction.commit()
            return concluded.outcome

        return await self._insist(work)

    async def replace(self, job: StepJob, outcome: StepFailed) -> None:
        """Record another outcome for an effect that stands, because the broker does not take the first."""

        async def work(transaction: Transaction) -> None:
            row, _ = await self._claimed(transaction, subject_of(job).begun(job.content_type))
            await transaction.write(recorded.replaced(row, outcome, job.content_type), self.clock.now_ms())
            await transaction.commit()

        await self._insist(work)

    async def bar(self, job: CompensationJob, lane: Lane) -> None:
        """Keep a step from running that was given up and has not begun."""

        async def work(transaction: Transaction) -> None:
            if await transaction.claim(subject_of(job).barred(job.content_type), self.clock.now_ms(), BOUND_S):
                await transaction.commit()

        await self._insist(work, lane)

    async def plan_undo(self, job: CompensationJob, lane: Lane, *, is_inside: bool) -> Undo:
        """What a command asks for whose handler works outside of a transaction."""

        async def work(transaction: Transaction) -> Undo:
            undo, _ = await self.plan_within(transaction, job, BOUND_S, is_inside=is_inside)
            await transaction.commit()
            return undo

        return await self._insist(work, lane)

    async def plan_within(
        self, transaction: Transaction, job: CompensationJob, bound_s: float, *, is_inside: bool
    ) -> tuple[Undo, Row]:
        """The same in a transaction that goes on; and the row, which is locked."""
        subject = subject_of(job)
        row, is_new = await self._claimed(transaction, subject.barred(job.content_type), bound_s)
        undo = recorded.plan_undo(None if is_new else row, job, is_inside=is_inside)
        if undo.row is not None:
            row = undo.row
            await transaction.write(row, self.clock.now_ms())
        return undo, row

    async def conclude_undo(self, job: CompensationJob, answer: UndoAnswer, *, is_empty: bool) -> UndoAnswer:
        """Record an answer, and return the one that stands for the command."""

        async def work(transaction: Transaction) -> UndoAnswer:
            row, _ = await self._claimed(transaction, subject_of(job).barred(job.content_type))
            standing = recorded.recorded_answer(row, job)
            if standing is not None:
                return standing
            said = recorded.emptied(answer) if is_empty else answer
            written = recorded.undone_row(row, said, job.content_type, is_empty=is_empty)
            await transaction.write(written, self.clock.now_ms())
            await transaction.commit()
            return said

        return await self._insist(work)

    async def is_told(self, key: str, lane: Lane) -> bool:
        """Whether an outcome hook has run."""

        async def work(transaction: Transaction) -> bool:
            return await transaction.find(key) is not None

        return await self._insist(work, lane)

    async def tell(self, key: str) -> None:
        """Record that an outcome hook has run."""

        async def work(transaction: Transaction) -> None:
            await transaction.claim(Row(key, "told", ""), self.clock.now_ms(), BOUND_S)
            await transaction.commit()

        await self._insist(work)

    async def open(self, is_stopping: Callable[[], bool]) -> None:
        """Look for the table, or create it, through an outage of the database.

        Raises:
            ConfigurationError: the table is missing.
        """
        tries = 0
        while not is_stopping():
            try:
                await self.inbox.open(self._executor)
            except InboxUnavailable as error:
                tries += 1
                await self.clock.sleep(self._failed(error, tries))
            else:
                return

    async def clean_up(self) -> None:
        """Delete what is too old, from time to time, until cancelled."""
        while True:
            await self.clock.sleep(CLEAN_UP_S * self._random.uniform(0.5, 1.0))
            try:
                while deleted := await self.inbox.delete_old(self.clock.now_ms(), self._executor):
                    self._deleted.inc(deleted)
                    await self.clock.sleep(CLEAN_UP_PAUSE_S)
            except Exception as error:  # noqa: BLE001  # rows that stay longer do no harm
                self._errors.inc()
                logger.warning("the inbox cannot be cleaned up now: %s", error)

    def count_error(self, error: BaseException, tries: int) -> None:
        """Something has to be tried again because of the database."""
        self._errors.inc()
        logger.warning("%s (try %d); trying again", error, tries)

    def _failed(self, error: BaseException, tries: int) -> float:
        """The same, and how long to wait, in seconds."""
        self.count_error(error, tries)
        return self._random.uniform(0, INBOX_BACKOFF.backoff_ms(tries)) / 1_000

    async def _claimed(self, transaction: Transaction, row: Row, bound_s: float = BOUND_S) -> tuple[Row, bool]:
        """The row of that key, made if there is none, locked; and whether it is new."""
        if await transaction.claim(row, self.clock.now_ms(), bound_s):
            return row, True
        return await transaction.row(row.key), False

    async def _insist(self, work: Callable[[Transaction], Coroutine[Any, Any, T]], lane: Lane | None = None) -> T:
        """Do it in a transaction, again and again until the database takes it.

        Before anything is done the lane is given, which rests meanwhile and can be ended; behind it there is a result
        that should not be lost.
        """

        async def in_transaction() -> T:
            transaction = self.inbox.transaction()
            try:
                await transaction.begin()
                return await work(transaction)
            finally:
                await transaction.close()

        tries = 0
        while True:
            if not self.slots.try_take():
                await _wait(self.slots.take(), lane)
            try:
                return await self.inbox.run(in_transaction, self._executor)
            except Exception as error:
                # One that does not pass by itself, a table that was dropped, a person mends. Nothing is lost meanwhile.
                if not is_of_database(error) and not isinstance(error, InboxUnavailable):
                    raise
                tries += 1
                wait_s = self._failed(error, tries)
            finally:
                self.slots.give_back()
            await _wait(self.clock.sleep(wait_s), lane)


async def _wait(wait: Awaitable[object], lane: Lane | None) -> None:
    if lane is None:
        await wait
    else:
        await lane.rest(wait)
