"""The saga-log's HTTP application: metrics and health, the API, and the dashboard.

Paths are matched before ``%2F`` becomes a slash: a saga id may have one, and is one segment all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from choreo.clock import Clock
from choreo.observe.affairs import Affairs
from choreo.web import api
from choreo.web.access import Access
from choreo.web.bulk import Bulks
from choreo.web.dashboard.routing import routes as dashboard_routes
from choreo.web.desk import Desk
from choreo.web.limits import (
    FAILURES_A_SECOND,
    FAILURES_AT_ONCE,
    REQUESTS_A_SECOND,
    REQUESTS_AT_ONCE,
    Buckets,
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)


def make_app(desk: Desk, bulks: Bulks, access: Access, affairs: Affairs, clock: Clock) -> Any:
    """The application, ready to be served."""
    guard = api.Guard(
        access,
        Buckets(REQUESTS_A_SECOND, REQUESTS_AT_ONCE, clock),
        Buckets(FAILURES_A_SECOND, FAILURES_AT_ONCE, clock),
    )

    async def own_affairs(request: Request) -> Response:
        answer = affairs.answer(request.url.path, request.headers.get("accept", ""))
        assert answer is not None, "only paths that it knows are routed to it"
        status, body, content_type = answer
        return Response(body, status_code=status, headers={"content-type": content_type})

    starlette = Starlette(
        routes=[
            *(Route(path, own_affairs, methods=["GET"]) for path in affairs.paths),
            *api.routes(desk, bulks, guard),
            *dashboard_routes(desk, bulks, guard),
        ]
    )
    return _Edge(starlette)


class _Edge:
    """What every request and every answer goes through."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(header for header in SECURITY_HEADERS if header[0] not in given),
                    *([] if b"cache-control" in given else [(b"cache-control", b"no-store")]),
                ]
            await send(message)

        raw = scope.get("raw_path")
        if raw is not None and b"%2f" in raw.lower():
            segments = raw.partition(b"?")[0].decode("ascii", "replace").split("/")
            scope = {**scope, "path": "/".join(unquote(each).replace("/", "%2F") for each in segments)}
        await self._app(scope, receive, send_with_headers)
