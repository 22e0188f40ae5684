"""``/api/v1``: requests are checked and read by the table of operations, answers and problems written."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from choreo.errors import ChoreoError
from choreo.web.access import SESSION_COOKIE, Access, Principal, check_origin, check_role
from choreo.web.bulk import Bulks
from choreo.web.desk import Desk
from choreo.web.limits import ANSWER_TIMEOUT_S, STREAMS_MAX, Buckets, body_of, too_many
from choreo.web.live import as_event_stream
from choreo.web.openapi import document
from choreo.web.operations import OPERATIONS, ROOT, Call, Operation, Reply
from choreo.web.problem import (
    PROBLEM_TYPE,
    ProblemError,
    encoded,
    from_validation,
    invalid,
    no_such,
    problem_of,
    unexpected,
)
from choreo.web.shapes import EventsQuery

logger = logging.getLogger("choreo.web")

JSON_TYPE = "application/json"

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Endpoint = Callable[[Request], Awaitable[Response]]


class Guard:
    """Lets in who may come in, and not too often."""

    def __init__(self, access: Access, requests: Buckets, failures: Buckets) -> None:
        self.access = access
        self._requests = requests
        self._failures = failures

    def admit(self, request: Request) -> Principal:
        """Who asks. Raises ``ProblemError`` for who is not known, or asks too often."""
        peer = request.client.host if request.client else ""
        if self._failures.level(peer) < 1:  # whoever tries one token after the other
            raise too_many(self._failures.take(peer), "tokens that are not known")
        try:
            who = self.access.principal(request)
        except ProblemError:
            if "authorization" in request.headers or SESSION_COOKIE in request.cookies:
                self._failures.take(peer)
            raise
        if wait_s := self._requests.take(f"{who.name}@{peer}"):
            raise too_many(wait_s, "requests")
        return who

    def admit_token(self, request: Request, token: str) -> bool:
        """Whether somebody may log in with it. Raises ``ProblemError`` for who tries too often."""
        peer = request.client.host if request.client else ""
        if self._failures.level(peer) < 1:
            raise too_many(self._failures.take(peer), "tokens that are not known")
        if self.access.knows(token):
            return True
        self._failures.take(peer)
        return False


def routes(desk: Desk, bulks: Bulks, guard: Guard) -> list[Route]:
    """The routes of the API."""
    found = [
        Route(f"{ROOT}/openapi.json", _documented(), methods=["GET"], name="openapi"),
        *(
            Route(
                ROOT + operation.path,
                guarded(
                    _streaming(desk, guard, operation)
                    if operation.stream
                    else _answering(desk, bulks, guard, operation)
                ),
                methods=[operation.method],
                name=operation.name,
            )
            for operation in OPERATIONS
        ),
    ]
    return [
        *found,
        Route(f"{ROOT}/{{rest:path}}", guarded(_nothing(guard)), methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
    ]


def guarded(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose errors become problems, and that has to answer in time."""

    async def run(request: Request) -> Response:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await endpoint(request)
        except ProblemError as error:
            return problem_response(error)
        except ChoreoError as error:
            return problem_response(problem_of(error))
        except TimeoutError:
            return problem_response(
                ProblemError(
                    HTTPStatus.GATEWAY_TIMEOUT,
                    "too-slow",
                    f"there is no answer after {ANSWER_TIMEOUT_S:g} s",
                    remedy="ask for less: a history is read from the partition's start, a search through all sagas",
                )
            )
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception:  # whatever the defect, the server and its other requests go on
            logger.exception("%s %s has failed", request.method, request.url.path)
            return problem_response(unexpected())

    return run


def problem_response(error: ProblemError) -> Response:
    """The problem as the answer."""
    return Response(
        encoded(error.problem), status_code=error.problem.status, media_type=PROBLEM_TYPE, headers=error.headers
    )


