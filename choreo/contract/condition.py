"""When a step runs, as data: a condition on the saga's input and on the effects of earlier steps.

Data, because everybody who reads the log has to come to the same answer: the saga-log, its successor, an audit years
later. ``when`` builds conditions, ``core.condition`` evaluates them, here is what they are and how they read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from choreo.errors import DefinitionError

Scalar = None | bool | int | float | str
Comparison = Literal["==", "!=", "<", "<=", ">", ">="]

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")


class Value(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place in the saga's input, or in the effect of an earlier step.

    Attributes:
        step: whose effect; empty for the saga's input.
        path: keys and list positions from the outside in; empty for the whole. A number, or a text of digits, is a
            position where a list is found.
    """

    step: str = ""
    path: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        return (self.step or "input") + "".join(map(_segment_text, self.path))


class Condition(msgspec.Struct, frozen=True, eq=False, tag_field="type"):
    """What all conditions have. They are combined by ``&``, ``|`` and ``~``, and equal if their documents are."""

    def __and__(self, other: Condition) -> Condition:
        return AllOf(_flat(AllOf, self, other))

    def __or__(self, other: Condition) -> Condition:
        return AnyOf(_flat(AnyOf, self, other))

    def __invert__(self) -> Condition:
        return Not(as_condition(self))

    def __bool__(self) -> bool:
        raise DefinitionError(
            "condition",
            (
                (
                    "Python's 'and', 'or', 'not' and 'a < b < c' keep only a part of it; "
                    "combine conditions by '&', '|' and '~', with each comparison in brackets"
                ),
            ),
        )

    def __eq__(self, other: object) -> bool:
        # By the document: for Python 1, 1.0 and True are equal, for a condition and a content hash they are not.
        return type(other) is type(self) and msgspec.json.encode(self) == msgspec.json.encode(other)

    def __hash__(self) -> int:
        return hash(msgspec.json.encode(self))


class Compare(Condition, frozen=True, eq=False, tag="compare"):
    """Two values compared.

    Attributes:
        left: what is looked at.
        op: ``!=`` is true wherever ``==`` is not. All others are false where a value is missing, and between values of
            unlike types. Numbers are ordered by size, texts by code points; anything else has no order. ``true`` and
            ``false`` are no numbers.
        right: a constant, or another place.
    """

    left: Value
    op: Comparison
    right: Scalar | Value


class IsIn(Condition, frozen=True, eq=False, tag="is_in"):
    """A value equals one of these constants.

    Attributes:
        left: what is looked at.
        values: the constants.
    """

    left: Value
    values: tuple[Scalar, ...]


class Exists(Condition, frozen=True, eq=False, tag="exists"):
    """A value is there, be it ``null``. What a skipped step would have returned is not.

    Attributes:
        left: what is looked at.
    """

    left: Value


class AllOf(Condition, frozen=True, eq=False, tag="all"):
    """Each of these holds.

    Attributes:
        of: the conditions.
    """

    of: tuple[AnyCondition, ...]


class AnyOf(Condition, frozen=True, eq=False, tag="any"):
    """One of these holds.

    Attributes:
        of: the conditions.
    """

    of: tuple[AnyCondition, ...]


class Not(Condition, frozen=True, eq=False, tag="not"):
    """This does not hold.

    Attributes:
        of: the condition.
    """

    of: AnyCondition


AnyCondition = Compare | IsIn | Exists | AllOf | AnyOf | Not
"""The closed set of conditions."""

CONDITION_TYPES: tuple[type[Condition], ...] = AnyCondition.__args__


def parts(condition: Condition) -> Iterator[tuple[Condition, int]]:
    """The condition and all in it, each with its depth from 1 on. Without recursion: it may come from the wire."""
    todo: list[tuple[Condition, int]] = [(condition, 1)]
    while todo:
        part, depth = todo.pop()
        yield part, depth
        if isinstance(part, Not):
            todo.append((part.of, depth + 1))
        elif isinstance(part, AllOf | AnyOf):
            todo.extend((each, depth + 1) for each in reversed(part.of))


def text(condition: Condition) -> str:
    """The condition in one line of printable ASCII letters: ``input.amount > 100 and check.trusted is missing``."""
    match condition:
        case Compare(left=left, op=op, right=right):
            return f"{left} {op} {right if isinstance(right, Value) else _constant_text(right)}"
        case IsIn(left=left, values=values):
            return f"{left} in [{', '.join(map(_constant_text, values))}]"
        case Exists(left=left):
            return f"{left} exists"
        case Not(of=Exists(left=left)):
            return f"{left} is missing"
        case Not(of=of):
            return f"not ({text(of)})"
        case AllOf(of=several):
            return " and ".join(f"({text(each)})" if isinstance(each, AnyOf) else text(each) for each in several)
        case AnyOf(of=several):
            return " or ".join(f"({text(each)})" if isinstance(each, AllOf) else text(each) for each in several)
    raise AssertionError(f"no text for {type(condition).__name__}")


def _flat(kind: type[AllOf] | type[AnyOf], *conditions: Condition) -> tuple[AnyCondition, ...]:
    flat: list[AnyCondition] = []
    for each in conditions:
        condition = as_condition(each)
        flat.extend(condition.of if isinstance(condition, kind) else (condition,))
    return tuple(flat)


def as_condition(value: object) -> AnyCondition:
    """The condition that a person means: a place alone means that it is ``true``.

    Raises:
        DefinitionError: it is no condition.
    """
    made = getattr(value, "as_condition", None)
    found = made() if made is not None else value
    if isinstance(found, AnyCondition):
        return found
    raise DefinitionError(
        "condition",
        (
            (
                f"{value!r} is no condition; write one as data, such as when.input('amount') > 100, "
                "because everybody who reads the log has to evaluate it"
            ),
        ),
    )


def _segment_text(segment: str | int) -> str:
    if isinstance(segment, str) and _PLAIN_KEY.match(segment):
        return f".{segment}"
    return f"[{_constant_text(segment)}]"


def _constant_text(value: Scalar) -> str:
    return json.dumps(value)  # ASCII alone: contracts come over the wire and are shown on terminals
