"""What users' exceptions, and choreo's own findings, become in a record: a ``Failure``."""

from __future__ import annotations

import traceback
from typing import Any

from choreo.messages.records import Failure, FailureKind
from choreo.step.call import AttemptTimeout
from choreo.step.cancelling import StepCancelled
from choreo.step.verdict import InvalidInput, Reject

TEXT_CHARS_MAX = 4_096
TRACEBACK_CHARS_MAX = 16_384


def failure_of(error: BaseException) -> Failure:
    """An exception of a handler as a failure."""
    if isinstance(error, Reject):
        return Failure(kind="rejected", code=text(error.code), message=text(error.reason or error))
    if isinstance(error, InvalidInput):
        return Failure(kind="rejected", code="invalid_input", message=text(error))
    if isinstance(error, AttemptTimeout):
        return Failure(kind="timed_out", code=error.code, message=text(error))
    if isinstance(error, StepCancelled):
        return Failure(kind="cancelled", code=error.code, message=text(error))
    return crash(error)


def crash(error: BaseException, *, code: str = "") -> Failure:
    """A failure with type, message and traceback; the traceback's end is kept, where the cause is."""
    kind = type(error)
    trace = "".join(traceback.format_exception(error))
    return Failure(
        kind="crashed",
        code=code,
        message=text(error),
        exception_type=text(f"{kind.__module__}.{kind.__qualname__}"),
        traceback=_clean(trace[-TRACEBACK_CHARS_MAX:]),
    )


def plain_failure(kind: FailureKind, code: str, message: str) -> Failure:
    """A failure of choreo's own finding."""
    return Failure(kind=kind, code=code, message=text(message))


def text(value: Any) -> str:
    """What a user's object says of itself, within the wire's limits."""
    try:
        said = str(value)
    except Exception as error:  # noqa: BLE001  # an object that cannot say what it is must not stop the answer
        said = f"<{type(value).__name__}, and its text raised {type(error).__name__}>"
    return _clean(said[:TEXT_CHARS_MAX])


def _clean(said: str) -> str:
    # Half a surrogate pair is legal in a str and not in UTF-8.
    return said.encode("utf-8", "replace").decode("utf-8")
