"""The log, reached by URL: ``kafka://host:port[,host:port]``, ``sqlite:///file``, ``memory://``.

``port`` says what choreo needs of a broker; ``kafka``, ``sqlite`` and ``memory`` are the adapters, imported here
alone and only when their URL asks for them; ``topics`` names the topics of a contract; ``offsets`` keeps track of
what is finished.
"""

from __future__ import annotations

import os

from choreo.broker.port import (
    Appended,
    Broker,
    Committed,
    Consumer,
    GroupInfo,
    Headers,
    MemberInfo,
    Message,
    Producer,
    Reader,
    TopicInfo,
    TopicPartition,
    TopicSpec,
)
from choreo.errors import ConfigurationError
from choreo.url import shown_url, split_url

__all__ = [
    "Appended",
    "Broker",
    "Committed",
    "Consumer",
    "GroupInfo",
    "Headers",
    "MemberInfo",
    "Message",
    "Producer",
    "Reader",
    "TopicInfo",
    "TopicPartition",
    "TopicSpec",
    "open_broker",
]


ENCRYPTION = "CHOREO_PAYLOAD_KEYS"
SIGNING = ("CHOREO_SIGNING_KEY_FILE", "CHOREO_TRUST_FILE")


async def open_broker(url: str, *, signed: bool = True, encrypted: bool = True) -> Broker:
    """The broker that ``url`` names.

    ``kafka://host:9092,other:9092`` is Apache Kafka; ``sqlite:///relative.db`` and ``sqlite:////absolute.db`` the
    embedded broker, a file that several processes of one machine share; ``memory://name`` lives in this process,
    one for each name and event loop. If the environment names a signing key or whom to trust, all that is sent is
    signed and all that is delivered is verified (``choreo.broker.signed``); if it names keys for payloads, these are
    encrypted and decrypted (``choreo.broker.encrypted``).

    Args:
        signed: false leaves signatures to the caller: what is read is what stands in the log, whoever wrote it.
        encrypted: false leaves payloads as they stand in the log.

    Raises:
        ConfigurationError: the URL has no known scheme, or lacks a part.
        BrokerUnavailable: nothing answers there.
    """
    broker = await _open(url)
    try:
        if signed and any(os.environ.get(name) for name in SIGNING):
            from choreo.broker.signed import signed_by_settings

            broker = signed_by_settings(broker, os.environ)
        if encrypted and os.environ.get(ENCRYPTION):
            from choreo.broker.encrypted import encrypted_by_settings

            broker = encrypted_by_settings(broker, os.environ)
    except BaseException:
        await broker.close()
        raise
    return broker


async def _open(url: str) -> Broker:
    scheme = split_url(url).scheme
    if scheme == "kafka":
        from choreo.broker.kafka import KafkaBroker

        return await KafkaBroker.open(url)
    if scheme == "sqlite":
        from choreo.broker.sqlite import SqliteBroker

        return await SqliteBroker.open(url)
    if scheme == "memory":
        from choreo.broker.memory import MemoryBroker

        return await MemoryBroker.open(url)
    raise ConfigurationError(
        f"broker URL {shown_url(url)!r} has no known scheme; use kafka://host:9092, sqlite:///path/to/file.db or memory://name"
    )
