"""Documents about the wire: JSON Schema of every record and of the contract, AsyncAPI of a saga.

They are made from the structs themselves, field descriptions from the docstrings included, and checked in under
``schemas/``. What may change between releases says ``incompatibilities``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from choreo import ids
from choreo.contract import Retries, Saga
from choreo.contract.child import Child
from choreo.contract.condition import CONDITION_TYPES, Value
from choreo.contract.document import ContractDocument
from choreo.contract.saga import StepSpec
from choreo.messages.codec import encode
from choreo.messages.compatibility import incompatibilities
from choreo.messages.examples import examples
from choreo.messages.family import Parent
from choreo.messages.headers import CE_TYPE, CONTENT_TYPES, JSON, VERSION, make_headers
from choreo.messages.records import (
    RECORD_TYPES,
    AnyRecord,
    CancelRefused,
    Compensate,
    CompensationFailed,
    Execute,
    Failure,
    Record,
    SagaCompensated,
    SagaCompleted,
    SagaStarted,
    SagaStuck,
    StartRefused,
    StepCompensated,
    StepCompleted,
    StepFailed,
    Undone,
)
from choreo.messages.writers import SAGA_LOG_FAILS, WRITERS, Writer

__all__ = ["asyncapi", "incompatibilities", "json_schemas"]

Document = dict[str, Any]

_PARTS: tuple[type[msgspec.Struct], ...] = (
    Failure,
    Undone,
    ContractDocument,
    StepSpec,
    Retries,
    Value,
    Child,
    Parent,
    *CONDITION_TYPES,
)
_STRUCTS: dict[str, type[msgspec.Struct]] = {kind.__name__: kind for kind in (*RECORD_TYPES, *_PARTS)}
_CLIENT_SENDS = tuple(kind for kind in RECORD_TYPES if WRITERS[kind] is Writer.CLIENT)
_CLIENT_AWAITS = (SagaCompleted, SagaCompensated, SagaStuck, StartRefused, CancelRefused)
_SAGA_LOG_SENDS = tuple(
    kind for kind in RECORD_TYPES if WRITERS[kind] in (Writer.SAGA_LOG, Writer.PARENT) or kind in SAGA_LOG_FAILS
)


def json_schemas() -> dict[str, Document]:
    """JSON Schemas (2020-12) by name: one for each record's tag, ``record`` for any of them, and ``contract``."""
    kinds: dict[str, Any] = {str(kind.__struct_config__.tag): kind for kind in RECORD_TYPES}
    documents = {name: _document(name, kind) for name, kind in (kinds | {"contract": ContractDocument}).items()}
    union = {"title": "Record", "description": "Any record of a saga's topic; ``type`` says which."}
    documents["record"] = _document("record", AnyRecord) | union
    return documents


def asyncapi(saga: Saga) -> Document:
    """The AsyncAPI 3.1.0 document of a saga: its topics, and who writes and reads what."""
    return {
        "asyncapi": "3.1.0",
        "id": f"urn:choreo:saga:{saga.name}",
        "info": {
            "title": f"Saga {saga.name}",
            "version": str(saga.version),
            "description": saga.description or f"The events and commands of the saga {saga.name!r}.",
        },
        "defaultContentType": JSON,
        "channels": _channels(saga),
        "operations": _operations(saga),
        "components": {
            "messages": _messages(saga),
            "messageTraits": {"cloudEvents": {"headers": _cloud_event_headers()}},
            "schemas": _components(),
        },
        "x-choreo-saga": {
            "name": saga.name,
            "version": saga.version,
            "content-hash": saga.content_hash,
            "steps": [
                {"name": step.name, "after": list(step.after), "compensation": step.compensation} for step in saga.steps
            ],
        },
    }


def _document(name: str, kind: Any) -> Document:
    schema = msgspec.json.schema(kind)
    definitions = {title: _described(title, body) for title, body in schema.pop("$defs").items()}
    body = definitions.pop(schema.pop("$ref").rpartition("/")[2]) if "$ref" in schema else schema
    body.pop("discriminator", None)  # OpenAPI's word, not JSON Schema's; ``const`` of each ``type`` says the same
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:choreo:schema:{name}:v1"}
    return head | body | ({"$defs": definitions} if definitions else {})


