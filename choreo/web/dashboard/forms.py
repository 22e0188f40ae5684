"""What forms are sent to. Each does one thing and leads on to a page that may be loaded again."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from choreo.web.access import SESSION_COOKIE, Principal, check_origin
from choreo.web.api import problem_response, saga_path
from choreo.web.dashboard import pages
from choreo.web.dashboard.rendering import segment
from choreo.web.dashboard.site import Form, Site, form_of, reason_of, see_other
from choreo.web.dashboard.words import DEEDS
from choreo.web.desk import filter_of
from choreo.web.problem import ProblemError, from_validation, invalid, no_such
from choreo.web.shapes import BulkConfirm, BulkRequest, ListQuery, RedriveRequest, SignalRequest, StartRequest


async def act(site: Site, request: Request, who: Principal, form: Form) -> Response:
    """Do something to a saga."""
    path = saga_path(request)
    name = path["act"]
    if name not in DEEDS:
        raise no_such("path", f"nothing called {name!r} can be done to a saga")
    try:
        known = await site.desk.known(path["saga"], path["saga_id"])
        reason = reason_of(form)
        await site.desk.act(known, name, form.get("step") or None, operator=who.name, reason=reason)
    except ProblemError as problem:
        if problem.problem.status not in (HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT):
            raise
        return await pages.act_page(site, request, who, problem)
    return see_other(f"/sagas/{segment(path['saga'])}/{segment(path['saga_id'])}?said={name}")


async def signal(site: Site, request: Request, who: Principal, form: Form) -> Response:
    """Tell a saga that something has happened."""
    path = saga_path(request)
    try:
        asked = {"name": form.get("name", ""), "payload": _json("payload", form), "reason": form.get("reason", "")}
        try:
            wanted = msgspec.convert(asked, SignalRequest)
        except msgspec.ValidationError as error:
            raise from_validation("form field", error) from error
        known = await site.desk.known(path["saga"], path["saga_id"])
        await site.desk.signal(known, wanted, by=who.name)
    except ProblemError as problem:
        if problem.problem.status != HTTPStatus.BAD_REQUEST:
            raise
        return await pages.signal_page(site, request, who, problem, form.get("payload", ""))
    return see_other(f"/sagas/{segment(path['saga'])}/{segment(path['saga_id'])}?said=signal")


async def start(site: Site, request: Request, who: Principal, form: Form) -> Response:
    """Start a saga."""
    path = saga_path(request)
    try:
        asked = {"input": _json("input", form), "version": int(path["version"])}
        if saga_id := form.get("saga_id", "").strip():
            asked["saga_id"] = saga_id
        try:
            wanted = msgspec.convert(asked, StartRequest)
        except msgspec.ValidationError as error:
            raise from_validation("form field", error) from error
        started = await site.desk.start(path["saga"], wanted, traceparent=None)
    except ProblemError as problem:
        if problem.problem.status not in (HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT):
            raise
        return await pages.contract_page(
            site, request, who, problem=problem, given_input=form.get("input", ""), given_id=form.get("saga_id", "")
        )
    return see_other(f"/sagas/{segment(started.saga)}/{segment(started.saga_id)}?said=started")


async def hold(site: Site, request: Request, who: Principal, form: Form) -> Response:
    """Hold all sagas of a name, or let them go on."""
    path = saga_path(request)
    act = form.get("act", "")
    if act not in ("pause", "resume"):
        raise invalid("form field act", f"nothing called {act!r} can be done to all", "must be pause or resume")
    await site.desk.pause_all(path["saga"], on=act == "pause", operator=who.name, reason=reason_of(form))
    return see_other(f"/contracts/{segment(path['saga'])}/{segment(path['version'])}?said={act}")


async def redrive(site: Site, request: Request, who: Principal, form: Form) -> Response:
    """Write a dead letter back."""
    path = saga_path(request)
    wanted = RedriveRequest(reason=reason_of(form), again=form.get("again") == "yes")
    await site.desk.letters.redrive(path["saga"], path["letter"], wanted, by=who.name)
    return see_other(f"/dead-letters/{segment(path['saga'])}/{segment(path['letter'])}?said=redriven")


async def bulk_preview(site: Site, _: Request, who: Principal, form: Form) -> Response:
    """Find whom a bulk act would hit."""
    given = pages.filter_in(form)
    try:
        wanted = filter_of(msgspec.convert(given, ListQuery, strict=False))
        asked = msgspec.convert({"act": form.get("act", ""), "filter": msgspec.to_builtins(wanted)}, BulkRequest)
    except msgspec.ValidationError as error:
        raise from_validation("form field", error) from error
    # A step that was searched for is also the one that is meant.
    step = wanted.step if DEEDS[asked.act].of_step else None
    made = await site.bulks.preview(msgspec.structs.replace(asked, step=step), by=who.name)
    return see_other(f"/bulk/{segment(made.id)}")


async def bulk_confirm(site: Site, request: Request, who: Principal, form: Form) -> Response:
    """Do what was previewed."""
    bulk_id = saga_path(request)["bulk_id"]
    try:
        given = {name: form.get(name, "").strip() for name in ("count", "reason", "per_second")}
        try:
            wanted = msgspec.convert(given, BulkConfirm, strict=False)
        except msgspec.ValidationError as error:
            raise from_validation("form field", error) from error
        site.bulks.confirm(bulk_id, wanted, by=who.name)
    except ProblemError as problem:
        if problem.problem.status not in (HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT):
            raise
        return pages.bulk_page(site, request, who, problem)
    return see_other(f"/bulk/{segment(bulk_id)}")


async def bulk_stop(site: Site, request: Request, _: Principal, __: Form) -> Response:
    """Stop a bulk act."""
    bulk_id = saga_path(request)["bulk_id"]
    site.bulks.stop(bulk_id)
    return see_other(f"/bulk/{segment(bulk_id)}")


async def login_page(site: Site, request: Request) -> Response:
    """Ask for a token."""
    if site.guard.access.is_open or site.guard.access.session(request) is not None:
        return see_other("/")
    return site.page(request, None, "login.html", next=_local(request.query_params.get("next", "/")))


async def login(site: Site, request: Request) -> Response:
    """Keep a token in the browser."""
    try:
        check_origin(request)
        form = await form_of(request)
        token = form.get("token", "").strip()
        is_known = site.guard.admit_token(request, token)
    except ProblemError as problem:
        return problem_response(problem)
    target = _local(form.get("next", "/"))
    if not is_known:
        refused = invalid("form field token", "this token is not known", "must be one that the saga-log was given")
        return site.page(request, None, "login.html", status=HTTPStatus.FORBIDDEN, next=target, problem=refused.problem)
    answer = see_other(target)
    is_https = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    # Without an age: it goes when the browser is closed, and is not written to a disk.
    answer.set_cookie(SESSION_COOKIE, token, path="/", httponly=True, samesite="strict", secure=is_https)
    return answer


async def logout(_: Site, __: Request, ___: Principal, ____: Form) -> Response:
    """End the session."""
    answer = see_other("/login")
    answer.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="strict")
    return answer


def _json(name: str, form: Form) -> Any:
    try:
        return msgspec.json.decode(form.get(name, ""))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise invalid(f"form field {name}", f"the {name} is not JSON: {error}", "must be JSON") from error


def _local(target: str) -> str:
    """A path of ours, or the first page: nobody is led elsewhere."""
    is_ours = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_ours else "/"
