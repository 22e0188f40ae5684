"""The letters of names, ids and hashes in records: checked when a record is decoded, and cheaply.

A pattern in a struct costs msgspec a microsecond for each text, five times what all the rest of a record takes. So the
types in ``values`` have their patterns for the schemas alone, and what was decoded is looked over here. Names of
sagas and steps are few, and a saga's id and hash come with each of its records: texts that were found good a moment ago
are remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec import inspect

KNOWN_MAX = 4_096

Check = Callable[[Any], None]


def alphabet(pattern: str, *, max_length: int | None = None) -> msgspec.Meta:
    """The bounds of a text that ``checks_of`` holds to a pattern."""
    return msgspec.Meta(max_length=max_length, extra_json_schema={"pattern": pattern})


def check_of(kind: type[msgspec.Struct]) -> Check:
    """What looks over a value of the type: all its texts with an alphabet, in whatever it is made of.

    It raises ``msgspec.ValidationError``, in msgspec's words, where a text has other letters.
    """
    return _of_type(inspect.type_info(kind), "$") or _anything


class _Alphabet:
    def __init__(self, pattern: str) -> None:
        self.known: set[str] = set()
        self._pattern = pattern
        self._matches = re.compile(pattern).match

    def look(self, text: str, place: str) -> None:
        """Look at a text that is not known."""
        if not self._matches(text):
            raise msgspec.ValidationError(f"Expected `str` matching regex {self._pattern!r} - at `{place}`")
        if len(self.known) >= KNOWN_MAX:
            self.known.clear()
        self.known.add(text)


_alphabets: dict[str, _Alphabet] = {}


def _of_type(kind: inspect.Type, place: str) -> Check | None:
    match kind:
        case inspect.Metadata(type=inspect.StrType()) if (letters := _letters(kind)) is not None:
            return _of_text(letters, place)
        case inspect.StructType():
            return _of_struct(kind, place)
        case inspect.DictType(key_type=each) if (letters := _letters(each)) is not None:
            return _of_texts(letters, f"key` in `{place}")
        case inspect.VarTupleType(item_type=each) if (letters := _letters(each)) is not None:
            return _of_texts(letters, f"{place}[...]")
        case inspect.VarTupleType(item_type=each) if (check := _of_type(each, f"{place}[...]")) is not None:
            return _of_each(check)
        case inspect.UnionType(types=types):
            return _of_union([check for each in types if (check := _of_type(each, place)) is not None])
    return None


def _letters(kind: inspect.Type) -> _Alphabet | None:
    match kind:
        case inspect.Metadata(extra_json_schema={"pattern": str() as pattern}):
            return _alphabets.setdefault(pattern, _Alphabet(pattern))
    return None


def _of_text(letters: _Alphabet, place: str) -> Check:
    def check(text: str) -> None:
        if text not in letters.known:
            letters.look(text, place)

    return check


def _of_texts(letters: _Alphabet, place: str) -> Check:
    def check(texts: Iterable[str]) -> None:
        for text in texts:
            if text not in letters.known:
                letters.look(text, place)

    return check


def _of_each(check: Check) -> Check:
    def check_each(values: Iterable[Any]) -> None:
        for value in values:
            check(value)

    return check_each


def _of_union(checks: list[Check]) -> Check | None:
    if not checks:
        return None
    (check,) = checks  # of a struct or a text, and of nothing else

    def check_if_given(value: Any) -> None:
        if value is not None and value is not msgspec.UNSET:
            check(value)

    return check_if_given


def _of_struct(kind: inspect.StructType, place: str) -> Check | None:
    """A line for each field, compiled once for the type: a loop over the fields would take four times as long."""
    scope: dict[str, Any] = {}
    lines: list[str] = []
    for number, field in enumerate(kind.fields):
        check = _of_type(field.type, f"{place}.{field.encode_name}")
        if check is not None:
            scope[f"check_{number}"] = check
            of_texts = field.type.key_type if isinstance(field.type, inspect.DictType) else field.type
            if (letters := _letters(of_texts)) is not None:
                scope[f"known_{number}"] = letters.known
            lines.append(f"    if {_is_new(field, number)}: check_{number}(value.{field.name})")
    if not lines:
        return None
    exec("\n".join(["def check_fields(value):", *lines]), scope)  # noqa: S102 - of our own fields' names alone
    compiled: Check = scope["check_fields"]
    return compiled


def _is_new(field: inspect.Field, number: int) -> str:
    """The expression by which there may be something in a field to be looked at: most are known, or empty."""
    match field.type:
        case inspect.Metadata():
            return f"value.{field.name} not in known_{number}"
        case inspect.DictType(key_type=each) if _letters(each) is not None:
            return f"value.{field.name} and not known_{number}.issuperset(value.{field.name})"
        case inspect.UnionType():
            return f"value.{field.name} is not None"
        case inspect.DictType() | inspect.VarTupleType():
            return f"value.{field.name}"
    return "True"


def _anything(_value: Any) -> None:
    """There is nothing to look at."""
