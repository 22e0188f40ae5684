"""Users' functions, made callable with a context: what each parameter gets is decided once, when it is bound.

The first parameter that is no context gets the saga's input, converted to its annotation (a ``msgspec.Struct``,
dataclass, ``TypedDict``, builtin; without annotation plain builtins). A parameter annotated ``Context`` or
``CompensationContext``, or named ``ctx``, gets the context. One annotated ``Connection``, ``Session``,
``AsyncConnection`` or ``AsyncSession`` (SQLAlchemy's) gets the database, from the service's inbox or from a runner's
transaction. Others must have defaults, and keep them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import msgspec

from choreo.errors import DefinitionError
from choreo.inbox.resource import Resource, resource_of
from choreo.step.call import UnfitInput
from choreo.step.context import BaseContext, CompensationContext, Context
from choreo.step.retried import ALWAYS, Retried
from choreo.step.verdict import InvalidInput


class Wanted(NamedTuple):
    """A parameter in which the handler asks for the database."""

    name: str
    resource: Resource


class Slot(NamedTuple):
    """A parameter that is filled: ``input_type`` is ``None`` where it gets the context."""

    name: str
    keyword_only: bool
    input_type: Any


class Handler:
    """A function that runs a step or undoes one.

    Attributes:
        is_async: whether calling it gives a coroutine; otherwise it may block, and is called in a thread.
        retried: which of its exceptions are.
        resources: parameters that ask for the database, to be filled by keyword.
        unfilled: of these, the names of those that have no default.
    """

    __slots__ = ("_slots", "function", "is_async", "name", "resources", "retried", "unfilled")

    def __init__(
        self, function: Callable[..., Any], context_type: type[BaseContext[Any]], retried: Retried = ALWAYS
    ) -> None:
        """Bind a function.

        Raises:
            DefinitionError: with all problems of the function's signature.
        """
        self.function = function
        self.name = getattr(function, "__qualname__", type(function).__qualname__)
        self.is_async = is_async(function)
        self.retried = retried
        problems: list[str] = []
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            problems.append("it is a generator; return the effect instead of yielding it")
        self._slots, self.resources, self.unfilled = _slots_of(function, context_type, problems)
        if problems:
            raise DefinitionError(f"handler {self.name!r}", tuple(problems))

    def arguments(self, context: BaseContext[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments for a call.

        Raises:
            UnfitInput: the input does not fit the declared type.
        """
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        for name, keyword_only, input_type in self._slots:
            if input_type is None:
                value: Any = context
            else:
                try:
                    value = context.input_as(input_type)
                except InvalidInput as error:
                    raise UnfitInput(str(error)) from error
            if keyword_only:
                keywords[name] = value
            else:
                positional.append(value)
        return positional, keywords


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # an object with an async __call__ is such a function
    )


def _slots_of(
    function: Callable[..., Any], context_type: type[BaseContext[Any]], problems: list[str]
) -> tuple[list[Slot], tuple[Wanted, ...], tuple[str, ...]]:
    slots: list[Slot] = []
    hints = _hints_of(function, problems)
    parameters = _parameters_of(function, problems)
    wanted = tuple(
        Wanted(name, resource) for name, _ in parameters if (resource := resource_of(hints.get(name))) is not None
    )
    asking = {name for name, _ in wanted}
    has_input = False
    skipped: str | None = None  # a parameter that is not filled by its place; what follows it must go by keyword
    for name, parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = hints.get(name, Any)
        by_keyword = parameter.kind is parameter.KEYWORD_ONLY or skipped is not None
        if name in asking:
            skipped, by_keyword = skipped or name, True
        elif _is_context(annotation) or (name == "ctx" and annotation is Any):
            if annotation is not Any and annotation is not context_type:
                problems.append(
                    f"parameter {name!r} is a {annotation.__name__}; here it must be a {context_type.__name__}"
                )
            slots.append(Slot(name, by_keyword, None))
        elif not has_input:
            has_input = True
            problems += _type_problems(name, annotation)
            slots.append(Slot(name, by_keyword, annotation))
        elif parameter.default is not parameter.empty:
            skipped = name
            continue
        else:
            problems.append(
                f"parameter {name!r} cannot be filled: the input goes to an earlier one; "
                f"annotate it {context_type.__name__} or give it a default"
            )
        if by_keyword and parameter.kind is parameter.POSITIONAL_ONLY:
            problems.append(f"parameter {name!r} is positional-only, but {skipped!r} is not filled by its place")
    unfilled = tuple(name for name, parameter in parameters if name in asking and parameter.default is parameter.empty)
    return slots, wanted, unfilled


def _parameters_of(function: Callable[..., Any], problems: list[str]) -> list[tuple[str, inspect.Parameter]]:
    try:
        return list(inspect.signature(function).parameters.items())
    except (TypeError, ValueError) as error:
        problems.append(f"its signature cannot be read ({error}); wrap it in a function")
        return []


def _hints_of(function: Callable[..., Any], problems: list[str]) -> dict[str, Any]:
    target = function
    while hasattr(target, "func"):  # functools.partial
        target = target.func
    if not (inspect.isfunction(target) or inspect.ismethod(target)):
        target = getattr(target, "__call__", target)  # noqa: B004  # annotations of an object stand on its __call__
    try:
        return get_type_hints(target, include_extras=True)
    except Exception as error:  # noqa: BLE001  # annotations are code; whatever they raise is the user's to read
        problems.append(f"its annotations cannot be resolved ({error}); import the types at module level")
        return {}


def _is_context(annotation: Any) -> bool:
    return annotation in (Context, CompensationContext)


def _type_problems(name: str, annotation: Any) -> list[str]:
    try:
        msgspec.json.Decoder(annotation)
        msgspec.msgpack.Decoder(annotation)
        strangers = _strangers(msgspec.inspect.type_info(annotation), set())
    except Exception as error:  # noqa: BLE001  # msgspec resolves the type's own annotations, which are code
        return [f"parameter {name!r}: the input cannot be converted to {annotation!r}: {error}"]
    return [
        f"parameter {name!r}: the input cannot be converted to {stranger.__qualname__!r}; "
        "make it a msgspec.Struct, a dataclass or a TypedDict"
        for stranger in strangers
    ]


def _strangers(info: object, seen: set[int]) -> list[type]:
    """The classes in a type that msgspec can only let through as they are, which no decoded value ever is."""
    if isinstance(info, msgspec.inspect.CustomType):
        return [info.cls]
    if id(info) in seen:
        return []
    seen.add(id(info))
    if isinstance(info, tuple):
        parts: tuple[object, ...] = info
    elif isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field):
        parts = tuple(getattr(info, field) for field in info.__struct_fields__)
    else:
        parts = ()
    return [stranger for part in parts for stranger in _strangers(part, seen)]
