"""The two threads that do all work on the database, so that the event loop never waits for a disk.

The ``Writer`` takes all jobs that wait and does them in one transaction: a flush of the disk takes a millisecond
whether it is for one record or for hundreds. The ``Follower`` does reads, and between them looks whether another
process has written: often after the last change, then less and less often.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from choreo.broker.sqlite.file import LogFile, in_transaction
from choreo.broker.sqlite.horizon import Horizon, News
from choreo.broker.sqlite.retention import Janitor
from choreo.broker.sqlite.tables import Snapshot, Topics, Transaction
from choreo.clock import Clock
from choreo.errors import BrokerError, ChoreoError

T = TypeVar("T")
Tables = TypeVar("Tables")

_JOBS_MAX = 1_000  # in one transaction, so that other processes get their turn

LOOK_PAUSE_S_MIN, LOOK_PAUSE_S_MAX = 0.001, 0.020
_LOOK_PAUSE_GROWTH = 1.25  # the pause stays near a fifth of the time since the last change
_LOOK_REST = 10  # times as long as a look takes: with hundreds of partitions and steady writing, looks are not cheap
_LOOK_REST_S_MAX = 0.25  # one that had to wait for a lock says nothing of what the next will cost

_CLEANING_PAUSE_S = 60.0  # between two cleanings
_CLEANING_STEP_S = 0.05  # between two parts of one cleaning


class _Job(NamedTuple):
    work: Callable[[Any], Any]
    future: asyncio.Future[Any]


class _Outcome(NamedTuple):
    future: asyncio.Future[Any]
    result: Any
    error: ChoreoError | None


class _ConnectionThread(threading.Thread, Generic[Tables]):
    """A thread with a connection of its own and a queue of jobs, whose results go back to the event loop."""

    def __init__(self, name: str, file: LogFile, horizon: Horizon, clock: Clock) -> None:
        super().__init__(name=name, daemon=True)  # a program that forgets to close its broker still ends
        self._file = file
        self._horizon = horizon
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # None: the last one, end
        self._closing = False

    async def open(self) -> None:
        """Start, and return when the connection is there. Raises what ``LogFile.create`` raises."""
        self.start()
        await self._opened

    def submit(self, work: Callable[[Tables], T]) -> asyncio.Future[T]:
        """Have ``work`` done in a transaction, after all that was submitted before. It may be done several times.

        The future fails with errors of choreo's only.
        """
        if self._closing:
            raise BrokerError(f"the broker on {self._file.path} is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(work, future))
        return future

    async def close(self) -> None:
        """Finish what was submitted, and end."""
        if not self._closing:
            self._closing = True
            self._jobs.put(None)
        await asyncio.shield(self._ended)
        self.join()

    def run(self) -> None:
        try:
            connection = self._connect()
        except (ChoreoError, sqlite3.Error) as error:
            self._closing = True
            failure = self._file.translated(error) if isinstance(error, sqlite3.Error) else error
            self._post(_settle, [_Outcome(self._opened, None, failure), _Outcome(self._ended, None, None)], None)
            return
        try:
            self._post(_settle, [_Outcome(self._opened, None, None)], None)
            self._serve(connection)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
        finally:
            self._closing = True
            connection.close()
            if not self._loop.is_closed():
                self._post(_settle, [*self._left_over(), _Outcome(self._ended, None, None)], None)

    def _connect(self) -> sqlite3.Connection:
        raise NotImplementedError

    def _serve(self, connection: sqlite3.Connection) -> None:
        raise NotImplementedError

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call on the event loop. Raises ``RuntimeError`` if that is closed."""
        self._loop.call_soon_threadsafe(callback, *arguments)

    def _left_over(self) -> list[_Outcome]:
        """Jobs that nobody will do: only there if the thread ends by a fault of its own."""
        jobs: list[_Job] = []
        while not self._jobs.empty():
            job = self._jobs.get_nowait()
            if job is not None:
                jobs.append(job)
        return self._failed(jobs, BrokerError(f"the broker on {self._file.path} has failed"))

    def _failed(self, jobs: list[_Job], error: Exception) -> list[_Outcome]:
        if isinstance(error, sqlite3.Error):
            failure = self._file.translated(error)
        elif isinstance(error, ChoreoError):
            failure = error
        else:
            failure = BrokerError(f"cannot be done on {self._file.path}: {error!r}")
        failure.__cause__ = error if error is not failure else None
        return [_Outcome(job.future, None, failure) for job in jobs]


