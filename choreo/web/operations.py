"""The API as a table: each operation's path, role, types and deed. Routes and the OpenAPI document are made of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from choreo.audit import CancelPreview, Explanation, History, history, preview_cancel
from choreo.client.dead_letters import Found
from choreo.core.status import SagaStatus
from choreo.doctor import Diagnosis
from choreo.web.access import Principal, Role
from choreo.web.bulk import Bulks
from choreo.web.contracts import contract_detail, contract_line
from choreo.web.desk import Desk
from choreo.web.letters import Letters
from choreo.web.shapes import (
    Accepted,
    Act,
    Bulk,
    BulkConfirm,
    BulkRequest,
    ContractDetail,
    ContractLine,
    EventsQuery,
    LetterDetail,
    LettersQuery,
    ListQuery,
    Overview,
    ReasonedAct,
    RedrivenTo,
    RedriveRequest,
    SagaPage,
    SignalRequest,
    Started,
    StartRequest,
    StepAct,
)

ROOT = "/api/v1"


class Call(NamedTuple):
    """A request, checked and read."""

    desk: Desk
    bulks: Bulks
    letters: Letters
    who: Principal
    path: dict[str, str]
    query: Any
    body: Any
    traceparent: str | None


class Reply(NamedTuple):
    """An answer with a status of its own."""

    status: HTTPStatus
    value: Any
    location: str = ""


class Operation(NamedTuple):
    """One line of the table.

    Attributes:
        path: below ``/api/v1``; what is in braces is a parameter.
        query, body: types of the query's parameters and of the body; ``None`` for none.
        answer: type of the answer.
        others: further statuses that the answer can have.
        errors: statuses of the problems that it can end with, beside those of all operations.
    """

    name: str
    method: str
    path: str
    role: Role
    summary: str
    run: Callable[[Call], Awaitable[Any]]
    answer: Any
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    status: HTTPStatus = HTTPStatus.OK
    others: tuple[HTTPStatus, ...] = ()
    errors: tuple[HTTPStatus, ...] = ()
    stream: bool = False


async def _overview(call: Call) -> Overview:
    return await call.desk.overview()


async def _list(call: Call) -> SagaPage:
    return await call.desk.list_sagas(call.query)


async def _start(call: Call) -> Reply:
    started = await call.desk.start(call.path["saga"], call.body, traceparent=call.traceparent)
    return Reply(HTTPStatus.CREATED if started.new else HTTPStatus.OK, started, started.status)


async def _status(call: Call) -> SagaStatus:
    return await call.desk.status(call.path["saga"], call.path["saga_id"])


async def _history(call: Call) -> History:
    return history(await call.desk.trail(call.path["saga"], call.path["saga_id"]))


async def _explanation(call: Call) -> Explanation:
    return await call.desk.explanation(call.path["saga"], call.path["saga_id"])


async def _cancel_preview(call: Call) -> CancelPreview:
    return preview_cancel(*await call.desk.known(call.path["saga"], call.path["saga_id"]))


async def _doctor(call: Call) -> Diagnosis:
    return await call.desk.diagnosis()


async def _letters(call: Call) -> list[Found]:
    return await call.letters.list(call.path["saga"], call.query)


async def _letter(call: Call) -> LetterDetail:
    return await call.letters.read(call.path["saga"], call.path["letter"])


async def _redrive(call: Call) -> RedrivenTo:
    return await call.letters.redrive(call.path["saga"], call.path["letter"], call.body, by=call.who.name)


def _act(act: Act) -> Callable[[Call], Awaitable[Accepted]]:
    async def run(call: Call) -> Accepted:
        known = await call.desk.known(call.path["saga"], call.path["saga_id"])
        step = getattr(call.body, "step", None)
        return await call.desk.act(known, act, step, operator=call.who.name, reason=call.body.reason)

    return run


async def _signal(call: Call) -> Accepted:
    known = await call.desk.known(call.path["saga"], call.path["saga_id"])
    return await call.desk.signal(known, call.body, by=call.who.name)


def _all_of_a_name(*, on: bool) -> Callable[[Call], Awaitable[Accepted]]:
    async def run(call: Call) -> Accepted:
        return await call.desk.pause_all(call.path["saga"], on=on, operator=call.who.name, reason=call.body.reason)

    return run


async def _contracts(call: Call) -> list[ContractLine]:
    return [contract_line(contract) for contract in await call.desk.contracts()]


async def _contract(call: Call) -> ContractDetail:
    version = call.path["version"]
    number = int(version) if version.isdigit() and len(version) < 10 else 0
    return contract_detail(await call.desk.contract(call.path["saga"], number))


async def _bulk_preview(call: Call) -> Bulk:
    return await call.bulks.preview(call.body, by=call.who.name)


async def _bulk_confirm(call: Call) -> Bulk:
    return call.bulks.confirm(call.path["bulk_id"], call.body, by=call.who.name)


async def _bulk_show(call: Call) -> Bulk:
    return call.bulks.show(call.path["bulk_id"])


async def _bulk_stop(call: Call) -> Bulk:
    return call.bulks.stop(call.path["bulk_id"])


async def _events(_: Call) -> None:
    raise AssertionError("streams are served by the API itself")


_SAGA = "/sagas/{saga}/{saga_id}"
_GONE = (HTTPStatus.NOT_FOUND,)
_ELSEWHERE = (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
_ACCEPTED = HTTPStatus.ACCEPTED

_SAGA_ACTS: tuple[tuple[Act, str], ...] = (
    ("cancel", "Turn a saga round: what it has done is undone"),
    ("pause", "Hold a saga: what is in flight finishes, nothing else begins"),
    ("resume", "Let a paused saga go on"),
)
_TYPE_ACTS: tuple[tuple[Act, str], ...] = (
    ("pause", "Hold all sagas of a name, those too that start later"),
    ("resume", "Let all sagas of a name go on"),
)
_STEP_ACTS: tuple[tuple[Act, str], ...] = (
    ("retry", "Try a stuck step again"),
    ("skip", "Take a stuck step as done by hand, and go on"),
    ("resolve", "Take all that is left as done by hand: the saga ends"),
)

OPERATIONS: tuple[Operation, ...] = (
    Operation("overview", "GET", "/overview", Role.READ, "How things are", _overview, Overview),
    Operation("list_sagas", "GET", "/sagas", Role.READ, "List and search sagas", _list, SagaPage, query=ListQuery),
    Operation(
        "start_saga",
        "POST",
        "/sagas/{saga}",
        Role.START,
        "Start a saga",
        _start,
        Started,
        body=StartRequest,
        status=HTTPStatus.CREATED,
        others=(HTTPStatus.OK,),
        errors=_ELSEWHERE,
    ),
    Operation("get_saga", "GET", _SAGA, Role.READ, "Where a saga is", _status, SagaStatus, errors=_GONE),
    Operation("get_history", "GET", f"{_SAGA}/history", Role.READ, "A saga's records", _history, History, errors=_GONE),
    Operation(
        "signal_saga",
        "POST",
        f"{_SAGA}/signals",
        Role.START,
        "Tell a saga that something outside of it has happened",
        _signal,
        Accepted,
        body=SignalRequest,
        status=_ACCEPTED,
        errors=_ELSEWHERE,
    ),
    *(
        Operation(
            f"{act}_saga",
            "POST",
            f"{_SAGA}/{act}",
            Role.OPERATE,
            summary,
            _act(act),
            Accepted,
            body=ReasonedAct,
            status=_ACCEPTED,
            errors=_ELSEWHERE,
        )
        for act, summary in _SAGA_ACTS
    ),
    *(
        Operation(
            f"{act}_all",
            "POST",
            f"/types/{{saga}}/{act}",
            Role.OPERATE,
            summary,
            _all_of_a_name(on=act == "pause"),
            Accepted,
            body=ReasonedAct,
            status=_ACCEPTED,
            errors=_GONE,
        )
        for act, summary in _TYPE_ACTS
    ),
    *(
        Operation(
            f"{act}_step",
            "POST",
            f"{_SAGA}/{act}",
            Role.OPERATE,
            summary,
            _act(act),
            Accepted,
            body=StepAct,
            status=_ACCEPTED,
            errors=_ELSEWHERE,
        )
        for act, summary in _STEP_ACTS
    ),
    Operation(
        "explain_saga",
        "GET",
        f"{_SAGA}/explanation",
        Role.READ,
        "Why a saga is where it is, and what to do",
        _explanation,
        Explanation,
        errors=_GONE,
    ),
    Operation(
        "preview_cancel",
        "GET",
        f"{_SAGA}/cancel-preview",
        Role.READ,
        "What a cancel would undo, in which order",
        _cancel_preview,
        CancelPreview,
        errors=_GONE,
    ),
    Operation("doctor", "GET", "/doctor", Role.READ, "Is the deployment as sagas need it?", _doctor, Diagnosis),
    Operation(
        "list_dead_letters",
        "GET",
        "/dead-letters/{saga}",
        Role.READ,
        "Records that nobody could read",
        _letters,
        list[Found],
        query=LettersQuery,
        errors=_GONE,
    ),
    Operation(
        "get_dead_letter",
        "GET",
        "/dead-letters/{saga}/{letter}",
        Role.READ,
        "A dead letter with its bytes",
        _letter,
        LetterDetail,
        errors=_GONE,
    ),
    Operation(
        "redrive_dead_letter",
        "POST",
        "/dead-letters/{saga}/{letter}/redrive",
        Role.OPERATE,
        "Write a dead letter back into its topic",
        _redrive,
        RedrivenTo,
        body=RedriveRequest,
        status=_ACCEPTED,
        errors=_ELSEWHERE,
    ),
    Operation("list_contracts", "GET", "/contracts", Role.READ, "Registered contracts", _contracts, list[ContractLine]),
    Operation(
        "get_contract",
        "GET",
        "/contracts/{saga}/{version}",
        Role.READ,
        "A contract, drawn",
        _contract,
        ContractDetail,
        errors=_GONE,
    ),
    Operation(
        "preview_bulk",
        "POST",
        "/bulk",
        Role.OPERATE,
        "Preview an act on many sagas; nothing is done yet",
        _bulk_preview,
        Bulk,
        body=BulkRequest,
    ),
    Operation(
        "confirm_bulk",
        "POST",
        "/bulk/{bulk_id}/confirm",
        Role.OPERATE,
        "Do what was previewed",
        _bulk_confirm,
        Bulk,
        body=BulkConfirm,
        status=_ACCEPTED,
        errors=_ELSEWHERE,
    ),
    Operation("get_bulk", "GET", "/bulk/{bulk_id}", Role.READ, "How far a bulk act is", _bulk_show, Bulk, errors=_GONE),
    Operation(
        "stop_bulk", "DELETE", "/bulk/{bulk_id}", Role.OPERATE, "Stop a bulk act", _bulk_stop, Bulk, errors=_GONE
    ),
    Operation(
        "stream_events",
        "GET",
        "/events",
        Role.READ,
        "Changes as they happen, as server-sent events: ready, change, reset",
        _events,
        None,
        query=EventsQuery,
        stream=True,
    ),
)
