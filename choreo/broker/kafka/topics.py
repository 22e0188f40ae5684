"""Topics as the contract needs them: created when they are missing, verified when they are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from choreo.broker.port import TopicInfo, TopicSpec

RETENTION_FOR_EVER = "-1"
AT_LEAST = frozenset({"retention.ms", "max.message.bytes"})  # settings of which more does no harm


def config_of(spec: TopicSpec) -> dict[str, str]:
    """The topic settings that choreo depends on, as Kafka writes them."""
    config = {
        "cleanup.policy": "compact" if spec.compacted else "delete",
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(spec.message_bytes_max),
    }
    if not spec.compacted:
        config["retention.ms"] = RETENTION_FOR_EVER if spec.retention_ms is None else str(spec.retention_ms)
        config["retention.bytes"] = "-1"  # by age alone: a busy day must not shorten the life of a saga
    return config


def config_of_new(spec: TopicSpec) -> dict[str, str]:
    """The same for a topic that we create ourselves."""
    # Without compression the broker measures the records as readers will have them: eight kilobytes that unpack to
    # hundreds of megabytes are refused at the door. Existing topics may have it otherwise.
    return {**config_of(spec), "compression.type": "uncompressed"}


def differences(spec: TopicSpec, partitions: int, replication_factor: int, config: Mapping[str, str]) -> Sequence[str]:
    """What is not as ``spec`` says, each with what to do about it."""
    found: list[str] = []
    if partitions != spec.partitions:
        found.append(
            f"topic {spec.name!r} has {partitions} partitions instead of {spec.partitions}. Growing it would move "
            f"sagas between partitions: configure {partitions}, or use a new topic"
        )
    if spec.replication_factor is not None and replication_factor != spec.replication_factor:
        found.append(
            f"topic {spec.name!r} has replication factor {replication_factor} instead of {spec.replication_factor}. "
            "Change it with kafka-reassign-partitions.sh"
        )
    for name, wanted in config_of(spec).items():
        actual = config.get(name, "unset")
        if actual != wanted and not (name in AT_LEAST and _is_more(actual, wanted)):
            found.append(
                f"topic {spec.name!r} has {name}={actual} instead of {wanted}. Change it with kafka-configs.sh --alter "
                f"--entity-type topics --entity-name {spec.name} --add-config {name}={wanted}"
            )
    return found


def info_of(name: str, partitions: Sequence[Mapping[str, Any]], config: Mapping[str, str]) -> TopicInfo:
    """What Kafka says of a topic, in our words."""
    return TopicInfo(
        name=name,
        partitions=len(partitions),
        retention_ms=_bound(config, "retention.ms"),
        retention_bytes=_bound(config, "retention.bytes"),
        compacted="compact" in config.get("cleanup.policy", "delete"),
        log_append_time=config.get("message.timestamp.type") == "LogAppendTime",
        replication_factor=min(len(partition["replicas"]) for partition in partitions),
        in_sync_min=_bound(config, "min.insync.replicas") or 1,
        message_bytes_max=_bound(config, "max.message.bytes") or 0,
    )


def _bound(config: Mapping[str, str], name: str) -> int | None:
    text = config.get(name, RETENTION_FOR_EVER)
    return int(text) if text.isdigit() else None


def _is_more(actual: str, wanted: str) -> bool:
    """Whether a limit is wider than it has to be; -1 is none at all."""
    if not actual.lstrip("-").isdigit() or wanted == RETENTION_FOR_EVER:
        return False
    return actual == RETENTION_FOR_EVER or int(actual) >= int(wanted)
