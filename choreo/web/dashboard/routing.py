"""Paths of the dashboard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from choreo.web.access import Role
from choreo.web.api import Guard
from choreo.web.bulk import Bulks
from choreo.web.dashboard import forms, pages
from choreo.web.dashboard.rendering import STATIC, STATIC_TYPES, static_file
from choreo.web.dashboard.site import FormPage, Page, Site
from choreo.web.desk import Desk
from choreo.web.problem import no_such

_SAGA = "/sagas/{saga}/{saga_id}"

_PAGES: tuple[tuple[str, Page], ...] = (
    ("/", pages.overview),
    ("/sagas", pages.sagas),
    (_SAGA, pages.saga),
    (f"{_SAGA}/act/{{act}}", pages.act),
    (f"{_SAGA}/signal", pages.signal),
    ("/contracts", pages.contracts),
    ("/contracts/{saga}/{version}", pages.contract),
    ("/dead-letters", pages.dead_letters),
    ("/dead-letters/{saga}/{letter}", pages.dead_letter),
    ("/doctor", pages.doctor),
    ("/bulk", pages.bulk_new),
    ("/bulk/{bulk_id}", pages.bulk),
)

_FORMS: tuple[tuple[str, FormPage, Role], ...] = (
    (f"{_SAGA}/act/{{act}}", forms.act, Role.OPERATE),
    (f"{_SAGA}/signal", forms.signal, Role.START),
    ("/contracts/{saga}/{version}/start", forms.start, Role.START),
    ("/contracts/{saga}/{version}/hold", forms.hold, Role.OPERATE),
    ("/dead-letters/{saga}/{letter}/redrive", forms.redrive, Role.OPERATE),
    ("/bulk", forms.bulk_preview, Role.OPERATE),
    ("/bulk/{bulk_id}/confirm", forms.bulk_confirm, Role.OPERATE),
    ("/bulk/{bulk_id}/stop", forms.bulk_stop, Role.OPERATE),
    ("/logout", forms.logout, Role.READ),
)


def routes(desk: Desk, bulks: Bulks, guard: Guard) -> list[Route]:
    """The routes of the dashboard; the last one takes what no other does."""
    site = Site(desk, bulks, guard)
    return [
        *(Route(path, site.looking(page), methods=["GET"]) for path, page in _PAGES),
        *(Route(path, site.sending(page, role), methods=["POST"]) for path, page, role in _FORMS),
        Route("/login", _alone(site, forms.login_page), methods=["GET"]),
        Route("/login", _alone(site, forms.login), methods=["POST"]),
        Route("/static/{hash}/{name}", _static, methods=["GET"]),
        Route("/{rest:path}", site.looking(_nothing), methods=["GET"]),
    ]


def _alone(
    site: Site, page: Callable[[Site, Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await page(site, request)

    return answer


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        return Response(status_code=404)
    media_type = STATIC_TYPES[name.rpartition(".")[2]]
    headers = {"cache-control": "public, max-age=31536000, immutable"}  # its path has the hash of its content
    return Response(static_file(name), media_type=media_type, headers=headers)


async def _nothing(_: Site, request: Request, __: object) -> Response:
    raise no_such("path", f"there is no page at {request.url.path}")
