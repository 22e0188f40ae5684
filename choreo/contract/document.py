"""The contract as JSON: what the topic ``choreo.contracts`` holds, and what the content hash covers."""

from __future__ import annotations

from datetime import timedelta
from hashlib import sha256
from typing import Annotated

import msgspec

from choreo.contract.policy import DURATION_MS_MAX, CompensateOnFailure, OnSiblingFailure
from choreo.contract.saga import Saga, StepSpec
from choreo.errors import Undecodable

Millis = Annotated[int, msgspec.Meta(ge=1, le=DURATION_MS_MAX)]


class ContractDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A contract on the wire: the fields of ``Saga``, durations in milliseconds.

    Attributes:
        name: names the topic ``choreo.<name>``.
        version: another one with every change.
        deadline_ms: from the append of ``SagaStarted``.
        settle_ms: how long a step in flight may still take once the saga is failing.
        grace_ms: how long past its due a step's outcome is waited for.
        compensate_on_failure: policy of the steps that have none of their own.
        steps: in the order in which they run.
        description: for people; not part of the content hash.
        on_sibling_failure: likewise; left out where it is ``settle``, so that older contracts keep their hashes.
    """

    name: str
    version: int
    deadline_ms: Millis
    settle_ms: Millis
    grace_ms: Millis
    compensate_on_failure: CompensateOnFailure
    steps: tuple[StepSpec, ...]
    description: str = ""
    on_sibling_failure: OnSiblingFailure | msgspec.UnsetType = msgspec.UNSET


_decoder = msgspec.json.Decoder(ContractDocument)


def to_json(saga: Saga) -> bytes:
    """The contract's document."""
    return msgspec.json.encode(_document(saga, saga.description))


def from_json(value: bytes) -> Saga:
    """The contract of a document.

    Raises:
        Undecodable: the bytes are no such document.
        DefinitionError: they are, but the contract in it is not valid.
    """
    try:
        document = _decoder.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise Undecodable(f"not a contract document: {error}") from error
    return Saga(
        document.name,
        *document.steps,
        version=document.version,
        deadline=timedelta(milliseconds=document.deadline_ms),
        settle=timedelta(milliseconds=document.settle_ms),
        grace=timedelta(milliseconds=document.grace_ms),
        compensate_on_failure=document.compensate_on_failure,
        on_sibling_failure=document.on_sibling_failure or "settle",
        description=document.description,
    )


def content_hash(saga: Saga) -> str:
    """SHA-256 of the document without its description, 32 hex digits."""
    return sha256(msgspec.json.encode(_document(saga, ""), order="deterministic")).hexdigest()[:32]


def _document(saga: Saga, description: str) -> ContractDocument:
    return ContractDocument(
        name=saga.name,
        version=saga.version,
        deadline_ms=saga.deadline_ms,
        settle_ms=saga.settle_ms,
        grace_ms=saga.grace_ms,
        compensate_on_failure=saga.compensate_on_failure,
        steps=saga.steps,
        description=description,
        on_sibling_failure=msgspec.UNSET if saga.on_sibling_failure == "settle" else saga.on_sibling_failure,
    )