def json_response(value: Any, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    """A value as the answer."""
    return Response(msgspec.json.encode(value), status_code=status, media_type=JSON_TYPE, headers=headers)


def saga_path(request: Request) -> dict[str, str]:
    """The parameters of the path. A slash in a saga id is sent as ``%2F``, and still is one here (see ``app``)."""
    return {name: str(value).replace("%2F", "/") for name, value in request.path_params.items()}


def query_of(request: Request, kind: type[msgspec.Struct], *, ignored: tuple[str, ...] = ()) -> Any:
    """The query's parameters as a value of their type. Raises ``ProblemError`` if they are none."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in ignored:
            continue
        if name not in kind.__struct_fields__:
            names = ", ".join(kind.__struct_fields__)
            raise invalid(f"query parameter {name}", f"there is no query parameter {name!r}", f"must be one of {names}")
        if name in given:
            raise invalid(f"query parameter {name}", f"{name!r} is there twice", "must be there once")
        if value:  # a field of a form that was left empty says nothing
            given[name] = value
    if bad := [name for name, value in given.items() if not value.isprintable()]:
        raise invalid(f"query parameter {bad[0]}", "it has characters that cannot be printed", "must be a line of text")
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise from_validation("query parameter", error) from error


async def _body_of(request: Request, kind: type[msgspec.Struct]) -> Any:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != JSON_TYPE:
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "media-type",
            f"the body is {content_type or 'of no media type'}",
            at="header Content-Type",
            rule=f"must be {JSON_TYPE}",
            remedy=f"send the body as {JSON_TYPE}",
        )
    try:
        return msgspec.json.decode(await body_of(request), type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise from_validation("body", error) from error


def _answering(desk: Desk, bulks: Bulks, guard: Guard, operation: Operation) -> Endpoint:
    async def answer(request: Request) -> Response:
        who = guard.admit(request)
        check_role(who, operation.role)
        if request.method != "GET":
            check_origin(request)
            if who.csrf and not guard.access.is_open:
                raise _cookie_alone()
        query = query_of(request, operation.query or _NoParameters)
        body = None if operation.body is None else await _body_of(request, operation.body)
        traceparent = request.headers.get("traceparent", "")
        call = Call(
            desk,
            bulks,
            desk.letters,
            who,
            saga_path(request),
            query,
            body,
            traceparent if _TRACEPARENT.fullmatch(traceparent) else None,
        )
        value = await operation.run(call)
        if isinstance(value, Reply):
            return json_response(value.value, value.status, {"location": value.location} if value.location else None)
        return json_response(value, operation.status)

    return answer


def _streaming(desk: Desk, guard: Guard, operation: Operation) -> Endpoint:
    async def stream(request: Request) -> Response:
        who = guard.admit(request)
        check_role(who, operation.role)
        query: EventsQuery = query_of(request, EventsQuery)
        if query.saga is not None and query.saga not in desk.sagas:
            raise no_such("query parameter saga", f"no saga {query.saga!r} is looked after here")
        if desk.feed.listeners >= STREAMS_MAX:
            raise too_many(5, f"streams: {STREAMS_MAX} are open")
        last_id = request.headers.get("last-event-id", "")

        async def events() -> AsyncIterator[bytes]:
            async for told in desk.feed.listen(last_id, query.saga, query.saga_id):
                yield as_event_stream(told)

        return StreamingResponse(events(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    return stream


def _documented() -> Endpoint:
    body: list[bytes] = []

    async def answer(_: Request) -> Response:
        if not body:
            body.append(msgspec.json.encode(document()))
        return Response(body[0], media_type=JSON_TYPE)

    return answer


def _nothing(guard: Guard) -> Endpoint:
    async def answer(request: Request) -> Response:
        guard.admit(request)
        allowed = sorted(
            {each.method for each in OPERATIONS if _pattern(each.path).fullmatch(request.url.path.removeprefix(ROOT))}
        )
        if allowed:
            raise ProblemError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "method-not-allowed",
                f"{request.method} is not for {request.url.path}",
                at="method",
                rule=f"must be {' or '.join(allowed)}",
                headers={"allow": ", ".join(allowed)},
            )
        raise no_such("path", f"there is nothing at {request.url.path}", f"see {ROOT}/openapi.json")

    return answer


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{\w+\}", "[^/]+", path))


def _cookie_alone() -> ProblemError:
    return ProblemError(
        HTTPStatus.UNAUTHORIZED,
        "unauthorized",
        "a browser's session may look through the API; to change something it takes the token itself",
        at=f"cookie {SESSION_COOKIE}",
        rule="changes need the header Authorization",
        remedy="send the token as a bearer token, or use the dashboard's forms",
        headers={"www-authenticate": 'Bearer realm="choreo"'},
    )


class _NoParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of an operation without parameters."""
