"""The records that a worker answers with: outcomes of steps, and answers to ``Compensate``."""

from __future__ import annotations

import logging

import msgspec

from choreo.errors import Unencodable
from choreo.messages.codec import encode_user_value
from choreo.messages.records import (
    CompensationFailed,
    Failure,
    KnownEffect,
    StepCompensated,
    StepCompleted,
    StepFailed,
    Verdict,
)
from choreo.step.attempts import Ended
from choreo.step.cancelling import StepCancelled
from choreo.step.failure import crash, failure_of
from choreo.step.job import CompensationJob, StepJob
from choreo.step.verdict import Abort, AbortRetries, Continue, NothingToUndo, Reject, Retry

logger = logging.getLogger(__name__)


class MalformedAnswer(Exception):  # noqa: N818  # only the failure's type in a record, never raised
    """A compensation returned something that is no answer."""


def completed(job: StepJob, effect: bytes, ended: Ended) -> StepCompleted:
    """The step has done its work; ``effect`` is encoded in the job's codec."""
    return StepCompleted(
        saga=job.saga.name,
        version=job.saga.version,
        saga_id=job.saga_id,
        start=job.start,
        step=job.step.name,
        round=job.round,
        run=job.run,
        due_ms=job.due_ms,
        saga_due_ms=job.saga_due_ms,
        input=job.input,
        effects=dict(job.effects),
        effect=msgspec.Raw(effect),
        attempts=ended.attempts,
        duration_ms=ended.duration_ms,
    )


def failed(
    job: StepJob, failure: Failure, effect: KnownEffect, ended: Ended | None = None, *, abort: bool = False
) -> StepFailed:
    """The step has not done its work, or nobody knows."""
    return StepFailed(
        saga=job.saga.name,
        version=job.saga.version,
        saga_id=job.saga_id,
        start=job.start,
        step=job.step.name,
        round=job.round,
        run=job.run,
        failure=failure,
        effect=effect,
        abort=abort,
        attempts=ended.attempts if ended else 0,
        duration_ms=ended.duration_ms if ended else 0,
    )


def answer_of_step(job: StepJob, ended: Ended) -> StepCompleted | StepFailed:
    """What a run of a step comes to."""
    if ended.error is None:
        try:
            effect = encode_user_value(ended.value, content_type=job.content_type)
        except Unencodable as error:
            # The handler has done its work, so there is an effect; what is lost is its description (rule 5).
            return failed(job, crash(error, code="unencodable_effect"), "unknown", ended)
        return completed(job, effect, ended)
    # Only a Reject says that nothing was done, and what was cancelled before it began has done nothing; but both only
    # speak for their own attempt, and for this worker.
    did_nothing = isinstance(ended.error, Reject) or (isinstance(ended.error, StepCancelled) and not ended.attempts)
    is_certain = did_nothing and not ended.in_doubt and job.is_fresh
    return failed(
        job,
        failure_of(ended.error),
        "none" if is_certain else "unknown",
        ended,
        abort=isinstance(ended.error, Abort),
    )


def answer_of_compensation(
    job: CompensationJob, ended: Ended, *, backoff_ms: int
) -> StepCompensated | CompensationFailed:
    """What a run of a compensation comes to. ``backoff_ms`` counts if it answered ``Retry``."""
    if ended.error is not None:
        return compensation_failed(job, failure_of(ended.error), ended)
    verdict: Verdict = "proceed"
    retry_limit = 0
    effect: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    match ended.value:
        case None | NothingToUndo():
            backoff_ms = 0
        case Retry(limit=limit):
            verdict, retry_limit = "retry", limit
        case AbortRetries():
            verdict, backoff_ms = "abort", 0
        case Continue() if not job.own:
            # It could only replace the effect of the step that failed; here the way back goes on.
            logger.warning(
                "the compensation of %r answered Continue, but it is not the step that failed", job.step.name
            )
            backoff_ms = 0
        case Continue(effect=value):
            verdict, backoff_ms = "continue", 0
            try:
                effect = msgspec.Raw(encode_user_value(value, content_type=job.content_type))
            except Unencodable as error:
                return compensation_failed(job, crash(error, code="unencodable_effect"), ended)
        case other:
            allowed = "None, NothingToUndo, Retry, Continue or AbortRetries"
            malformed = MalformedAnswer(f"a compensation returns {allowed}, not {type(other).__qualname__}")
            return compensation_failed(job, crash(malformed, code="malformed_answer"), ended)
    return StepCompensated(
        saga=job.saga.name,
        version=job.saga.version,
        saga_id=job.saga_id,
        start=job.start,
        step=job.step.name,
        round=job.round,
        generation=job.generation,
        run=job.run,
        undone=not isinstance(ended.value, NothingToUndo),
        verdict=verdict,
        retry_limit=retry_limit,
        backoff_ms=backoff_ms,
        effect=effect,
        attempts=ended.attempts,
        duration_ms=ended.duration_ms,
    )


def settled(job: CompensationJob) -> StepCompensated:
    """Nothing was undone: all that was asked is that earlier records of the step are finished (rule 15)."""
    return StepCompensated(
        saga=job.saga.name,
        version=job.saga.version,
        saga_id=job.saga_id,
        start=job.start,
        step=job.step.name,
        round=job.round,
        generation=job.generation,
        run=job.run,
        undone=False,
        attempts=0,
    )


def compensation_failed(job: CompensationJob, failure: Failure, ended: Ended | None = None) -> CompensationFailed:
    """The compensation has not done its work, or nobody knows."""
    return CompensationFailed(
        saga=job.saga.name,
        version=job.saga.version,
        saga_id=job.saga_id,
        start=job.start,
        step=job.step.name,
        round=job.round,
        generation=job.generation,
        run=job.run,
        failure=failure,
        attempts=ended.attempts if ended else 0,
        duration_ms=ended.duration_ms if ended else 0,
    )
