"""A step that is a saga of its own: which one, and what it is started with.

The contract of the parent refers to the child's by name, version and content hash; it does not contain it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from choreo.contract.condition import Scalar, Value
from choreo.contract.when import Place

if TYPE_CHECKING:
    from choreo.contract.saga import Saga

ChildInput = Value | tuple[tuple[str, Scalar | Value], ...]
"""One place, or the fields of a map: each a name, and a place or a constant."""


class Child(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The saga that a step is.

    Attributes:
        saga: the name of its contract.
        version: of its contract.
        contract_hash: content hash of its contract.
        deadline_ms: its own deadline; the step's and the parent's bound it, too.
        input: what it is started with: places in the parent's context, a missing one being ``null``; ``None`` for the
            parent's input.
    """

    saga: str
    version: int
    contract_hash: str
    deadline_ms: int
    input: ChildInput | None = None


def child_of(saga: Saga, made_from: Place | Mapping[str, Any] | None) -> Child:
    """The reference to a contract."""
    return Child(
        saga=saga.name,
        version=saga.version,
        contract_hash=saga.content_hash,
        deadline_ms=saga.deadline_ms,
        input=_input(made_from),
    )


def _input(made_from: Place | Mapping[str, Any] | None) -> ChildInput | None:
    if made_from is None:
        return None
    if isinstance(made_from, Place):
        return made_from.value
    return tuple((str(name), each.value if isinstance(each, Place) else each) for name, each in made_from.items())
