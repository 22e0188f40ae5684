"""An outcome as the caller of ``run`` and ``wait`` gets it: a value, or an error that says what failed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from choreo.client.remote import remote_exception
from choreo.client.watch import Outcome
from choreo.errors import SagaFailed, WaitTimeout
from choreo.messages.records import SagaCompleted

UNDONE = frozenset({"undone", "skipped", "resolved"})  # by the service, or by an operator's hand


async def within(outcome: asyncio.Future[Outcome], saga_id: str, timeout_s: float | None) -> Outcome:
    """The outcome, waited for, in a future of the caller's own. Raises ``WaitTimeout``; ``None`` waits for ever."""
    if timeout_s is None:
        return await outcome
    expiry = asyncio.get_running_loop().call_later(timeout_s, _give_up, outcome, saga_id, timeout_s)
    try:
        return await outcome
    finally:
        expiry.cancel()


def _give_up(outcome: asyncio.Future[Outcome], saga_id: str, timeout_s: float) -> None:
    if not outcome.done():
        outcome.set_exception(
            WaitTimeout(
                saga_id,
                f"saga {saga_id!r} has no outcome after {timeout_s:g} s of waiting; it goes on. Ask again later",
            )
        )


def completed_or_raise(outcome: Outcome, modules: Collection[str] = ()) -> SagaCompleted:
    """A completed saga's record.

    Raises:
        SagaFailed: it was compensated. The remote traceback is a note, and the exception of the service its cause,
            where its class is known here or in one of ``modules`` (see ``remote``).
    """
    if isinstance(outcome, SagaCompleted):
        return outcome
    failure = outcome.failure
    if failure is None:
        why = f"it was cancelled{': ' + outcome.reason if outcome.reason else ''}"
        raise SagaFailed(outcome.saga_id, f"saga {outcome.saga_id!r} was compensated: {why}", outcome=outcome)
    # A step has an entry for each of its rounds; what had nothing to undo, or no compensation, was not undone.
    undone = ", ".join(dict.fromkeys(one.step for one in outcome.compensations if one.how in UNDONE)) or "nothing"
    code = f" ({failure.code})" if failure.code else ""
    error = SagaFailed(
        outcome.saga_id,
        f"saga {outcome.saga_id!r} was compensated: step {outcome.step!r} {failure.kind.replace('_', ' ')}{code}: "
        f"{failure.message or 'no message'}; undone: {undone}",
        outcome=outcome,
        step=outcome.step or "",
        kind=failure.kind,
        code=failure.code,
    )
    if failure.traceback:
        error.add_note(f"Traceback in the service:\n{failure.traceback}")
    raise error from remote_exception(failure, modules)
