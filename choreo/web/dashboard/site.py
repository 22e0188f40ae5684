"""What all pages share: who looks, how a page is answered, and what becomes of errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from choreo.errors import ChoreoError
from choreo.web.access import Principal, Role, check_origin, check_role
from choreo.web.api import Guard
from choreo.web.bulk import Bulks
from choreo.web.dashboard.rendering import render
from choreo.web.dashboard.words import SAID
from choreo.web.desk import Desk
from choreo.web.limits import ANSWER_TIMEOUT_S, body_of
from choreo.web.problem import ProblemError, invalid, problem_of, unexpected

logger = logging.getLogger("choreo.web")

FIELDS_MAX = 40

Form = dict[str, str]
Page = Callable[["Site", Request, Principal], Awaitable[Response]]
FormPage = Callable[["Site", Request, Principal, Form], Awaitable[Response]]


class Site:
    """The dashboard's way to everything."""

    def __init__(self, desk: Desk, bulks: Bulks, guard: Guard) -> None:
        self.desk = desk
        self.bulks = bulks
        self.guard = guard

    def page(
        self, request: Request, who: Principal | None, template: str, *, status: int = HTTPStatus.OK, **values: Any
    ) -> Response:
        """A page from a template."""
        shared = {
            "who": who,
            "open": self.guard.access.is_open,
            "here": f"/{request.url.path.split('/')[1]}",
            "said": SAID.get(request.query_params.get("said", ""), ""),
            "now_ms": self.desk.clock.now_ms(),
            "may_operate": who is not None and who.role >= Role.OPERATE,
            "may_start": who is not None and who.role >= Role.START,
            "problem": None,
            "self_path": "",  # where the page is to be had again, if not at its own address
        }
        return Response(render(template, **shared | values), status_code=status, media_type="text/html")

    def looking(self, page: Page) -> Callable[[Request], Awaitable[Response]]:
        """A page that changes nothing."""

        async def answer(request: Request, who: Principal) -> Response:
            check_role(who, Role.READ)
            return await page(self, request, who)

        return self._guarded(answer)

    def sending(self, page: FormPage, role: Role) -> Callable[[Request], Awaitable[Response]]:
        """What a form is sent to."""

        async def answer(request: Request, who: Principal) -> Response:
            check_origin(request)
            form = await form_of(request)
            self.guard.access.check_form(who, form.get("csrf", ""))
            check_role(who, role)
            return await page(self, request, who, form)

        return self._guarded(answer)

    def _guarded(
        self, answer: Callable[[Request, Principal], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def run(request: Request) -> Response:
            who = None
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    who = self.guard.admit(request)
                    return await answer(request, who)
            except ProblemError as error:
                if error.problem.status == HTTPStatus.UNAUTHORIZED and "authorization" not in request.headers:
                    return to_login(request)
                found = error
            except ChoreoError as error:
                found = problem_of(error)
            except TimeoutError:
                found = ProblemError(HTTPStatus.GATEWAY_TIMEOUT, "too-slow", f"no answer in {ANSWER_TIMEOUT_S:g} s")
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception:  # whatever the defect, the server and its other pages go on
                logger.exception("%s %s has failed", request.method, request.url.path)
                found = unexpected()
            page = self.page(request, who, "problem.html", status=found.problem.status, problem=found.problem)
            page.headers.update(found.headers)
            return page

        return run


def to_login(request: Request) -> Response:
    """To the page where a token is asked for, and back."""
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    where = f"?next={quote(target, safe='/')}" if request.method == "GET" and target != "/" else ""
    return see_other(f"/login{where}")


def see_other(path: str) -> Response:
    """On to a page that may be loaded again without doing anything again."""
    return RedirectResponse(path, status_code=HTTPStatus.SEE_OTHER)


async def form_of(request: Request) -> Form:
    """The fields of a form, the last of each name. Raises ``ProblemError`` for what is none."""
    from urllib.parse import parse_qsl

    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded":
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "media-type", "this is no form of ours", at="header Content-Type"
        )
    try:
        text = (await body_of(request)).decode("ascii")
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict"))
    except ValueError as error:
        raise invalid("body", f"the form cannot be read: {error}", "must be URL-encoded UTF-8") from error


def reason_of(form: Form) -> str:
    """The reason in a form. Raises ``ProblemError`` if there is none."""
    reason = form.get("reason", "").strip()
    if not 0 < len(reason) <= 2_000:
        raise invalid("form field reason", "a reason is needed", "must have 1 to 2000 characters")
    return reason
