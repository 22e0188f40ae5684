"""An exception of a service, rebuilt from its name: what ``SagaFailed`` was raised from.

The name comes over the wire, so it decides as little as possible. Nothing is imported that the caller has not named, no
attribute is asked for that would run code, and no constructor of a user's runs: the object is made by the exception's
builtin base alone. It has the class and the message, so ``except`` and ``isinstance`` work on it; attributes that its
own constructor would have set are not there.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from importlib import import_module
from types import ModuleType
from typing import Any

from choreo.messages.records import Failure


def remote_exception(failure: Failure, modules: Collection[str] = ()) -> Exception | None:
    """The exception that a failure tells of; ``None`` where it tells of none, or the class cannot be had here.

    Args:
        modules: names of modules that may be imported for it; all others must have been imported already.
    """
    name = failure.exception_type or ""
    kind = next((found for at in _dots(name) if (found := _class(name[:at], name[at + 1 :], modules))), None)
    if kind is None:
        return None
    builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    try:
        error: Exception = builtin.__new__(kind, failure.message)
    except Exception:  # noqa: BLE001  # a group, for one, cannot be made of a text
        return None
    if failure.traceback:
        error.add_note(f"Traceback in the service:\n{failure.traceback}")
    return error


def _dots(name: str) -> list[int]:
    """Where the module's name may end, the longest first."""
    return [at for at in range(len(name) - 1, 0, -1) if name[at] == "."]


def _class(module_name: str, path: str, modules: Collection[str]) -> type[Exception] | None:
    found: object = sys.modules.get(module_name)
    if found is None and module_name in modules:
        try:
            found = import_module(module_name)
        except Exception:  # noqa: BLE001  # whatever is wrong with it, the saga's failure is the news
            return None
    if not isinstance(found, ModuleType):
        return None
    for part in path.split("."):
        # Not getattr: a module's __getattr__ or a descriptor would run.
        found = vars(found).get(part) if isinstance(found, (ModuleType, type)) else None
    return found if isinstance(found, type) and issubclass(found, Exception) else None
