"""The HTTP API, over sagas that really run: every answer is held against the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema
import pytest

from choreo.errors import BrokerUnavailable, ConfigurationError
from choreo.web import limits, live
from choreo.web.access import Grant, Role, digest_of, new_token, read_grants
from choreo.web.openapi import document
from tests.web_world import ORDER, World, application, running, served, until

DOCUMENT = json.loads(json.dumps(document()))
SCHEMA_OF_OPENAPI = json.loads((Path(__file__).parents[1] / "schemas" / "openapi-3.1.json").read_text())

READER, STARTER, OPERATOR = new_token(), new_token(), new_token()
GRANTS = (
    Grant(Role.READ, "rita", digest_of(READER)),
    Grant(Role.START, "stan", digest_of(STARTER)),
    Grant(Role.OPERATE, "olga", digest_of(OPERATOR)),
)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with running() as one:
        yield one


async def check_answer(response: httpx.Response) -> None:
    """Hold an answer against what the document says about it."""
    path = response.request.url.raw_path.decode().partition("?")[0]
    if not path.startswith("/api/v1/"):
        return
    await response.aread()
    for template, methods in DOCUMENT["paths"].items():
        operation = methods.get(response.request.method.lower())
        if operation and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            break
    else:
        assert path == "/api/v1/openapi.json" or response.status_code in (401, 403, 404, 405), path
        return
    described = operation["responses"].get(str(response.status_code))
    assert described is not None, f"{response.request.method} {template} may not answer {response.status_code}"
    media_type = response.headers["content-type"].partition(";")[0]
    assert media_type in described["content"], f"{template} may not answer with {media_type}"
    if "json" in media_type:
        schema = {**described["content"][media_type]["schema"], "components": DOCUMENT["components"]}
        jsonschema.Draft202012Validator(schema).validate(response.json())


@asynccontextmanager
async def client_of(world: World, *grants: Grant, token: str = "", peer: str = "127.0.0.1") -> AsyncIterator[Any]:
    async with application(world, *grants) as (app, _, _):
        headers = {"authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app, client=(peer, 5_000)),
            base_url="http://127.0.0.1:8080",
            headers=headers,
            event_hooks={"response": [check_answer]},
        ) as client:
            yield client


@pytest.fixture
async def api(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(world) as client:
        yield client


def problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    said: dict[str, Any] = response.json()
    assert (said["status"], said["type"]) == (status, f"urn:choreo:problem:{kind}")
    return said


# The document


def test_the_document_is_an_openapi_document() -> None:
    jsonschema.Draft202012Validator(SCHEMA_OF_OPENAPI).validate(DOCUMENT)


def test_every_reference_in_the_document_leads_somewhere_and_every_schema_is_one() -> None:
    text = json.dumps(DOCUMENT)
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in DOCUMENT["components"]["schemas"]
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert "\\\\Z" not in text


def test_every_operation_says_its_role_and_has_a_name_of_its_own() -> None:
    operations = [operation for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(re.fullmatch(r"Needs the role `(read|start|operate)`\.", each["description"]) for each in operations)
    for operation in operations:
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (operation["operationId"], parameter["name"])


async def test_the_document_is_served(api: httpx.AsyncClient) -> None:
    assert (await api.get("/api/v1/openapi.json")).json() == DOCUMENT


# Looking and starting


async def test_a_saga_is_started_found_and_looked_into(world: World, api: httpx.AsyncClient) -> None:
    response = await api.post("/api/v1/sagas/order", json={"input": {"item": "kite"}, "saga_id": "o/1"})
    assert response.status_code == 201, response.text
    assert response.headers["location"] == "/api/v1/sagas/order/o%2F1"
    await world.until("o/1", "completed")
    again = await api.post("/api/v1/sagas/order", json={"input": {"item": "kite"}, "saga_id": "o/1"})
    assert (again.status_code, again.json()["new"]) == (200, False)
    problem(await api.post("/api/v1/sagas/order", json={"input": "other", "saga_id": "o/1"}), 409, "conflict")
    status = (await api.get(response.headers["location"])).json()
    assert (status["saga_id"], status["phase"]) == ("o/1", "completed")
    history = (await api.get(response.headers["location"] + "/history")).json()
    assert [line["type"] for line in history["lines"]][:2] == ["saga_started", "step_completed"]
    assert history["lines"][-1]["type"] == "saga_completed"
    assert history["lines"][0]["record"]["input"] == {"item": "kite"}
    assert history["status"]["phase"] == "completed"
    listed = (await api.get("/api/v1/sagas")).json()
    assert [(line["saga_id"], line["phase"]) for line in listed["sagas"]] == [("o/1", "completed")]


async def test_an_id_is_drawn_where_none_is_given_and_known_before_the_store_has_it(api: httpx.AsyncClient) -> None:
    started = (await api.post("/api/v1/sagas/order", json={"input": {}})).json()
    assert started["new"]
    assert (await api.get(started["status"])).json()["saga_id"] == started["saga_id"]


async def test_a_trace_is_carried_through_and_shown_as_an_exemplar(world: World, api: httpx.AsyncClient) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    body = {"input": {}, "saga_id": "traced"}
    await api.post("/api/v1/sagas/order", json=body, headers={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"})
    await world.until("traced", "completed")
    shown = (await api.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})).text
    for name in ("choreo_saga_duration_seconds_bucket", "choreo_step_duration_seconds_bucket"):
        assert re.search(rf'^{name}{{.*}} \d.* # {{trace_id="{trace_id}"}}', shown, re.MULTILINE), name
    assert "trace_id" not in (await api.get("/metrics")).text


async def test_lists_are_filtered_and_paged(world: World, api: httpx.AsyncClient) -> None:
    for number in range(5):
        await world.start(f"fine-{number}")
    await world.start("bad-1", fail="the depot is CLOSED", code="closed")
    await world.start("waiting", wait=True)
    for saga_id in ("bad-1", *(f"fine-{number}" for number in range(5))):
        await world.until(saga_id, "completed", "compensated")
    await world.until_busy("waiting", "charge_card")

    async def ids(**query: Any) -> list[str]:
        return [line["saga_id"] for line in (await api.get("/api/v1/sagas", params=query)).json()["sagas"]]

    assert await ids(phase="compensated") == ["bad-1"]
    assert await ids(phase="forward,stuck") == ["waiting"]
    assert await ids(step="charge_card") == ["waiting"]
    assert await ids(step="hand_over", code="closed") == ["bad-1"]
    assert await ids(text="depot is closed") == ["bad-1"]
    assert await ids(text="fine-3") == ["fine-3"]
    assert await ids(older_than="1h") == []
    assert len(await ids(younger_than="1h", saga="order", version=1)) == 7
    assert await ids(saga="other") == []
    seen: list[str] = []
    cursor = None
    while True:
        query = {"limit": 3, "order": "oldest", **({"cursor": cursor} if cursor else {})}
        page = (await api.get("/api/v1/sagas", params=query)).json()
        seen += [line["saga_id"] for line in page["sagas"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 7


async def test_the_overview_counts_and_tells_of_the_last_hour(world: World, api: httpx.AsyncClient) -> None:
    await world.start("a")
    await world.start("b", wait=True)
    await world.until("a", "completed")
    await world.until_busy("b", "charge_card")
    overview = (await api.get("/api/v1/overview")).json()
    [order, _] = overview["sagas"]
    assert (order["forward"], order["completed"]) == (1, 1)
    assert order["oldest_ms"] > 0
    assert sum(each["started"] for each in overview["activity"]) == 2
    assert sum(each["completed"] for each in overview["activity"]) == 1
    assert len(overview["activity"]) == 60
    assert {lag["topic"] for lag in overview["lag"]} == {"choreo.order", "choreo.parcel"}


async def test_contracts_are_shown(world: World, api: httpx.AsyncClient) -> None:
    await world.start("a")
    [line, _] = (await api.get("/api/v1/contracts")).json()
    assert line["content_hash"] == ORDER.content_hash
    detail = (await api.get("/api/v1/contracts/order/1")).json()
    assert detail["mermaid"].startswith("flowchart")
    assert [step["name"] for step in detail["steps"]] == [step.name for step in ORDER.steps]
    problem(await api.get("/api/v1/contracts/order/9"), 404, "not-found")
    problem(await api.get("/api/v1/contracts/order/x"), 404, "not-found")


# Steering


async def test_a_running_saga_is_cancelled_with_who_and_why(world: World, api: httpx.AsyncClient) -> None:
    await world.start("a", wait=True)
    await world.until_busy("a", "charge_card")
    response = await api.post("/api/v1/sagas/order/a/cancel", json={"reason": "changed their mind"})
    assert response.status_code == 202, response.text
    world.go_on.set()
    await world.until("a", "compensated")
    records = (await api.get("/api/v1/sagas/order/a/history")).json()["lines"]
    [asked] = [line["record"] for line in records if line["type"] == "cancel_requested"]
    assert (asked["requested_by"], asked["reason"]) == ("loopback", "changed their mind")
    problem(await api.post("/api/v1/sagas/order/a/cancel", json={"reason": "again"}), 409, "conflict")


@pytest.mark.parametrize("act", ["retry", "skip", "resolve"])
async def test_a_stuck_saga_is_freed(world: World, api: httpx.AsyncClient, act: str) -> None:
    await world.start("s", stick="no")
    await world.until("s", "stuck")
    [line] = (await api.get("/api/v1/sagas", params={"phase": "stuck"})).json()["sagas"]
    assert line["busy"] == ["charge_card"]
    assert "the gateway says no" in line["message"]
    path = f"/api/v1/sagas/order/s/{act}"
    problem(await api.post(path, json={"step": "hand_over", "reason": "x"}), 409, "conflict")
    world.broken = False
    assert (await api.post(path, json={"step": "charge_card", "reason": "mended"})).status_code == 202
    await world.until("s", "compensated")


async def test_sagas_are_held_and_let_go_one_by_one_in_bulk_and_by_name(world: World, api: httpx.AsyncClient) -> None:
    for saga_id in ("p-1", "p-2"):
        await world.start(saga_id, wait=True)
        await world.until_busy(saga_id, "charge_card")
    reason = {"reason": "the bank is away"}
    assert (await api.post("/api/v1/sagas/order/p-1/pause", json=reason)).status_code == 202

    async def held() -> list[str]:
        lines = (await api.get("/api/v1/sagas?paused=true")).json()["sagas"]
        return sorted(line["saga_id"] for line in lines)

    async def held_are(*expected: str) -> None:
        async def so() -> bool:
            return await held() == list(expected)

        await until(so, f"{expected} to be held")

    await held_are("p-1")
    problem(await api.post("/api/v1/sagas/order/p-1/pause", json=reason), 409, "conflict")
    problem(await api.post("/api/v1/sagas/order/p-2/resume", json=reason), 409, "conflict")
    for act, expected in (("pause", ("p-1", "p-2")), ("resume", ())):
        preview = (await api.post("/api/v1/bulk", json={"act": act, "filter": {"text": "p-"}})).json()
        assert preview["count"] == (1 if act == "pause" else 2), "only those to whom it can be done"
        body = {**reason, "count": preview["count"], "per_second": 500}
        assert (await api.post(f"/api/v1/bulk/{preview['id']}/confirm", json=body)).status_code == 202
        await held_are(*expected)
    assert (await api.post("/api/v1/types/order/pause", json=reason)).status_code == 202
    world.go_on.set()

    async def all_held() -> bool:
        paused: list[Any] = (await api.get("/api/v1/sagas/order/p-1/explanation")).json()["status"]["paused"]
        return [pause["of"] for pause in paused] == ["type"]

    await until(all_held, "all sagas to be held")
    assert (await api.post("/api/v1/types/order/resume", json=reason)).status_code == 202
    await world.until("p-1", "completed")
    await world.until("p-2", "completed")
    problem(await api.post("/api/v1/types/other/pause", json=reason), 404, "not-found")


async def test_a_saga_that_waits_for_a_signal_gets_it(api: httpx.AsyncClient) -> None:
    started = (await api.post("/api/v1/sagas/parcel", json={"input": {}, "saga_id": "p"})).json()
    said = problem(await api.post(f"{started['status']}/signals", json={"name": "nobody_is_in"}), 400, "invalid-input")
    assert "customer_is_in" in said["detail"]
    body = {"name": "customer_is_in", "payload": {"door": 3}, "id": "bell-1", "reason": "rang"}
    assert (await api.post(f"{started['status']}/signals", json=body)).status_code == 202

    async def delivered() -> bool:
        phase: str = (await api.get(started["status"])).json()["phase"]
        return phase == "completed"

    await until(delivered, "the parcel to be delivered")


async def test_a_saga_begins_later_and_not_at_two_times(world: World, api: httpx.AsyncClient) -> None:
    later = {"input": {}, "saga_id": "later", "after": "1h"}
    assert (await api.post("/api/v1/sagas/order", json=later)).status_code == 201
    assert (await api.get("/api/v1/sagas/order/later")).json()["phase"] == "scheduled"
    await world.until("later", "scheduled")
    assert (await api.post("/api/v1/sagas/order", json=later)).status_code == 200
    assert (await api.post("/api/v1/sagas/order", json={**later, "after": "2h"})).status_code == 409
    assert (await api.get("/api/v1/sagas?phase=scheduled")).json()["sagas"][0]["saga_id"] == "later"
    both = {**later, "not_before": "2099-01-01T00:00:00Z"}
    problem(await api.post("/api/v1/sagas/order", json=both), 400, "invalid-input")
    at = {"input": {}, "not_before": "2099-01-01T00:00:00"}
    problem(await api.post("/api/v1/sagas/order", json=at), 400, "invalid-input")


async def test_many_sagas_are_acted_on_after_a_preview(world: World, api: httpx.AsyncClient) -> None:
    for number in range(4):
        await world.start(f"s-{number}", stick="no", **({"code": "other"} if number == 3 else {}))
    for number in range(4):
        await world.until(f"s-{number}", "stuck")
    wanted = {"act": "retry", "filter": {"saga": "order", "code": "depot_closed"}, "step": "charge_card"}
    preview = (await api.post("/api/v1/bulk", json=wanted)).json()
    assert (preview["count"], preview["state"], preview["done"]) == (3, "preview", 0)
    assert [line["saga_id"] for line in preview["sample"]] == ["s-0", "s-1", "s-2"]
    assert all(line["phase"] == "stuck" for line in (await api.get("/api/v1/sagas")).json()["sagas"]), "nothing is done"
    confirm = f"/api/v1/bulk/{preview['id']}/confirm"
    said = problem(await api.post(confirm, json={"count": 4, "reason": "back"}), 400, "invalid-input")
    assert said["rule"] == "must be 3"
    world.broken = False
    await api.post("/api/v1/sagas/order/s-1/skip", json={"step": "charge_card", "reason": "by hand"})
    await world.until("s-1", "compensated")
    response = await api.post(confirm, json={"count": 3, "reason": "the gateway is back", "per_second": 500})
    assert response.status_code == 202
    problem(await api.post(confirm, json={"count": 3, "reason": "twice"}), 409, "conflict")
    while (shown := (await api.get(f"/api/v1/bulk/{preview['id']}")).json())["state"] == "running":
        await asyncio.sleep(0.01)
    assert (shown["state"], shown["done"], shown["skipped_count"]) == ("done", 2, 1)
    assert shown["skipped"][0]["saga_id"] == "s-1"
    await world.until("s-0", "compensated")
    await world.until("s-2", "compensated")
    await world.until("s-3", "stuck")


async def test_a_bulk_act_can_be_stopped(world: World, api: httpx.AsyncClient) -> None:
    for number in range(3):
        await world.start(f"w-{number}", wait=True)
        await world.until_busy(f"w-{number}", "charge_card")
    preview = (await api.post("/api/v1/bulk", json={"act": "cancel", "filter": {"text": "w-"}})).json()
    assert preview["count"] == 3
    body = {"count": 3, "reason": "no more", "per_second": 0.5}
    await api.post(f"/api/v1/bulk/{preview['id']}/confirm", json=body)
    await asyncio.sleep(0.1)
    assert (await api.delete(f"/api/v1/bulk/{preview['id']}")).json()["state"] == "stopped"
    shown = (await api.get(f"/api/v1/bulk/{preview['id']}")).json()
    assert (shown["state"], shown["done"]) == ("stopped", 1)
    problem(await api.get("/api/v1/bulk/unknown"), 404, "not-found")
    said = await api.post("/api/v1/bulk", json={"act": "cancel", "step": "charge_card", "filter": {}})
    problem(said, 400, "invalid-input")


async def test_a_preview_expires_and_is_for_whom_it_was_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.web.bulk.EXPIRES_MS", -1)
    other = new_token()
    grants = (*GRANTS, Grant(Role.OPERATE, "oleg", digest_of(other)))
    async with client_of(world, *grants, token=OPERATOR) as api:
        preview = (await api.post("/api/v1/bulk", json={"act": "cancel", "filter": {}})).json()
        confirm, body = f"/api/v1/bulk/{preview['id']}/confirm", {"count": 0, "reason": "x"}
        api.headers["authorization"] = f"Bearer {other}"
        assert "olga" in problem(await api.post(confirm, json=body), 409, "conflict")["detail"]
        api.headers["authorization"] = f"Bearer {OPERATOR}"
        assert "too old" in problem(await api.post(confirm, json=body), 409, "conflict")["detail"]


async def test_it_is_told_why_a_saga_is_where_it_is_and_what_a_cancel_would_undo(
    world: World, api: httpx.AsyncClient
) -> None:
    await world.start("a", wait=True)
    await world.until_busy("a", "charge_card")
    explanation = (await api.get("/api/v1/sagas/order/a/explanation")).json()
    assert "charge_card" in explanation["headline"]
    preview = (await api.get("/api/v1/sagas/order/a/cancel-preview")).json()
    assert (preview["verdict"], preview["settles"]) == ("undone", ["charge_card"])
    assert "release_stock" in [each["compensation"] for each in preview["undo"]]


async def test_the_doctor_is_asked(api: httpx.AsyncClient) -> None:
    diagnosis = (await api.get("/api/v1/doctor")).json()
    assert diagnosis["sagas"] == ["order", "parcel"]
    assert diagnosis["checks"] > 5


async def test_dead_letters_are_read_and_written_back(world: World, api: httpx.AsyncClient) -> None:
    assert (await api.get("/api/v1/dead-letters/order")).json() == []
    producer = await world.broker.producer()
    await producer.send("choreo.order", key="broken", value=b"<no> record", headers=(("a", b"\xff"),))
    await producer.close()

    async def buried() -> list[Any]:
        letters: list[Any] = (await api.get("/api/v1/dead-letters/order?saga_id=broken")).json()
        return letters

    await until(buried, "the dead letter")
    [letter] = await buried()
    assert letter["reason"] == "undecodable"
    path = f"/api/v1/dead-letters/order/{quote(letter['id'], safe='')}"
    detail = (await api.get(path)).json()
    assert (detail["text"], detail["value"]) == ("<no> record", "PG5vPiByZWNvcmQ=")
    assert (await api.post(f"{path}/redrive", json={"reason": "try"})).status_code == 202
    problem(await api.post(f"{path}/redrive", json={"reason": "try"}), 409, "conflict")
    assert (await api.post(f"{path}/redrive", json={"reason": "try", "again": True})).status_code == 202
    problem(await api.get("/api/v1/dead-letters/order/0%2F999"), 404, "not-found")
    problem(await api.get("/api/v1/dead-letters/other"), 404, "not-found")


# Problems


@pytest.mark.parametrize(
    ("path", "where", "rule"),
    [
        ("sagas?limit=0", "limit", "Expected `int` >= 1"),
        ("sagas?limit=many", "limit", "Expected `int`"),
        ("sagas?phase=gone", "phase", "must be phases between commas"),
        ("sagas?colour=red", "colour", "must be one of saga, version"),
        ("sagas?saga=order&saga=order", "saga", "must be there once"),
        ("sagas?older_than=long", "older_than", "must be a duration such as 30s"),
        ("sagas?cursor=nonsense", "cursor", "must be `next` of a page"),
        ("sagas?text=a%00b", "text", "must be a line of text"),
        ("sagas?saga=O'Hara", "saga", "matching regex"),
        ("sagas/order/%20", "saga id", "must match"),
    ],
)
async def test_a_problem_names_the_input_and_the_rule(api: httpx.AsyncClient, path: str, where: str, rule: str) -> None:
    said = problem(await api.get(f"/api/v1/{path}"), 400, "invalid-input")
    assert where in said["input"]
    assert rule in said["rule"]


async def test_a_cursor_of_the_other_order_is_refused(world: World, api: httpx.AsyncClient) -> None:
    for saga_id in "abc":
        await world.start(saga_id)
        await world.until(saga_id, "completed")
    page = (await api.get("/api/v1/sagas?limit=1&order=oldest")).json()
    said = problem(await api.get("/api/v1/sagas", params={"cursor": page["next"]}), 400, "invalid-input")
    assert said["rule"] == "must fit `order`"


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "invalid-input", 400),
        (b'{"input": 1, "idd": 2}', "invalid-input", 400),
        (b'{"input": 1, "saga_id": "no spaces"}', "invalid-input", 400),
        (b'{"saga_id": "a"}', "invalid-input", 400),
        (b"[" * 100_000, "invalid-input", 400),
        (b'{"input": "' + b"x" * limits.BODY_BYTES_MAX + b'"}', "too-large", 413),
        (b'{"input": "' + b"x" * 900_000 + b'"}', "value-refused", 413),
    ],
)
async def test_a_body_that_cannot_be_used_is_refused(
    api: httpx.AsyncClient, body: bytes, kind: str, status: int
) -> None:
    response = await api.post("/api/v1/sagas/order", content=body, headers={"content-type": "application/json"})
    problem(response, status, kind)


async def test_what_is_not_there_is_said(api: httpx.AsyncClient) -> None:
    problem(await api.get("/api/v1/sagas/order/nobody"), 404, "not-found")
    problem(await api.get("/api/v1/sagas/order/nobody/history"), 404, "not-found")
    problem(await api.get("/api/v1/sagas/other/nobody"), 404, "not-found")
    problem(await api.post("/api/v1/sagas/other", json={"input": 1}), 404, "not-found")
    problem(await api.get("/api/v1/nothing"), 404, "not-found")
    response = await api.delete("/api/v1/sagas")
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "GET"
    response = await api.post("/api/v1/sagas/order", content=b"input=1")
    problem(response, 415, "media-type")


async def test_a_broker_that_is_away_is_a_503_and_a_defect_a_500_without_details(
    world: World, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise BrokerUnavailable("no broker answers")

    async def defect(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(world.store, "search", away)
    response = await api.get("/api/v1/sagas")
    problem(response, 503, "away")
    assert response.headers["retry-after"] == "2"
    monkeypatch.setattr(world.store, "search", defect)
    assert "secret" not in json.dumps(problem(await api.get("/api/v1/sagas"), 500, "defect"))


async def test_an_answer_that_takes_too_long_is_a_504(
    world: World, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(*_: object) -> None:
        await asyncio.sleep(5)

    monkeypatch.setattr("choreo.web.api.ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(world.store, "counts", slow)
    problem(await api.get("/api/v1/overview"), 504, "too-slow")


# Who may


async def test_tokens_have_roles(world: World) -> None:
    async with client_of(world, *GRANTS) as api:
        response = await api.get("/api/v1/sagas")
        problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == 'Bearer realm="choreo"'
        for header in ("Bearer wrong", "Basic cml0YTp4", "Bearer", f"Bearer {READER}x", "Bearer \xff"):
            response = await api.get("/api/v1/sagas", headers={"authorization": header.encode("latin-1")})
            problem(response, 401, "unauthorized")
        bodies: dict[str, dict[str, Any]] = {
            "/api/v1/sagas/order": {"input": {"wait": True}, "saga_id": "t"},
            "/api/v1/sagas/order/t/cancel": {"reason": "x"},
        }
        expected = {READER: (200, 403, 403), STARTER: (200, 201, 403), OPERATOR: (200, 200, 202)}
        for token, statuses in expected.items():
            headers = {"authorization": f"Bearer {token}"}
            found = [(await api.get("/api/v1/sagas", headers=headers)).status_code]
            for path, body in bodies.items():
                found.append((await api.post(path, json=body, headers=headers)).status_code)
                if found[-1] == 201:
                    await world.until("t", "forward", "completed")
            assert found[:2] == list(statuses[:2])
            assert found[2] == statuses[2] or found[2] == 409  # it may have completed meanwhile
        said = problem(
            await api.post("/api/v1/bulk", json={}, headers={"authorization": f"Bearer {READER}"}), 403, "forbidden"
        )
        assert said["rule"] == "must have the role operate"


async def test_without_tokens_only_this_machine_may_under_its_own_name(world: World) -> None:
    async with client_of(world, peer="192.0.2.7") as api:
        said = problem(await api.get("/api/v1/sagas"), 403, "forbidden")
        assert "--http-tokens" in said["remedy"]
        assert (await api.get("/metrics")).status_code == 200
        assert (await api.get("/healthz")).status_code == 200
        assert (await api.get("/readyz")).json() == {"ready": True}
    async with client_of(world) as api:
        problem(await api.get("/api/v1/sagas", headers={"host": "evil.example:8080"}), 403, "forbidden")
        for host in ("localhost", "localhost:8080", "[::1]:8080", "127.0.0.1"):
            assert (await api.get("/api/v1/sagas", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}]
)
async def test_a_page_of_another_site_changes_nothing(
    world: World, api: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await api.post("/api/v1/sagas/order", json={"input": 1, "saga_id": "x"}, headers=headers)
    problem(response, 403, "forbidden")
    same = {"origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"}
    response = await api.post("/api/v1/sagas/order", json={"input": 1, "saga_id": "y"}, headers=same)
    assert response.status_code == 201


async def test_who_asks_too_often_has_to_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.web.app.REQUESTS_AT_ONCE", 3.0)
    monkeypatch.setattr("choreo.web.app.REQUESTS_A_SECOND", 0.1)
    async with client_of(world, *GRANTS, token=READER) as api:
        statuses = [(await api.get("/api/v1/sagas")).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        response = await api.get("/api/v1/sagas")
        assert 1 <= int(response.headers["retry-after"]) <= 10
        assert (await api.get("/metrics")).status_code == 200
        api.headers["authorization"] = f"Bearer {OPERATOR}"
        assert (await api.get("/api/v1/sagas")).status_code == 200, "others may"


async def test_who_tries_tokens_is_stopped(world: World) -> None:
    async with client_of(world, *GRANTS, token="guess") as api:
        statuses = [(await api.get("/api/v1/sagas")).status_code for _ in range(12)]
        assert statuses == [401] * 10 + [429] * 2
        api.headers["authorization"] = f"Bearer {READER}"
        problem(await api.get("/api/v1/sagas"), 429, "too-many-requests")


async def test_answers_carry_headers_that_keep_pages_of_others_away(api: httpx.AsyncClient) -> None:
    headers = (await api.get("/api/v1/sagas")).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]


def test_grants_are_read_from_a_file_or_from_the_setting_itself(tmp_path: Path) -> None:
    lines = [f"{grant.role.name.lower()} {grant.name} {grant.digest}" for grant in GRANTS]
    assert read_grants(",".join(lines)) == GRANTS
    file = tmp_path / "tokens"
    file.write_text("# who may\n\n" + "\n".join(f"{line}  # a note" for line in lines))
    assert read_grants(str(file)) == read_grants(file.read_text()) == GRANTS
    assert read_grants(None) == read_grants("  ") == ()


@pytest.mark.parametrize("content", ["", "# none", f"admin ann {'a' * 64}", "read ann choreo_secret", "read ann"])
def test_a_file_without_grants_is_refused_without_saying_what_stands_there(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        read_grants(str(file))
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_grants(str(tmp_path / "nowhere"))


# Changes as they happen, over a real connection


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, str, Any]]:
    found: dict[str, str] = {}
    async for line in response.aiter_lines():
        if not line and "event" in found:
            yield found["id"], found["event"], json.loads(found["data"])
            found = {}
        elif ":" in line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            found[name] = value


async def test_changes_are_told_as_they_happen_and_from_where_a_connection_broke(world: World) -> None:
    async with served(world) as url, httpx.AsyncClient(base_url=url, timeout=20) as api:
        async with api.stream("GET", "/api/v1/events?saga_id=mine") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            told = events(stream)
            assert (await anext(told))[1] == "ready"
            await world.start("other")
            await world.start("mine")
            first = await anext(told)
            assert (first[1], first[2]["type"], first[2]["saga_id"]) == ("change", "saga_started", "mine")
            await world.until("mine", "completed")
        async with api.stream("GET", "/api/v1/events?saga_id=mine", headers={"last-event-id": first[0]}) as stream:
            told = events(stream)
            assert (await anext(told))[1] == "ready"
            types = []
            while "saga_completed" not in types:
                types.append((await anext(told))[2]["type"])
            assert types[0] == "step_completed"
        async with api.stream("GET", "/api/v1/events", headers={"last-event-id": "0-7"}) as stream:
            assert (await anext(events(stream)))[1] == "reset"


async def test_who_hears_too_slowly_is_told_to_begin_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "QUEUED_MAX", 3)
    async with application(world) as (_, desk, _):
        told = desk.feed.listen()
        ready = await anext(told)
        assert ready is not None
        for saga_id in "abc":
            await world.start(saga_id)
            await world.until(saga_id, "completed")
        what = [each.what if each else None async for each in told]
        assert what[-1] == "reset"
        assert desk.feed.listeners == 0


async def test_the_server_ends_with_streams_open(world: World) -> None:
    async with httpx.AsyncClient(timeout=20) as api:
        async with served(world) as url:
            request = api.build_request("GET", f"{url}/api/v1/events")
            response = await api.send(request, stream=True)
            told = events(response)
            assert (await anext(told))[1] == "ready"
        assert [each async for each in told] == []
        await response.aclose()


@pytest.mark.parametrize("said", [b"", b"GET /api/v1/sagas HT"])
async def test_who_connects_and_asks_for_nothing_is_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr("choreo.web.server.FIRST_REQUEST_S", 0.1)
    async with served(world) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(said)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_an_id_with_a_slash_is_one_segment_over_a_real_connection(world: World) -> None:
    await world.start("a/b:c/history")
    await world.until("a/b:c/history", "completed")
    async with served(world) as url, httpx.AsyncClient(base_url=url) as api:
        path = f"/api/v1/sagas/order/{quote('a/b:c/history', safe='')}"
        assert (await api.get(path)).json()["saga_id"] == "a/b:c/history"
        assert (await api.get(path + "/history")).status_code == 200
