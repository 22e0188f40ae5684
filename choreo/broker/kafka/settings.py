"""The broker URL: ``kafka://host:port[,host:port…][?option=value&…]``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from choreo.broker.kafka.security import OPTIONS, Security, security_of
from choreo.errors import ConfigurationError
from choreo.url import shown_url, split_url

PORT_DEFAULT = 9092


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the URL says. All but ``bootstrap`` are options of its query; durations in milliseconds.

    Attributes:
        bootstrap: ``host:port`` of brokers to ask first.
        security: TLS and SASL; its options stand in the query beside the others.
        client_id: the name under which the broker's logs and quotas know us.
        session_timeout_ms: a group member that is silent for so long has lost its partitions.
        heartbeat_interval_ms: how often a member shows that it lives, and how soon it learns of a rebalance.
        rebalance_timeout_ms: how long a rebalance waits for a member, its ``on_revoked`` included.
        open_timeout_ms: how long ``open`` tries to reach a broker.
        request_timeout_ms: how long one request may take.
        delivery_timeout_ms: how long a send is repeated before ``BrokerUnavailable``.
        commit_timeout_ms: the same for a commit.
        stall_timeout_ms: a consumer that lags and does not move for so long is replaced.
        linger_ms: how long a batch waits for company. 0: it goes out when the one before it is acknowledged.
        batch_bytes: the largest batch; topics must take records of this size.
    """

    bootstrap: tuple[str, ...]
    security: Security = Security()
    client_id: str = "choreo"
    session_timeout_ms: int = 10_000
    heartbeat_interval_ms: int = 3_000
    rebalance_timeout_ms: int = 30_000
    open_timeout_ms: int = 10_000
    request_timeout_ms: int = 15_000
    delivery_timeout_ms: int = 60_000
    commit_timeout_ms: int = 10_000
    stall_timeout_ms: int = 30_000
    linger_ms: int = 0
    batch_bytes: int = 131_072

    @classmethod
    def parse(cls, url: str, environment: Mapping[str, str] | None = None) -> KafkaSettings:
        """Read a URL.

        Args:
            environment: where options of security that the URL leaves open, and secrets, are looked for; the process's
                by default.

        Raises:
            ConfigurationError: it names what is wrong.
        """
        parts, url = split_url(url), shown_url(url)  # from here on only errors name it
        if parts.scheme != "kafka":
            raise ConfigurationError(f"broker URL {url!r}: the scheme is not kafka://")
        if "@" in parts.netloc:
            # Not repeated in the message: what stands before the @ is likely a password.
            raise ConfigurationError(
                "broker URL kafka://…@…: credentials do not belong into a URL, which is logged; use the option "
                "username, and CHOREO_KAFKA_PASSWORD or password_file"
            )
        if parts.path.strip("/") or parts.fragment:
            raise ConfigurationError(f"broker URL {url!r}: nothing may follow the hosts but ?option=value")
        bootstrap = tuple(_address(url, host) for host in parts.netloc.split(","))
        said = _options(url, parts.query)
        security = security_of(
            {name: said.pop(name) for name in OPTIONS if name in said},
            os.environ if environment is None else environment,
            bootstrap,
        )
        settings = cls(bootstrap=bootstrap, security=security, **said)
        if settings.heartbeat_interval_ms * 3 > settings.session_timeout_ms:
            raise ConfigurationError(
                f"broker URL {url!r}: heartbeat_interval_ms={settings.heartbeat_interval_ms} is more than a third of "
                f"session_timeout_ms={settings.session_timeout_ms}; two lost heartbeats would end the session"
            )
        return settings

    def connection(self) -> Mapping[str, Any]:
        """What aiokafka is told for reaching the brokers.

        Raises:
            ConfigurationError: a certificate or a key cannot be read.
        """
        return {
            "bootstrap_servers": list(self.bootstrap),
            "client_id": self.client_id,
            "metadata_max_age_ms": 60_000,
            **self.security.connection(),
        }


def _address(url: str, text: str) -> str:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(PORT_DEFAULT)
    if not host or host == "[]":
        raise ConfigurationError(f"broker URL {url!r}: {text!r} names no host; use kafka://host:{PORT_DEFAULT}")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise ConfigurationError(f"broker URL {url!r}: {port!r} is no port")
    return f"{host}:{port}"


def _options(url: str, query: str) -> dict[str, Any]:
    own = [field.name for field in msgspec.structs.fields(KafkaSettings) if field.name not in ("bootstrap", "security")]
    texts = {"client_id", *OPTIONS}
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in own and name not in texts:
            known = sorted({*own, *texts})
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
            raise ConfigurationError(f"broker URL {url!r}: no option {name!r}; {hint}")
        if name in options:
            raise ConfigurationError(f"broker URL {url!r}: option {name!r} is given twice")
        if name in texts:
            options[name] = text
        else:
            least = 0 if name == "linger_ms" else 1
            if not (text.isascii() and text.isdigit() and least <= int(text) < 2**31):
                raise ConfigurationError(f"broker URL {url!r}: {name}={text!r} is no whole number of at least {least}")
            options[name] = int(text)
    return options
