"""The contract as JSON: what the topic ``choreo.contracts`` holds, and what the content hash covers."""

from __future__ import annotations

from hashlib import sha256

import msgspec

from choreo.contract.policy import CompensateOnFailure
from choreo.contract.saga import Saga, StepSpec
from choreo.errors import Undecodable


class ContractDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A contract on the wire: the fields of ``Saga``, durations in milliseconds."""

    name: str
    version: int
    deadline_ms: int
    settle_ms: int
    grace_ms: int
    compensate_on_failure: CompensateOnFailure
    steps: tuple[StepSpec, ...]
    description: str = ""


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
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Undecodable(f"not a contract document: {error}") from error
    return Saga(
        document.name,
        *document.steps,
        version=document.version,
        deadline=document.deadline_ms / 1_000,
        settle=document.settle_ms / 1_000,
        grace=document.grace_ms / 1_000,
        compensate_on_failure=document.compensate_on_failure,
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
    )
