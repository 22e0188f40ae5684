"""How a condition is written: ``Step("gift_wrap", when=when.input("gift"))``.

    from choreo import when

    when.input("amount") > 100
    (when.effect("check_fraud", "score") >= 0.8) | when.input("customer.is_new")
    when.input("country").is_in(["CH", "AT"]) & ~when.effect("book_hotel").exists()

A path is ``"address.country"`` or ``"items.0.sku"``; where a key has a dot in it, a tuple: ``("a.b", "c")``. Without a
path the whole input or effect is meant. A place alone is a condition, too: that its value is ``true``.
"""

from __future__ import annotations

from collections.abc import Iterable

from choreo.contract.condition import (
    AnyCondition,
    Compare,
    Comparison,
    Condition,
    Exists,
    IsIn,
    Scalar,
    Value,
    as_condition,
)
from choreo.errors import DefinitionError

Path = str | tuple[str | int, ...]


class Place:
    """A place in the input or in an effect, to be compared. Made by ``input`` and ``effect``."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Value) -> None:
        self.value = value

    def exists(self) -> Condition:
        """Something is there, be it ``null``."""
        return Exists(self.value)

    def is_in(self, values: Iterable[Scalar]) -> Condition:
        """It equals one of these constants."""
        return IsIn(self.value, tuple(values))

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        return self._compare("==", other)

    def __ne__(self, other: object) -> Condition:  # type: ignore[override]
        return self._compare("!=", other)

    def __lt__(self, other: object) -> Condition:
        return self._compare("<", other)

    def __le__(self, other: object) -> Condition:
        return self._compare("<=", other)

    def __gt__(self, other: object) -> Condition:
        return self._compare(">", other)

    def __ge__(self, other: object) -> Condition:
        return self._compare(">=", other)

    def __and__(self, other: Condition | Place) -> Condition:
        return self.as_condition() & as_condition(other)

    def __or__(self, other: Condition | Place) -> Condition:
        return self.as_condition() | as_condition(other)

    def __invert__(self) -> Condition:
        return ~self.as_condition()

    def __bool__(self) -> bool:
        return bool(self.as_condition())  # which says what to write instead

    def __repr__(self) -> str:
        return f"<{self.value}>"

    def as_condition(self) -> AnyCondition:
        """That its value is ``true``."""
        return Compare(self.value, "==", True)  # noqa: FBT003  # the constant

    def _compare(self, op: Comparison, other: object) -> Condition:
        # What no constant can be is refused with the saga's other problems, when the saga is defined.
        return Compare(self.value, op, other.value if isinstance(other, Place) else other)  # type: ignore[arg-type]


def input(path: Path = ()) -> Place:  # noqa: A001  # read as when.input
    """A place in the saga's input."""
    return Place(Value("", _segments(path)))


def effect(step: str, path: Path = ()) -> Place:
    """A place in what an earlier step returned, or in its substitute. A skipped step has returned nothing."""
    return Place(Value(step, _segments(path)))


def _segments(path: object) -> tuple[str | int, ...]:
    if isinstance(path, str):
        return tuple(path.split("."))
    if isinstance(path, tuple | list):
        return tuple(path)
    raise DefinitionError("condition", (f"path {path!r} is neither a text such as 'address.country' nor a tuple",))
