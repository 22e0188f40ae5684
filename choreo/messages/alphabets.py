"""The letters of names, ids and hashes in records: checked when a record is decoded, and cheaply.

A pattern in a struct costs msgspec a microsecond for each text, five times what all the rest of a record takes. So the
types in ``values`` have their patterns for the schemas alone, and what was decoded is looked over here. Names of
sagas and steps are few, and a saga's id and hash come with each of its records: texts that were found good a moment ago
are remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from operator import attrgetter, contains
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
        if not letters.known.issuperset(texts):
            for text in texts:
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
    texts: list[tuple[str, _Alphabet, str]] = []
    others: list[tuple[Callable[[Any], Any], Check]] = []
    for field in kind.fields:
        at = f"{place}.{field.encode_name}"
        if (letters := _letters(field.type)) is not None:
            texts.append((field.name, letters, at))
        elif (check := _of_type(field.type, at)) is not None:
            others.append((attrgetter(field.name), check))
    if not texts and not others:
        return None
    names = [name for name, _, _ in texts]
    get: Callable[[Any], Iterable[str]]
    get = attrgetter(*names) if len(names) > 1 else lambda value: [getattr(value, name) for name in names]
    known = [letters.known for _, letters, _ in texts]

    def check_fields(value: Any) -> None:
        if not all(map(contains, known, get(value))):
            for name, letters, at in texts:
                letters.look(getattr(value, name), at)
        for get_other, check in others:
            check(get_other(value))

    return check_fields


def _anything(_value: Any) -> None:
    """There is nothing to look at."""
