"""What a release may change in a schema without breaking a reader.

Readers are upgraded before writers, and the log outlives both. So a new schema must take every record that the old
one took, with the same meaning; and what an old reader needs must still be written. Widening is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_SAY_NOTHING = {"$schema", "$id", "$defs", "$comment", "title", "description", "examples", "discriminator"}
_JUDGED = {
    *("$ref", "anyOf", "type", "enum", "const", "pattern", "default", "properties", "required"),
    *("items", "additionalProperties", "propertyNames", *_LOWER_BOUNDS, *_UPPER_BOUNDS),
}
_NEW_TYPE = "or add a record type of its own"


def incompatibilities(old_schema: Schema, new_schema: Schema) -> list[str]:
    """What the change would break, each with a remedy; empty if nothing."""
    return list(_Change(old_schema, new_schema).compare(str(old_schema.get("title", "$")), old_schema, new_schema))


class _Change:
    def __init__(self, old_root: Schema, new_root: Schema) -> None:
        self._old_root = old_root
        self._new_root = new_root
        self._visited: set[tuple[str, str]] = set()

    def compare(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        pair = (str(old.get("$ref")), str(new.get("$ref")))
        if "$ref" in old and "$ref" in new:
            if pair in self._visited:
                return
            self._visited.add(pair)
        old, new = _resolve(self._old_root, old), _resolve(self._new_root, new)
        if "anyOf" in old or "anyOf" in new:
            yield from self._alternatives(where, old, new)
            return
        yield from self._values(where, old, new)
        yield from _bounds(where, old, new)
        yield from self._fields(where, old, new)
        for keyword, place in (("items", "[]"), ("additionalProperties", ".*"), ("propertyNames", " (names)")):
            yield from self._inner(f"{where}{place}", old.get(keyword), new.get(keyword))
        for keyword in sorted((old.keys() | new.keys()) - _JUDGED - _SAY_NOTHING):
            if old.get(keyword) != new.get(keyword):
                yield f"{where}: {keyword!r} has changed, which this check cannot judge. Remedy: keep it, {_NEW_TYPE}"

    def _alternatives(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        before, after = self._by_kind(self._old_root, old), self._by_kind(self._new_root, new)
        for kind, alternative in before.items():
            title = _resolve(self._old_root, alternative).get("title")
            titles = {name: _resolve(self._new_root, other).get("title") for name, other in after.items()}
            successor = next((name for name, other in titles.items() if title and other == title), None)
            if kind in after:
                yield from self.compare(where if title is None else str(title), alternative, after[kind])
            elif "any" in after:
                continue
            elif successor is not None:
                yield _changed_tag(str(title), kind, successor)
            else:
                yield f"{where}: {kind!r} is no longer taken, but stands in logs. Remedy: keep it, even if unused"

    def _by_kind(self, root: Schema, schema: Schema) -> dict[str, Schema]:
        """The alternatives, references unresolved: a schema may contain itself."""
        return {_kind(_resolve(root, alternative)): alternative for alternative in schema.get("anyOf", [schema])}

    def _values(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        lost_types = _types(old) - _types(new)
        if "type" in new and (lost_types or "type" not in old):
            lost = ", ".join(sorted(lost_types)) or "any type"
            yield f"{where}: narrowed from {lost} to {new['type']}. Remedy: take both, or add a field beside it"
        before, after = _allowed(old), _allowed(new)
        if after is not None and (before is None or any(value not in after for value in before)):
            if where.endswith(".type") and before is not None:
                yield _changed_tag(where.removesuffix(".type"), before[0], after[0])
            else:
                lost = "other values" if before is None else ", ".join(repr(v) for v in before if v not in after)
                yield f"{where}: {lost} no longer allowed, but stand in logs. Remedy: keep them, even if unused"
        if "pattern" in new and new["pattern"] != old.get("pattern"):
            yield (
                f"{where}: pattern {new['pattern']} may refuse what {old.get('pattern', 'no pattern')} took. "
                f"Remedy: keep the old one, {_NEW_TYPE}"
            )

    def _fields(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        needed_before, needed_after = set(old.get("required", ())), set(new.get("required", ()))
        for name in before:
            if name in after:
                yield from self.compare(f"{where}.{name}", before[name], after[name])
                if name not in needed_before | needed_after and before[name].get("default") != after[name].get(
                    "default"
                ):
                    yield (
                        f"{where}.{name}: default changed from {before[name].get('default')!r} to "
                        f"{after[name].get('default')!r}; records that leave it out would change their meaning. "
                        "Remedy: keep the default, or add a field beside it"
                    )
            elif name in needed_before:
                yield (
                    f"{where}.{name}: a required field is gone; readers of the old release refuse records without it. "
                    "Remedy: make it optional in one release, remove it in a later one"
                )
        for name in sorted(needed_after - needed_before):
            what = "an optional field is required now" if name in before else "a new field is required"
            yield f"{where}.{name}: {what}; records in logs lack it. Remedy: give it a default"

    def _inner(self, where: str, old: Any, new: Any) -> Iterator[str]:
        """Sub-schemas; absent and ``True`` take anything, ``False`` takes nothing."""
        if old is False or new is None or new is True:
            return
        if new is False:
            yield f"{where}: nothing is taken here any more. Remedy: take what was taken before"
            return
        yield from self.compare(where, old if isinstance(old, Mapping) else {}, new)


def _bounds(where: str, old: Schema, new: Schema) -> Iterator[str]:
    for bound in (*_LOWER_BOUNDS, *_UPPER_BOUNDS):
        if bound not in new:
            continue
        tighter = bound not in old or (new[bound] > old[bound] if bound in _LOWER_BOUNDS else new[bound] < old[bound])
        if tighter:
            yield (
                f"{where}: {bound} narrowed from {old.get(bound, 'none')} to {new[bound]}; logs may hold more. "
                "Remedy: keep the old limit for reading"
            )


def _resolve(root: Schema, schema: Schema) -> Schema:
    while "$ref" in schema:
        reference = schema["$ref"]
        if not reference.startswith("#/$defs/"):
            raise ValueError(f"reference {reference!r} is not to a definition of the same document")
        siblings = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**root["$defs"][reference.removeprefix("#/$defs/")], **siblings}
    return schema


def _kind(schema: Schema) -> str:
    """What tells an alternative from the others: its tag, or its type."""
    tag = _allowed(schema.get("properties", {}).get("type", {}))
    return str(tag[0]) if tag else str(schema.get("type", "any"))


def _types(schema: Schema) -> set[str]:
    names = schema.get("type", ())
    types = {names} if isinstance(names, str) else set(names)
    return types | {"integer"} if "number" in types else types


def _allowed(schema: Schema) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _changed_tag(where: str, old: object, new: object) -> str:
    return f"{where}: tag changed from {old!r} to {new!r}; no reader knows the other. Remedy: keep the tag, {_NEW_TYPE}"
