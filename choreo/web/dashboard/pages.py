"""The pages that only show."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from choreo.audit import Fact, history, preview_cancel
from choreo.client.dead_letters import Found
from choreo.contract import render as contract_render
from choreo.core.status import SagaStatus
from choreo.observe.log import trace_id_of
from choreo.store import Query
from choreo.web.access import Principal, Role, check_role
from choreo.web.api import query_of, saga_path
from choreo.web.dashboard import chart, graph, waterfall
from choreo.web.dashboard.rendering import segment
from choreo.web.dashboard.site import Site
from choreo.web.dashboard.words import DEEDS, offered
from choreo.web.desk import IN_PROGRESS, OUTCOMES, line_of
from choreo.web.problem import ProblemError, no_such
from choreo.web.shapes import Filter, LettersQuery, ListQuery, SagaCounts, SagaPage

PHASES = (*IN_PROGRESS, *OUTCOMES)
SHOWN = 10
LETTERS_MAX = 500
RAW_CHARS_MAX = 65_536


async def overview(site: Site, request: Request, who: Principal) -> Response:
    """How things are."""
    view = await site.desk.overview()
    totals = SagaCounts(saga="", **{phase: sum(getattr(each, phase) for each in view.sagas) for phase in PHASES})
    done = [sum(getattr(each, name) for each in view.activity) for name in OUTCOMES]
    stuck = await site.desk.search(Query(phases=("stuck",), limit=SHOWN))
    recent = await site.desk.search(Query(newest_first=True, limit=SHOWN))
    return site.page(
        request,
        who,
        "overview.html",
        view=view,
        totals=totals,
        phases=PHASES,
        oldest_ms=min((each.oldest_ms for each in view.sagas if each.oldest_ms), default=0),
        lag=sum(each.records for each in view.lag),
        chart=chart.draw(view.activity),
        ratio=done[1] / sum(done) if sum(done) else None,
        stuck=[line_of(row) for row in stuck],
        recent=[line_of(row) for row in recent],
    )


async def sagas(site: Site, request: Request, who: Principal) -> Response:
    """A list, with a search."""
    problem, query, page = None, ListQuery(), SagaPage(sagas=())
    given = {name: value for name, value in request.query_params.items() if name in ListQuery.__struct_fields__}
    try:
        query = query_of(request, ListQuery, ignored=("said",))
        page = await site.desk.list_sagas(query)
    except ProblemError as error:
        if error.problem.status != 400:
            raise
        problem = error.problem
        query = msgspec.structs.replace(query, **{k: v for k, v in given.items() if k not in ("limit", "version")})
    contracts = await site.desk.contracts()
    return site.page(
        request,
        who,
        "sagas.html",
        status=400 if problem else 200,
        query=query,
        page=page,
        problem=problem,
        names=site.desk.sagas,
        steps=list(dict.fromkeys(step.name for contract in contracts for step in contract.steps)),
        filter={name: value for name, value in given.items() if name != "cursor"},
        bulk_filter=filter_in(given),
        acts=[(act, deed.label, deed.is_grave) for act, deed in DEEDS.items()],
        # Of several phases only one combination is offered; another one, in an address, is kept.
        more_phases=((query.phase, query.phase),)
        if "," in query.phase and query.phase != ",".join(IN_PROGRESS)
        else (),
    )


async def saga(site: Site, request: Request, who: Principal) -> Response:
    """All about one saga."""
    path = saga_path(request)
    trail = await site.desk.trail(path["saga"], path["saga_id"])
    told = history(trail)
    contract, state = trail.contract, trail.state
    assert contract is not None, "a trail with facts has a contract"
    now_ms = site.desk.clock.now_ms()
    about: SagaStatus = told.status
    steps = [step.name for step in contract.steps]
    is_over = state.outcome is not None and state.is_settled
    return site.page(
        request,
        who,
        "saga.html",
        about=about,
        history=told,
        explanation=None if is_over else await site.desk.explanation(path["saga"], path["saga_id"]),
        acts=offered(state),
        awaited=[name for name in contract.signals if name not in about.signals and state.outcome is None],
        graph=graph.draw(contract, {step.step: step.phase for step in about.steps}),
        waterfall=waterfall.draw(trail, told.lines, steps, now_ms),
        trace_id=trace_id_of(state.traceparent),
        raw={fact.entry.offset: _raw(fact) for fact in trail.facts},
    )


async def act(site: Site, request: Request, who: Principal) -> Response:
    """What an act would do, and the form for it."""
    check_role(who, Role.OPERATE)
    return await act_page(site, request, who)


async def act_page(site: Site, request: Request, who: Principal, problem: ProblemError | None = None) -> Response:
    """The form of an act, with what was wrong with it."""
    path = saga_path(request)
    deed = DEEDS.get(path["act"])  # type: ignore[call-overload]
    if deed is None:
        raise no_such("path", f"nothing called {path['act']!r} can be done to a saga")
    known = await site.desk.known(path["saga"], path["saga_id"])
    step = request.query_params.get("step", "")
    where = f"/sagas/{segment(path['saga'])}/{segment(path['saga_id'])}"
    return site.page(
        request,
        who,
        "act.html",
        status=problem.problem.status if problem else 200,
        problem=problem.problem if problem else None,
        saga_id=path["saga_id"],
        label=f"{deed.label}: {step}" if deed.of_step and step else deed.label,
        about=deed.about,
        grave=deed.is_grave,
        preview=preview_cancel(*known) if path["act"] == "cancel" else None,
        step=step,
        back=where,
        action=f"{where}/act/{path['act']}" + (f"?step={segment(step)}" if step else ""),
    )


async def signal(site: Site, request: Request, who: Principal) -> Response:
    """The form for a signal."""
    check_role(who, Role.START)
    return await signal_page(site, request, who)


async def signal_page(
    site: Site, request: Request, who: Principal, problem: ProblemError | None = None, given: str = "null"
) -> Response:
    """The form for a signal, with what was wrong with it."""
    path = saga_path(request)
    known = await site.desk.known(path["saga"], path["saga_id"])
    where = f"/sagas/{segment(path['saga'])}/{segment(path['saga_id'])}"
    return site.page(
        request,
        who,
        "signal.html",
        status=problem.problem.status if problem else 200,
        problem=problem.problem if problem else None,
        saga_id=path["saga_id"],
        names=list(known.contract.signals),
        name=request.query_params.get("name", ""),
        given=given,
        back=where,
        action=f"{where}/signal",
    )


async def contracts(site: Site, request: Request, who: Principal) -> Response:
    """All contracts, drawn."""
    drawn = [(contract, graph.draw(contract)) for contract in await site.desk.contracts()]
    return site.page(request, who, "contracts.html", drawn=drawn)


async def contract(site: Site, request: Request, who: Principal) -> Response:
    """One contract."""
    return await contract_page(site, request, who)


async def contract_page(
    site: Site,
    request: Request,
    who: Principal,
    *,
    problem: ProblemError | None = None,
    given_input: str = "{}",
    given_id: str = "",
) -> Response:
    """One contract, with what was wrong with a start."""
    path = saga_path(request)
    number = int(path["version"]) if path["version"].isdigit() and len(path["version"]) < 10 else 0
    found = await site.desk.contract(path["saga"], number)
    return site.page(
        request,
        who,
        "contract.html",
        status=problem.problem.status if problem else 200,
        problem=problem.problem if problem else None,
        contract=found,
        drawing=graph.draw(found),
        mermaid=contract_render.mermaid(found),
        given_input=given_input,
        given_id=given_id,
    )


async def dead_letters(site: Site, request: Request, who: Principal) -> Response:
    """What nobody could read."""
    letters: list[Found] = []
    for name in site.desk.sagas:
        letters += await site.desk.letters.list(name, LettersQuery())
    letters.sort(key=lambda letter: letter.buried_ms, reverse=True)
    return site.page(request, who, "dead_letters.html", letters=letters[:LETTERS_MAX])


async def dead_letter(site: Site, request: Request, who: Principal) -> Response:
    """One of them, with its bytes."""
    path = saga_path(request)
    detail = await site.desk.letters.read(path["saga"], path["letter"])
    return site.page(request, who, "dead_letter.html", detail=detail)


async def doctor(site: Site, request: Request, who: Principal) -> Response:
    """What is wrong with the deployment."""
    return site.page(request, who, "doctor.html", diagnosis=await site.desk.diagnosis())


async def bulk_new(site: Site, request: Request, who: Principal) -> Response:
    """What a bulk act would do, before it is known to whom."""
    check_role(who, Role.OPERATE)
    name = request.query_params.get("act", "")
    deed = DEEDS.get(name)  # type: ignore[call-overload]
    if deed is None:
        raise no_such("query parameter act", f"nothing called {name!r} can be done to sagas")
    return site.page(
        request,
        who,
        "bulk_new.html",
        act=name,
        label=f"{deed.label}: many sagas",
        about=deed.about,
        filter=filter_in(dict(request.query_params)),
    )


async def bulk(site: Site, request: Request, who: Principal) -> Response:
    """How far a bulk act is."""
    return bulk_page(site, request, who)


def bulk_page(site: Site, request: Request, who: Principal, problem: ProblemError | None = None) -> Response:
    """A bulk act, with what was wrong with its confirmation."""
    shown = site.bulks.show(saga_path(request)["bulk_id"])
    return site.page(
        request,
        who,
        "bulk.html",
        status=problem.problem.status if problem else 200,
        problem=problem.problem if problem else None,
        bulk=shown,
        self_path=f"/bulk/{segment(shown.id)}",
        label=f"{DEEDS[shown.act].label}: many sagas",
    )


def filter_in(given: dict[str, str]) -> dict[str, str]:
    """The fields of a filter among the parameters of a page; phases under the name that lists give them."""
    names = {*Filter.__struct_fields__, "phase"} - {"phases"}
    return {name: value for name, value in given.items() if name in names and value}


def _raw(fact: Fact) -> dict[str, Any]:
    message = fact.message
    text = message.value[:RAW_CHARS_MAX].decode("utf-8", "replace")
    return {
        "headers": [(name, value.decode("utf-8", "replace")) for name, value in message.headers],
        "value": text if len(message.value) <= RAW_CHARS_MAX else f"{text}\n… {len(message.value)} bytes in all",
    }