def _components() -> Document:
    _, components = msgspec.json.schema_components(
        [AnyRecord, ContractDocument], ref_template="#/components/schemas/{name}"
    )
    return {title: _described(title, body) for title, body in components.items()}


def _described(title: str, body: Mapping[str, Any]) -> Document:
    """A struct's schema with each field's own description in place of the docstring's list of all."""
    kind = _STRUCTS[title]
    about = _field_descriptions(kind)
    schema: Document = _portable(body)
    schema["description"] = _summary(kind)
    for name, field in schema["properties"].items():
        if name in about:
            field["description"] = about[name]
    if (tag := kind.__struct_config__.tag) is not None:
        what = "record" if issubclass(kind, Record) else "condition"
        schema["properties"]["type"] = {"const": tag, "description": f"Which {what} this is."}
    return schema


def _portable(schema: Any) -> Any:
    r"""The schema without Python's ``\Z``, which elsewhere is written ``$``."""
    if isinstance(schema, Mapping):
        portable = {key: _portable(value) for key, value in schema.items() if key != "pattern"}
        if "pattern" in schema:  # at the end, wherever it is said
            pattern = schema["pattern"]
            portable["pattern"] = pattern.replace(r"\Z", "$") if isinstance(pattern, str) else _portable(pattern)
        return portable
    return [_portable(item) for item in schema] if isinstance(schema, list) else schema


