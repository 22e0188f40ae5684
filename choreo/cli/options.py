"""Arguments that several verbs have, with the environment variables that stand in for them."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from choreo.errors import ConfigurationError

SagaSpec = Annotated[
    str, Parameter(help="MODULE:NAME of a contract, or the name of a registered saga (order, order@2).")
]
Contract = Annotated[str, Parameter(help="MODULE:NAME of a contract, as in services.order:ORDER.")]
BrokerUrl = Annotated[
    str | None,
    Parameter(
        name=["--broker", "-b"],
        env_var="CHOREO_BROKER",
        help="kafka://host:9092[,host:9092], or sqlite:///path/to/file.db.",
    ),
]
HttpHost = Annotated[str, Parameter(env_var="CHOREO_HTTP_HOST", help="Address of /metrics, /healthz and /readyz.")]
HttpPort = Annotated[
    int | None,
    Parameter(
        env_var="CHOREO_HTTP_PORT", help="Port of /metrics, /healthz and /readyz; none without it, 0 any free one."
    ),
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], Parameter(env_var="CHOREO_LOG_LEVEL", help="How much is logged.")
]
LogFormat = Annotated[
    Literal["console", "json"], Parameter(env_var="CHOREO_LOG_FORMAT", help="Lines for people or for programs.")
]
LogTexts = Annotated[
    Literal["shown", "hidden"] | None,
    Parameter(
        env_var="CHOREO_LOG_TEXTS",
        help="Texts of failures, which may quote payloads; hidden by default where payloads are encrypted.",
    ),
]
Partitions = Annotated[
    int | None,
    Parameter(env_var="CHOREO_PARTITIONS", help="Partitions of saga topics that are created; 6 if nothing is said."),
]
ShutdownTimeout = Annotated[
    float,
    Parameter(env_var="CHOREO_SHUTDOWN_TIMEOUT_SECONDS", help="How long running handlers may go on after SIGTERM."),
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Output for programs.")]


def hides_texts(said: str | None) -> bool:
    """Whether the log leaves out texts of failures."""
    return said == "hidden" or (said is None and bool(os.environ.get("CHOREO_PAYLOAD_KEYS")))


def broker_url(given: str | None) -> str:
    """The broker's URL.

    Raises:
        ConfigurationError: neither the option nor the variable says one.
    """
    if given:
        return given
    raise ConfigurationError("no broker given; use --broker URL or set CHOREO_BROKER, as in sqlite:///choreo.db")


def write_json(value: object) -> None:
    """One line of JSON on standard output."""
    import msgspec

    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()
