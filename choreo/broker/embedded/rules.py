"""The checks that a server would do: sizes, metadata, what a topic has to be, and the options of a URL."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import SplitResult, parse_qsl

from choreo.broker.port import COMMIT_METADATA_MAX_CHARS, Committed, Headers, TopicInfo, TopicPartition, TopicSpec
from choreo.errors import BrokerError, ConfigurationError, RecordTooLarge

SESSION_TIMEOUT_MS = 6_000
HEARTBEAT_MS = 1_000


def check_size(topic: str, key: str, value: bytes, headers: Headers, message_bytes_max: int) -> None:
    """Raise ``RecordTooLarge`` if the record has more bytes than its topic takes."""
    size = len(key.encode()) + len(value) + sum(len(name.encode()) + len(content) for name, content in headers)
    if size > message_bytes_max:
        raise RecordTooLarge(f"a record of {size:,} bytes is too large for {topic}, which takes {message_bytes_max:,}")


def check_metadata(offsets: Mapping[TopicPartition, Committed]) -> None:
    """Raise ``BrokerError`` if a commit carries more text than Kafka would take, or other than ASCII."""
    for tp, place in offsets.items():
        if len(place.metadata) > COMMIT_METADATA_MAX_CHARS or not place.metadata.isascii():
            raise BrokerError(
                f"commit metadata for {tp} must be ASCII of at most {COMMIT_METADATA_MAX_CHARS} characters; "
                f"this has {len(place.metadata)}"
            )


def check_spec(spec: TopicSpec) -> None:
    """Raise ``ConfigurationError`` if no topic can be like this."""
    if spec.partitions < 1:
        raise ConfigurationError(f"topic {spec.name}: {spec.partitions} partitions; it needs at least 1")


def info_of(spec: TopicSpec) -> TopicInfo:
    """An embedded topic: one copy, stamped by the broker, kept by age alone."""
    return TopicInfo(
        name=spec.name,
        partitions=spec.partitions,
        retention_ms=spec.retention_ms,
        retention_bytes=None,
        compacted=spec.compacted,
        log_append_time=True,
        replication_factor=1,
        in_sync_min=1,
        message_bytes_max=spec.message_bytes_max,
    )


def differences(found: TopicSpec, wanted: TopicSpec) -> list[str]:
    """How an existing topic differs from what is wanted, a line each, with what to do."""
    problems = []
    if found.partitions != wanted.partitions:
        problems.append(
            f"{wanted.name} has {_count(found.partitions)}, {wanted.partitions} wanted. Partitions are fixed for the "
            f"life of a topic: configure {found.partitions}, or begin a new log"
        )
    if found.compacted != wanted.compacted:
        problems.append(
            f"{wanted.name} {'is' if found.compacted else 'is not'} compacted, but "
            f"{'should be' if wanted.compacted else 'should not be'}. Another program uses this name: begin a new log"
        )
    if _keeps_less(found.retention_ms, wanted.retention_ms):
        problems.append(
            f"{wanted.name} keeps records {_retention(found.retention_ms)}, at least {_retention(wanted.retention_ms)} "
            "is needed. Create the topics with the longest retention that a service of the saga asks for"
        )
    return problems


def _count(partitions: int) -> str:
    return "1 partition" if partitions == 1 else f"{partitions} partitions"


def _keeps_less(found_ms: int | None, wanted_ms: int | None) -> bool:
    return found_ms is not None and (wanted_ms is None or found_ms < wanted_ms)


def _retention(retention_ms: int | None) -> str:
    return "for ever" if retention_ms is None else f"for {retention_ms} ms"


def options_of(url: SplitResult, known: Mapping[str, str]) -> dict[str, str]:
    """The query of a broker URL as a dictionary, over the defaults ``known``.

    Raises:
        ConfigurationError: an option that the broker does not know, or one that is given twice.
    """
    options = dict(known)
    given: set[str] = set()
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        if name not in known:
            raise ConfigurationError(
                f"broker URL {url.geturl()!r}: no option {name!r}; there are {', '.join(sorted(known))}"
            )
        if name in given:
            raise ConfigurationError(f"broker URL {url.geturl()!r}: option {name!r} is given twice")
        given.add(name)
        options[name] = value
    return options


def milliseconds(url: SplitResult, options: Mapping[str, str], name: str) -> int:
    """A positive number of milliseconds among the options. Raises ``ConfigurationError`` for anything else."""
    text = options[name]
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise ConfigurationError(f"broker URL {url.geturl()!r}: {name}={text!r} is not a positive number")
    return int(text)


def session_times(url: SplitResult, options: Mapping[str, str]) -> tuple[int, int]:
    """Session timeout and heartbeat in milliseconds.

    Raises:
        ConfigurationError: the heartbeat leaves no room for a late one within the session timeout.
    """
    session_timeout_ms = milliseconds(url, options, "session_timeout_ms")
    heartbeat_ms = milliseconds(url, options, "heartbeat_ms")
    if heartbeat_ms * 2 > session_timeout_ms:
        raise ConfigurationError(
            f"broker URL {url.geturl()!r}: heartbeat_ms={heartbeat_ms} is more than half of "
            f"session_timeout_ms={session_timeout_ms}, so that one late heartbeat would end the session"
        )
    return session_timeout_ms, heartbeat_ms
