"""What goes wrong with a request, as problem details (RFC 9457): which input, which rule, and what to do."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec

from choreo.errors import (
    BrokerUnavailable,
    ChoreoError,
    ConfigurationError,
    DefinitionError,
    NoSuchDeadLetter,
    NotRedriven,
    NotStuck,
    SagaNotFound,
    StartRefused,
    StoreConflict,
    StoreUnavailable,
    Unencodable,
)

PROBLEM_TYPE = "application/problem+json"

RETRY_AFTER_S = 2


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request was not done. Programs branch on ``type``; the rest is for people.

    Attributes:
        type: a URN that names the kind of problem.
        title: the kind in words, the same each time.
        status: the HTTP status, again.
        detail: what was wrong this time.
        input: which part of the request is at fault ("query parameter limit"); absent if none is.
        rule: what it has to be.
        remedy: what to do.
    """

    type: str
    title: str
    status: int
    detail: str
    input: str = ""
    rule: str = ""
    remedy: str = ""


class ProblemError(Exception):
    """Ends a request with a problem."""

    def __init__(
        self,
        status: HTTPStatus,
        kind: str,
        detail: str,
        *,
        at: str = "",
        rule: str = "",
        remedy: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.problem = Problem(
            type=f"urn:choreo:problem:{kind}",
            title=kind.replace("-", " ").capitalize(),
            status=status.value,
            detail=detail,
            input=at,
            rule=rule,
            remedy=remedy,
        )
        self.headers = headers or {}
        super().__init__(detail)


def invalid(at: str, detail: str, rule: str, remedy: str = "") -> ProblemError:
    """A part of the request that breaks a rule."""
    return ProblemError(HTTPStatus.BAD_REQUEST, "invalid-input", detail, at=at, rule=rule, remedy=remedy)


def no_such(what: str, detail: str, remedy: str = "") -> ProblemError:
    """Something that the path names and that is not there."""
    return ProblemError(HTTPStatus.NOT_FOUND, "not-found", detail, at=what, remedy=remedy)


def conflict(detail: str, remedy: str = "") -> ProblemError:
    """A request that was right, for a saga that is elsewhere by now."""
    return ProblemError(HTTPStatus.CONFLICT, "conflict", detail, remedy=remedy)


def problem_of(error: ChoreoError) -> ProblemError:
    """An error of choreo's own, as a problem."""
    detail = str(error)
    match error:
        case SagaNotFound():
            return no_such("saga id", detail, "list the sagas, or search for the id")
        case NoSuchDeadLetter():
            return no_such("dead letter", detail)
        case NotStuck() | StartRefused() | NotRedriven():
            return conflict(detail, "look at the saga's status")
        case Unencodable():
            return ProblemError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "value-refused", detail, at="body")
        case ConfigurationError() | DefinitionError():
            return ProblemError(HTTPStatus.BAD_REQUEST, "invalid-input", detail)
        case BrokerUnavailable() | StoreUnavailable() | StoreConflict():
            return ProblemError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "away",
                detail,
                remedy="ask again soon; whether a change that was asked for is in the log is not known",
                headers={"retry-after": str(RETRY_AFTER_S)},
            )
    return ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "failed", detail, remedy="see the saga-log's own log")


def unexpected() -> ProblemError:
    """A defect. What it was is for the log, not for whoever has asked."""
    return ProblemError(
        HTTPStatus.INTERNAL_SERVER_ERROR, "defect", "the request has failed", remedy="see the saga-log's own log"
    )


def from_validation(at: str, error: Exception) -> ProblemError:
    """What msgspec found wrong; its text ends in the place, as in ``… - at `$.limit```."""
    text, _, place = str(error).partition(" - at ")
    where = f"{at} {place.strip('`').removeprefix('$').removeprefix('.')}".strip()
    return invalid(where, f"{where}: {text}", text, "see /api/v1/openapi.json")


def encoded(problem: Problem | Any) -> bytes:
    """As the body of a response."""
    return msgspec.json.encode(problem)