def _settle(outcomes: list[_Outcome], hear: Callable[[], None] | None) -> None:
    if hear is not None:
        hear()
    for future, result, error in outcomes:
        if future.done():
            continue  # cancelled meanwhile
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class Writer(_ConnectionThread[Transaction]):
    """Does what waits in one transaction; cleans now and then."""

    def _connect(self) -> sqlite3.Connection:
        return self._file.create()

    def _serve(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._topics = Topics(connection)
        janitor = Janitor(connection)
        cleaning_due = self._clock.monotonic() + _CLEANING_PAUSE_S
        ending = False
        while not ending:
            jobs, ending = self._next_jobs(cleaning_due - self._clock.monotonic())
            if jobs:
                self._do(jobs)
            if self._clock.monotonic() >= cleaning_due:
                cleaning_due = self._clock.monotonic() + self._clean(janitor)

    def _next_jobs(self, patience_s: float) -> tuple[list[_Job], bool]:
        """All jobs that wait, and whether they are the last ones."""
        jobs: list[_Job] = []
        try:
            job = self._jobs.get(timeout=max(patience_s, 0))
            while job is not None:
                jobs.append(job)
                if len(jobs) == _JOBS_MAX:
                    return jobs, False
                job = self._jobs.get_nowait()
        except queue.Empty:
            return jobs, False
        return jobs, True

    def _do(self, jobs: list[_Job]) -> None:
        def work() -> tuple[list[_Outcome], News]:
            # The clocks are read under the lock, so that times follow the order of the transactions.
            transaction = Transaction(
                self._connection,
                self._topics,
                now_ms=self._clock.now_ms(),
                monotonic_ms=int(self._clock.monotonic() * 1_000),
            )
            outcomes = []
            for job in jobs:
                try:
                    outcomes.append(_Outcome(job.future, job.work(transaction), None))
                except ChoreoError as error:
                    outcomes.append(_Outcome(job.future, None, error))
            return outcomes, transaction.flush()

        try:
            outcomes, news = in_transaction(self._connection, "IMMEDIATE", work)
        except Exception as error:  # noqa: BLE001 - whatever it was, those who wait must hear of it
            self._topics.forget()
            self._post(_settle, self._failed(jobs, error), None)
        else:
            self._post(_settle, outcomes, lambda: self._horizon.hear(news))

    def _clean(self, janitor: Janitor) -> float:
        """Delete some of what is too old; how long to wait before the next time."""
        try:
            more = in_transaction(self._connection, "IMMEDIATE", lambda: janitor.clean(self._clock.now_ms()))
        except sqlite3.Error:
            return _CLEANING_PAUSE_S  # sends tell their callers what is wrong; cleaning can wait
        return _CLEANING_STEP_S if more else _CLEANING_PAUSE_S


class Follower(_ConnectionThread[Snapshot]):
    """Reads, and tells the horizon what other processes have written."""

    def _connect(self) -> sqlite3.Connection:
        connection = self._file.connect()
        self._connection = connection
        self._snapshot = Snapshot(connection)
        self._version = -1
        self._news = News({}, {})
        self._look()
        return connection

    def _serve(self, connection: sqlite3.Connection) -> None:
        pause_s = LOOK_PAUSE_S_MIN
        look_due = self._clock.monotonic() + pause_s
        while True:
            try:
                job = self._jobs.get(timeout=max(look_due - self._clock.monotonic(), 0))
            except queue.Empty:
                pass
            else:
                if job is None:
                    return
                self._do(connection, job)
            if (began := self._clock.monotonic()) >= look_due:
                changed = self._look_if_possible()
                pause_s = LOOK_PAUSE_S_MIN if changed else min(pause_s * _LOOK_PAUSE_GROWTH, LOOK_PAUSE_S_MAX)
                ended = self._clock.monotonic()
                look_due = ended + max(pause_s, min((ended - began) * _LOOK_REST, _LOOK_REST_S_MAX))

    def _do(self, connection: sqlite3.Connection, job: _Job) -> None:
        try:
            result = in_transaction(connection, "DEFERRED", lambda: job.work(self._snapshot))
        except Exception as error:  # noqa: BLE001 - whatever it was, who waits must hear of it
            self._post(_settle, self._failed([job], error), None)
        else:
            self._post(_settle, [_Outcome(job.future, result, None)], None)

    def _look_if_possible(self) -> bool:
        try:
            return self._look()
        except sqlite3.Error:
            return False  # reads and sends tell their callers what is wrong

    def _look(self) -> bool:
        """Whether there is news since the last look."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        if version == self._version:
            return False  # nobody has written; this is the usual answer, and takes microseconds
        news = in_transaction(self._connection, "DEFERRED", self._snapshot.news)
        self._version = version
        if news == self._news:
            return False  # a heartbeat or a commit of somebody's
        self._news = news
        self._post(self._horizon.hear, news)
        return True
