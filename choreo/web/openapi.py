"""The OpenAPI 3.1 document, made of the table of operations and of the types that they take and give."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from choreo import ids
from choreo.web.operations import OPERATIONS, ROOT, Operation
from choreo.web.problem import PROBLEM_TYPE, Problem

_REFS = "#/components/schemas/{name}"

_PARAMETERS: dict[str, dict[str, Any]] = {
    "saga": {
        "description": "The name of the saga's contract.",
        "schema": {"type": "string", "pattern": ids.SAGA_NAME_PATTERN},
    },
    "saga_id": {
        "description": "The saga's id; a slash in it is written %2F.",
        "schema": {"type": "string", "pattern": ids.SAGA_ID_PATTERN, "maxLength": 200},
    },
    "version": {"description": "The contract's version.", "schema": {"type": "integer", "minimum": 1}},
    "letter": {
        "description": "The dead letter's id, partition/offset of the original; the slash is written %2F.",
        "schema": {"type": "string"},
    },
    "bulk_id": {"description": "The id in the preview.", "schema": {"type": "string"}},
}

_PROBLEMS = {
    400: "A part of the request breaks a rule.",
    401: "No token, or one that is not known.",
    403: "The token's role does not allow it; or another site's page has asked; or there are no tokens and the peer is "
    "another machine.",
    404: "There is no such thing (any more).",
    409: "The saga is elsewhere by now.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too many requests from this caller.",
    500: "The request has failed; the saga-log's own log says why.",
    503: "The broker or the store is away, or the saga-log has too much to do.",
    504: "No answer in time.",
}
_ALWAYS = (400, 401, 403, 429, 500, 503, 504)


def document() -> dict[str, Any]:
    """The document, ready to be encoded."""
    kinds = [kind for each in OPERATIONS for kind in (each.body, each.answer) if kind is not None]
    queries = [each.query for each in OPERATIONS if each.query is not None]
    schemas, components = msgspec.json.schema_components([*kinds, Problem, *queries], ref_template=_REFS)
    of_kind = {id(kind): schema for kind, schema in zip([*kinds, Problem, *queries], schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        path = paths.setdefault(ROOT + operation.path, {})
        path[operation.method.lower()] = _operation(operation, of_kind, components)
    for query in queries:
        components.pop(query.__name__, None)
    found: dict[str, Any] = _portable(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "choreo saga-log",
                "version": _version(),
                "summary": "Start, see and steer sagas.",
                "description": "Times are milliseconds since the Unix epoch by the broker's clock, 0 for not yet. "
                "Problems are those of RFC 9457. Fields may be added to answers; unknown ones in requests are refused.",
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": "/"}],
            "security": [{"token": []}, {"session": []}],
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "token": {"type": "http", "scheme": "bearer", "description": "See docs/http-api.md."},
                    "session": {
                        "type": "apiKey",
                        "in": "cookie",
                        "name": "choreo_session",
                        "description": "Of the dashboard; for requests that change nothing.",
                    },
                },
            },
        }
    )
    return found


def _operation(operation: Operation, of_kind: dict[int, Any], components: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": f"Needs the role `{operation.role.name.lower()}`.",
        "responses": _responses(operation, of_kind),
    }
    parameters = [
        {"name": name, "in": "path", "required": True, **_PARAMETERS[name]}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    if operation.query is not None:
        for name, schema in components[operation.query.__name__]["properties"].items():
            text = _about(operation.query).get(name, "")
            parameters.append({"name": name, "in": "query", "description": text, "schema": schema})
    if operation.stream:
        parameters.append(
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "The id of the last event that was heard, to go on behind it.",
                "schema": {"type": "string"},
            }
        )
    if parameters:
        found["parameters"] = parameters
    if operation.body is not None:
        content = {"application/json": {"schema": of_kind[id(operation.body)]}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _responses(operation: Operation, of_kind: dict[int, Any]) -> dict[str, Any]:
    if operation.stream:
        content: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": of_kind[id(operation.answer)]}}
    done = {
        str(int(status)): {"description": status.phrase, "content": content}
        for status in (operation.status, *operation.others)
    }
    statuses = {*_ALWAYS, *map(int, operation.errors), *((413, 415) if operation.body is not None else ())}
    problem = {PROBLEM_TYPE: {"schema": of_kind[id(Problem)]}}
    return done | {str(status): {"description": _PROBLEMS[status], "content": problem} for status in sorted(statuses)}


def _about(kind: type) -> dict[str, str]:
    """What a type's docstring says of its attributes, by name."""
    _, _, text = (kind.__doc__ or "").partition("Attributes:")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        match = re.match(r"(\w+): (.*)", line)
        if match is not None:
            name = match[1]
            found[name] = match[2]
        elif name:
            found[name] += f" {line}"
    return found


def _portable(value: Any) -> Any:
    """Patterns as ECMAScript has them, where ``$`` is the very end."""
    match value:
        case dict():
            return {
                key: each.replace("\\Z", "$") if key == "pattern" and isinstance(each, str) else _portable(each)
                for key, each in value.items()
            }
        case list() | tuple():
            return [_portable(each) for each in value]
    return value


def _version() -> str:
    try:
        return version("choreo-sagas")
    except PackageNotFoundError:
        return "0"
