"""Whether a condition holds, asked of what is in the log. Total: whatever the values are, there is an answer.

A missing value and a comparison of unlike types make a comparison false (and ``!=``, its opposite, true); so they do on
every machine and in either codec. Numbers are compared as numbers, whole or not; ``true`` and ``false`` are none.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from choreo.contract.condition import AllOf, AnyOf, Compare, Condition, Exists, IsIn, Not, Value
from choreo.contract.saga import Saga
from choreo.core.order import context_of
from choreo.core.state import Key, SagaState
from choreo.errors import Undecodable
from choreo.messages.codec import decode_user_value

MISSING: Any = object()

_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def runs(contract: Saga, state: SagaState, key: Key) -> bool:
    """Whether the step runs in that round: it has no condition, or it holds for the context that the step would see."""
    condition = contract[key[0]].when
    if condition is None:
        return True
    encoded = {**context_of(contract, state, key), "": state.lineage(key[1])[0]}
    return holds(condition, encoded, state.content_type)


def holds(condition: Condition, encoded: Mapping[str, bytes], content_type: str) -> bool:
    """Whether the condition holds.

    Args:
        condition: of a valid contract, so not too deep to descend into.
        encoded: the effects by step, and the saga's input under the empty name.
        content_type: what they are written in.
    """
    return _holds(condition, Values(encoded, content_type))


class Values:
    """The values that a condition looks at, each decoded once and only if it is looked at."""

    def __init__(self, encoded: Mapping[str, bytes], content_type: str) -> None:
        self._encoded = encoded
        self._content_type = content_type
        self._decoded: dict[str, Any] = {}

    def at(self, place: Value) -> Any:
        """The value there, or ``MISSING``."""
        found = self._whole(place.step)
        for segment in place.path:
            found = _inside(found, segment)
        return found

    def _whole(self, step: str) -> Any:
        if step not in self._decoded:
            encoded = self._encoded.get(step)
            try:
                value = MISSING if encoded is None else decode_user_value(encoded, Any, content_type=self._content_type)
            except Undecodable:
                value = MISSING
            self._decoded[step] = value
        return self._decoded[step]


def _holds(condition: Condition, values: Values) -> bool:
    match condition:
        case Compare(left=left, op=op, right=right):
            other = values.at(right) if isinstance(right, Value) else right
            return _compare(values.at(left), op, other)
        case IsIn(left=left, values=constants):
            found = values.at(left)
            return any(_equal(found, constant) for constant in constants)
        case Exists(left=left):
            return values.at(left) is not MISSING
        case AllOf(of=several):
            return all(_holds(each, values) for each in several)
        case AnyOf(of=several):
            return any(_holds(each, values) for each in several)
        case Not(of=of):
            return not _holds(of, values)
    raise AssertionError(f"{type(condition).__name__} is no condition")


def _inside(value: Any, segment: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(str(segment), MISSING)
    if isinstance(value, list):
        position = int(segment) if isinstance(segment, int) or (segment.isascii() and segment.isdigit()) else -1
        return value[position] if 0 <= position < len(value) else MISSING
    return MISSING


def _compare(left: Any, op: str, right: Any) -> bool:
    if op in ("==", "!="):
        return _equal(left, right) == (op == "==")
    both_are = _is_number(left) and _is_number(right), isinstance(left, str) and isinstance(right, str)
    return any(both_are) and _ORDER[op](left, right)


def _equal(left: Any, right: Any) -> bool:
    """Whether both are there, of like types, and equal; lists and maps if they are equal all through."""
    if left is MISSING or right is MISSING:
        return False
    if _is_number(left) and _is_number(right):
        return bool(left == right)
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    return bool(left == right)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
