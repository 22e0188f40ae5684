"""``MODULE:NAME`` on the command line, and sagas by their name alone."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from choreo.broker.port import Broker
from choreo.broker.registry import Registry
from choreo.contract.saga import Saga, with_children
from choreo.errors import ConfigurationError

if TYPE_CHECKING:
    from choreo.step import Service

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


def load_object(spec: str) -> object:
    """The object that ``MODULE:NAME`` names, which is no class.

    Raises:
        ConfigurationError: no such module or name, or a class.
    """
    found = load(spec, object)
    if isinstance(found, type):
        raise ConfigurationError(f"{spec!r} is a class; make an object of it in its module, and name that")
    return found


def load_parts(specs: Sequence[str]) -> tuple[dict[str, Saga], list[Service]]:
    """Contracts, the newest of each name, and services, whose contracts are among them.

    Raises:
        ConfigurationError: no such module or name, or it is something else.
    """
    from choreo.step import Service

    sagas: dict[str, Saga] = {}
    services: list[Service] = []
    for spec in specs:
        match load(spec, object):
            case Saga() as saga:
                held = [saga]
            case Service() as service:
                services.append(service)
                held = list(service.contracts.values())
            case other:
                raise ConfigurationError(f"{spec!r} is a {type(other).__name__}; a Saga or a Service is needed")
        for saga in with_children(held):
            if saga.name not in sagas or sagas[saga.name].version < saga.version:
                sagas[saga.name] = saga
    return sagas, services


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
