"""``MODULE:NAME`` on the command line, and sagas by their name alone."""

from __future__ import annotations

import importlib
from typing import TypeVar

from choreo.broker.port import Broker
from choreo.broker.registry import Registry
from choreo.contract.saga import Saga
from choreo.errors import ConfigurationError

T = TypeVar("T")


def load(spec: str, kind: type[T]) -> T:
    """The object that ``MODULE:NAME`` names.

    Raises:
        ConfigurationError: no such module or name, or it is something else.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise ConfigurationError(f"{spec!r} must be MODULE:NAME, as in services.order:ORDER")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not module_name.startswith(error.name):
            raise ConfigurationError(
                f"{spec!r}: module {module_name!r} needs {error.name!r}, which is missing"
            ) from error
        raise ConfigurationError(
            f"{spec!r}: there is no module {module_name!r}; run choreo from the directory that holds it, or install it"
        ) from error
    try:
        found = getattr(module, name)
    except AttributeError:
        usable = sorted(key for key, value in vars(module).items() if isinstance(value, kind))
        hint = f"; it has {', '.join(usable)}" if usable else ""
        raise ConfigurationError(f"{spec!r}: module {module_name!r} has no {name!r}{hint}") from None
    if not isinstance(found, kind):
        raise ConfigurationError(f"{spec!r} is a {type(found).__name__}; a {kind.__name__} is needed")
    return found


async def find_saga(broker: Broker, spec: str) -> Saga:
    """A contract by ``MODULE:NAME``, or the newest registered one by the saga's name (``order``, ``order@2``).

    Raises:
        ConfigurationError: there is none; the message lists those that are registered.
    """
    if ":" in spec:
        return load(spec, Saga)
    registry = Registry(broker)
    await registry.refresh()
    name, _, version = spec.partition("@")
    found = [saga for saga in registry.contracts if saga.name == name and version in ("", str(saga.version))]
    if found:
        return found[-1]
    known = ", ".join(f"{saga.name}@{saga.version}" for saga in registry.contracts) or "none"
    raise ConfigurationError(f"no saga {spec!r} is registered at {broker.url}; registered are: {known}")