def _summary(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")[0].strip()


def _field_descriptions(kind: type) -> dict[str, str]:
    about: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        names: list[str] = []
        attributes = inspect.cleandoc(owner.__dict__.get("__doc__") or "").partition("\nAttributes:\n")[2]
        for line in attributes.splitlines():
            if field := re.fullmatch(r" {4}(\w+(?:, \w+)*): (.*)", line):
                names = field[1].split(", ")
                about |= dict.fromkeys(names, field[2])
            elif names:
                about |= {name: f"{about[name]} {line.strip()}" for name in names}
    return about


def _channels(saga: Saga) -> Document:
    def kafka(cleanup: str) -> Document:
        return {"kafka": {"topicConfiguration": {"cleanup.policy": [cleanup]}, "bindingVersion": "0.5.0"}}

    return {
        "saga": {
            "address": f"choreo.{saga.name}",
            "description": "All records of all sagas of this name, keyed by saga id, hence in one order for each saga. "
            "message.timestamp.type is LogAppendTime.",
            "messages": {kind.__name__: {"$ref": f"#/components/messages/{kind.__name__}"} for kind in RECORD_TYPES},
            "bindings": kafka("delete"),
        },
        "deadLetters": {
            "address": f"choreo.{saga.name}.dead-letters",
            "description": "What could not be read, in its original bytes, with the reason in the headers.",
            "messages": {"DeadLetter": {"$ref": "#/components/messages/DeadLetter"}},
            "bindings": kafka("delete"),
        },
        "contracts": {
            "address": "choreo.contracts",
            "description": "Every version of every contract.",
            "messages": {"ContractDocument": {"$ref": "#/components/messages/ContractDocument"}},
            "bindings": kafka("compact"),
        },
    }


def _operations(saga: Saga) -> Document:
    chained = {other for others in saga.graph.chained.values() for other in others}
    operations: Document = {}
    for step in saga.steps:
        first = [SagaStarted] if step.name in saga.graph.roots else [StepCompleted] if step.name in chained else []
        about: Document = {
            "x-choreo-step": step.name,
            "x-choreo-after": list(step.after),
            "x-choreo-timeout-ms": step.timeout_ms,
        }
        waits = f"after {', '.join(step.after)}" if step.after else "when the saga starts"
        operations[f"{step.name}.run"] = _operation("receive", f"Runs {step.name} {waits}.", *first, Execute, **about)
        operations[f"{step.name}.answer"] = _operation(
            "send", f"Says how {step.name} ended.", StepCompleted, StepFailed, **about
        )
        if step.compensation is not None:
            back: Document = {"x-choreo-step": step.name, "x-choreo-compensates": step.compensation}
            operations[f"{step.name}.compensate"] = _operation(
                "receive", f"Undoes {step.name} by {step.compensation}.", Compensate, **back
            )
            operations[f"{step.name}.compensate.answer"] = _operation(
                "send", f"Says how {step.compensation} ended.", StepCompensated, CompensationFailed, **back
            )
    operations["saga-log.fold"] = _operation("receive", "Folds all records into each saga's state.", *RECORD_TYPES)
    operations["saga-log.decide"] = _operation("send", "Commands, decisions and outcomes.", *_SAGA_LOG_SENDS)
    operations["client.ask"] = _operation(
        "send", "Starts, cancels, signals; an operator pauses, resumes, acts.", *_CLIENT_SENDS
    )
    operations["client.await"] = _operation("receive", "Waits for the answer.", *_CLIENT_AWAITS)
    return operations


def _operation(action: str, summary: str, *kinds: type[Record], **extensions: Any) -> Document:
    return {
        "action": action,
        "summary": summary,
        "channel": {"$ref": "#/channels/saga"},
        "messages": [{"$ref": f"#/channels/saga/messages/{kind.__name__}"} for kind in kinds],
        **extensions,
    }


def _messages(saga: Saga) -> Document:
    samples = examples(saga)
    return {
        **{kind.__name__: _message(samples[kind]) for kind in RECORD_TYPES},
        "DeadLetter": {
            "name": "choreo.dead_letter",
            "title": "DeadLetter",
            "summary": "A record as it was found, with the reason why it could not be read.",
            "payload": {"description": "Any bytes."},
        },
        "ContractDocument": {
            "name": "choreo.contract",
            "title": "ContractDocument",
            "summary": "A version of a contract.",
            "contentType": JSON,
            "payload": {"$ref": "#/components/schemas/ContractDocument"},
        },
    }


def _message(sample: Record) -> Document:
    kind = type(sample)
    headers = make_headers(sample, source=f"/choreo/{sample.saga}", content_type=JSON)
    return {
        "name": CE_TYPE[kind].decode(),
        "title": kind.__name__,
        "summary": _summary(kind),
        "contentType": JSON,
        "traits": [{"$ref": "#/components/messageTraits/cloudEvents"}],
        "headers": {"type": "object", "properties": {"ce_type": {"const": CE_TYPE[kind].decode()}}},
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
        "correlationId": {"description": "The saga id.", "location": "$message.payload#/saga_id"},
        "bindings": {
            "kafka": {
                "key": _portable({"type": "string", "description": "The saga id.", "pattern": ids.SAGA_ID_PATTERN}),
                "bindingVersion": "0.5.0",
            }
        },
        "examples": [
            {
                "name": str(kind.__struct_config__.tag),
                "headers": {name: text.decode() for name, text in headers},
                "payload": msgspec.json.decode(encode(sample)),
            }
        ],
    }


def _cloud_event_headers() -> Document:
    text = {"type": "string", "minLength": 1}
    return {
        "type": "object",
        "description": "CloudEvents 1.0, Kafka protocol binding, binary mode.",
        "required": ["ce_specversion", "ce_id", "ce_type", "ce_source", "ce_subject", "content-type", "choreo_start"],
        "properties": {
            "ce_specversion": {"const": "1.0"},
            "ce_id": text | {"description": "Derived from what the record says: equal ids, the same thing said again."},
            "ce_type": text | {"description": "The record's type and the version of its schema."},
            "ce_source": text | {"description": "The service that wrote the record."},
            "ce_subject": text | {"description": "Saga, saga id and step."},
            "content-type": {"enum": list(CONTENT_TYPES)},
            "choreo_start": text | {"description": "As ``start`` in the record."},
            VERSION: {
                "type": "string",
                "pattern": "^[0-9]+$",
                "description": "As ``version`` in the record. Records of releases before it lack it.",
            },
            "choreo_step": text | {"description": "As ``step`` in the record, of records about a step."},
            "choreo_round": {"type": "string", "pattern": "^[0-9]+$", "description": "As ``round`` in the record."},
            "choreo_generation": {
                "type": "string",
                "pattern": "^[0-9]+$",
                "description": "As ``generation`` in the record.",
            },
            "traceparent": text | {"description": "W3C Trace Context of what caused the record."},
        },
    }
