"""choreo: sagas over Kafka by event choreography.

A *contract* (``Saga``) names a business process's steps. Each step is handled by a *service* (``Service``), a consumer
of its own that reacts to the events of the steps before it. One *saga-log* folds all events into the state of each
saga, keeps the time, and, when a step fails, has what was done undone in reverse order. A *client* (``Client``) starts
sagas and follows them. The log is the truth; everything else is a fold of it.

The map of the package, from the inside out: ``contract`` (what a saga is), ``messages`` (the wire format), ``core``
(the protocol: pure, total), ``broker`` (the port to the log: Kafka, SQLite, memory), ``observe`` (metrics, logs,
probes), ``store`` (checkpoints of the saga-log), ``inbox`` (what steps came to, in their services' databases), ``step``
and ``saga_log`` (the two runtimes), ``client``, ``cli``, ``testing`` (whole sagas in one process, in virtual time).

Guarantees, in short: every started saga reaches one outcome or is visibly stuck; in a completed saga each step has one
effect that stands; in a compensated one every effect is undone once, in reverse order; whatever crashes meanwhile.
``docs/guarantees.md`` has the conditions.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from choreo.broker import open_broker
    from choreo.client import BlockingClient, Client
    from choreo.contract import Retries, Saga, Step, when
    from choreo.errors import (
        BrokerUnavailable,
        ChoreoError,
        ConfigurationError,
        DefinitionError,
        SagaFailed,
        SagaNotFound,
        StartRefused,
        WaitTimeout,
    )
    from choreo.inbox import Inbox
    from choreo.step import (
        Abort,
        AbortRetries,
        CompensationContext,
        Context,
        Continue,
        NothingToUndo,
        Reject,
        Retry,
        Service,
    )

_HOME = {
    "Saga": "contract",
    "Step": "contract",
    "Retries": "contract",
    "when": "contract",
    "Service": "step",
    "Inbox": "inbox",
    "Context": "step",
    "CompensationContext": "step",
    "Reject": "step",
    "Abort": "step",
    "NothingToUndo": "step",
    "Retry": "step",
    "Continue": "step",
    "AbortRetries": "step",
    "Client": "client",
    "BlockingClient": "client",
    "open_broker": "broker",
    "ChoreoError": "errors",
    "DefinitionError": "errors",
    "ConfigurationError": "errors",
    "BrokerUnavailable": "errors",
    "SagaFailed": "errors",
    "SagaNotFound": "errors",
    "StartRefused": "errors",
    "WaitTimeout": "errors",
}

__all__ = [
    "Abort",
    "AbortRetries",
    "BlockingClient",
    "BrokerUnavailable",
    "ChoreoError",
    "Client",
    "CompensationContext",
    "ConfigurationError",
    "Context",
    "Continue",
    "DefinitionError",
    "Inbox",
    "NothingToUndo",
    "Reject",
    "Retries",
    "Retry",
    "Saga",
    "SagaFailed",
    "SagaNotFound",
    "Service",
    "StartRefused",
    "Step",
    "WaitTimeout",
    "open_broker",
    "when",
]


def __getattr__(name: str) -> Any:
    # Loaded when first used: the pure parts must not drag in the runtimes, nor a shell command what it does not need.
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'choreo' has no attribute {name!r}")
    return getattr(import_module(f"choreo.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
