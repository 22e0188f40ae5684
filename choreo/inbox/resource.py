"""What a handler can ask for by annotation, of the database that its effects are in."""

from __future__ import annotations

import sys
import types
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

Kind = Literal["connection", "session"]


class Resource(NamedTuple):
    """A parameter annotated ``Connection``, ``Session``, ``AsyncConnection`` or ``AsyncSession``."""

    kind: Kind
    is_async: bool

    @property
    def name(self) -> str:
        """The class that the annotation names."""
        return f"{'Async' if self.is_async else ''}{self.kind.capitalize()}"


def resource_of(annotation: Any) -> Resource | None:
    """What an annotation asks for, alone or in a union with ``None``; ``None`` if it is nothing of a database."""
    if sys.modules.get("sqlalchemy") is None:
        return None  # nobody can have named its classes
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    kinds: list[tuple[type, Resource]] = [
        (Session, Resource("session", is_async=False)),
        (Connection, Resource("connection", is_async=False)),
    ]
    if (sqlalchemy_asyncio := sys.modules.get("sqlalchemy.ext.asyncio")) is not None:
        kinds += [
            (sqlalchemy_asyncio.AsyncSession, Resource("session", is_async=True)),
            (sqlalchemy_asyncio.AsyncConnection, Resource("connection", is_async=True)),
        ]
    for member in _members(annotation):
        for kind, resource in kinds:
            if isinstance(member, type) and issubclass(member, kind):
                return resource
    return None


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for member in get_args(annotation) for part in _members(member))
    return (annotation,)
