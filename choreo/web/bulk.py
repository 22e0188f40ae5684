"""One act on many sagas: first a preview of whom it would hit, then, confirmed, one saga after the other.

A preview holds the ids of the sagas that the filter found. What is confirmed is done to those and to no others, and
each is looked at again: one that has gone on by itself is passed over. The pace is bounded, so that a service that has
just come back is not flooded with what waited for it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

from choreo.errors import ChoreoError
from choreo.web.desk import IN_PROGRESS, Desk, line_of, stuck_steps
from choreo.web.problem import ProblemError, conflict, invalid, no_such
from choreo.web.shapes import Act, Bulk, BulkConfirm, BulkRequest, BulkSkipped, SagaLine

logger = logging.getLogger("choreo.web")

SAGAS_MAX = 10_000
SAMPLE = 20
SKIPPED_KEPT = 100
KEPT_MAX = 100
EXPIRES_MS = 15 * 60_000
RETRIES_S = (1.0, 2.0, 4.0, 8.0)

State = Literal["preview", "running", "done", "stopped"]


@dataclass
class Job:
    """A bulk act at any point of its life."""

    id: str
    act: Act
    step: str | None
    by: str
    lines: list[SagaLine]
    more: bool
    expires_ms: int
    state: State = "preview"
    reason: str = ""
    done: int = 0
    skipped_count: int = 0
    skipped: list[BulkSkipped] = field(default_factory=list)
    error: str = ""
    task: asyncio.Task[None] | None = None

    def shown(self) -> Bulk:
        return Bulk(
            id=self.id,
            act=self.act,
            step=self.step,
            state=self.state,
            by=self.by,
            count=len(self.lines),
            more=self.more,
            sample=tuple(self.lines[:SAMPLE]),
            done=self.done,
            skipped_count=self.skipped_count,
            skipped=tuple(self.skipped),
            expires_ms=self.expires_ms,
            error=self.error,
        )


class Bulks:
    """The bulk acts of this process; they end with it, and what was not done by then is not done."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    async def preview(self, request: BulkRequest, *, by: str) -> Bulk:
        """Find whom it would hit."""
        wanted = self._desk.query_of(request.filter)
        of_steps = request.act in ("retry", "skip", "resolve")
        possible = ("stuck",) if of_steps else IN_PROGRESS
        if request.act in ("pause", "resume"):
            wanted = wanted._replace(paused=request.act == "resume")
        phases = tuple(phase for phase in possible if not wanted.phases or phase in wanted.phases)
        rows = []
        if phases:
            query = wanted._replace(phases=phases, limit=SAGAS_MAX + 1)
            rows = [
                row
                for row in await self._desk.search(query)
                if not of_steps or request.step is None or request.step in row.busy.split()
            ]
        if request.step is not None and not of_steps:
            raise invalid(
                "body step", f"{request.act} is of a saga, not of a step", f"must be left out for {request.act}"
            )
        job = Job(
            id=secrets.token_urlsafe(16),
            act=request.act,
            step=request.step,
            by=by,
            lines=[line_of(row) for row in rows[:SAGAS_MAX]],
            more=len(rows) > SAGAS_MAX,
            expires_ms=self._desk.clock.now_ms() + EXPIRES_MS,
        )
        self._keep(job)
        return job.shown()

    def confirm(self, job_id: str, request: BulkConfirm, *, by: str) -> Bulk:
        """Begin. Raises ``ProblemError`` if it was begun, has expired or is not what the caller has read."""
        job = self._job(job_id)
        if job.state != "preview":
            raise conflict(f"this bulk act is {job.state} already", "make a new preview")
        if job.by != by:
            raise conflict(f"the preview was made by {job.by!r}; who confirms must have read it", "make a preview")
        if self._desk.clock.now_ms() > job.expires_ms:
            raise conflict("the preview is too old: what it found may be elsewhere by now", "make a new preview")
        if request.count != len(job.lines):
            raise invalid(
                "body count",
                f"the preview found {len(job.lines)} sagas, not {request.count}",
                f"must be {len(job.lines)}",
                "read the preview again, then repeat its count",
            )
        job.state, job.reason = "running", request.reason
        job.task = asyncio.create_task(self._run(job, request.per_second), name=f"web/bulk/{job.id}")
        logger.info("%s begins to %s %s sagas: %s", by, job.act, len(job.lines), request.reason)
        return job.shown()

    def show(self, job_id: str) -> Bulk:
        """How far it is."""
        return self._job(job_id).shown()

    def stop(self, job_id: str) -> Bulk:
        """Do no more; what was done stays done."""
        job = self._job(job_id)
        if job.task is not None:
            job.task.cancel()
        if job.state in ("preview", "running"):
            job.state = "stopped"
        return job.shown()

    async def close(self) -> None:
        """Stop all that runs."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _job(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise no_such("bulk id", "there is no such bulk act here (any more)", "make a new preview")
        return job

    def _keep(self, job: Job) -> None:
        self._jobs[job.id] = job
        old = [each.id for each in self._jobs.values() if each.state != "running"]
        for job_id in old[: max(len(self._jobs) - KEPT_MAX, 0)]:
            del self._jobs[job_id]

    async def _run(self, job: Job, per_second: float) -> None:
        clock = self._desk.clock
        next_s = clock.monotonic()
        try:
            for line in job.lines:
                await clock.sleep(max(next_s - clock.monotonic(), 0))
                next_s = max(next_s, clock.monotonic() - 1) + 1 / per_second
                await self._one(job, line)
        except ChoreoError as error:
            job.state, job.error = "stopped", str(error)
            logger.warning("the bulk act of %s has stopped after %s sagas: %s", job.by, job.done, error)
        else:
            job.state = "done"
            logger.info("the bulk act of %s is done: %s sagas, %s skipped", job.by, job.done, job.skipped_count)

    async def _one(self, job: Job, line: SagaLine) -> None:
        for pause_s in (*RETRIES_S, None):
            try:
                known = await self._desk.known(line.saga, line.saga_id)
                if job.act in ("retry", "skip", "resolve") and not stuck_steps(known.state):
                    raise conflict(f"it is {known.state.phase.value}, not stuck (any more)")
                await self._desk.act(known, job.act, job.step, operator=job.by, reason=job.reason)
            except ProblemError as problem:
                self._skip(job, line, problem.problem.detail)
                return
            except ChoreoError as error:
                if not error.retriable:
                    self._skip(job, line, str(error))
                    return
                if pause_s is None:
                    raise
                await self._desk.clock.sleep(pause_s)
            else:
                job.done += 1
                return

    def _skip(self, job: Job, line: SagaLine, why: str) -> None:
        job.skipped_count += 1
        if len(job.skipped) < SKIPPED_KEPT:
            job.skipped.append(BulkSkipped(saga=line.saga, saga_id=line.saga_id, why=why))
