"""Users' functions that are called with an event alone, as a service names them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from choreo.step.handler import is_async


class Callback:
    """A function that is called with one event."""

    __slots__ = ("function", "is_async")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.is_async = is_async(function)

    def arguments(self, event: Any) -> tuple[list[Any], dict[str, Any]]:
        return [event], {}


class Hook(Callback):
    """A function that runs on outcomes.

    Attributes:
        name: one for each service and saga.
        timeout_s: bound of one call.
    """

    __slots__ = ("name", "timeout_s")

    def __init__(self, function: Callable[..., Any], name: str, timeout_s: float) -> None:
        super().__init__(function)
        self.name = name
        self.timeout_s = timeout_s


def problems_of_callback(function: Callable[..., Any], what: str) -> list[str]:
    """What keeps a function from being called with an event alone."""
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        return [f"it must be callable with {what} alone: {error}"]
    except ValueError:
        pass  # a builtin that does not tell its signature
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return ["it is a generator, which a call would not run"]
    return []
