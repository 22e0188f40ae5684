"""The topics of a saga: its history, what nobody could read, the hashes that seal it; and one that all sagas share."""

from __future__ import annotations

from itertools import count

from choreo.broker.port import Broker, TopicSpec
from choreo.ids import partition_key

_PREFIX = "choreo."
CONTRACTS_TOPIC = "choreo.contracts"  # every version of every contract, keyed by name and version


def saga_topic(saga_name: str) -> str:
    """The topic with everything about the sagas of this name, keyed by saga id."""
    return f"{_PREFIX}{saga_name}"


def dead_letter_topic(saga_name: str) -> str:
    """The topic for records of the saga topic that could not be handled: the original bytes, and why."""
    return f"{_PREFIX}{saga_name}.dead-letters"


def checkpoint_topic(saga_name: str) -> str:
    """The topic for the hashes by which the saga topic is sealed; made when that is first asked for."""
    return f"{_PREFIX}{saga_name}.checkpoints"


def is_saga_topic(topic: str) -> bool:
    """Whether it is the history of a kind of saga, and so neither contracts nor one of the topics beside a history."""
    # No saga's name has a dot, and none is called as the contracts' topic is.
    return topic.startswith(_PREFIX) and topic != CONTRACTS_TOPIC and "." not in topic[len(_PREFIX) :]


def saga_of(topic: str) -> str:
    """The name of the saga whose history the topic is."""
    return topic.removeprefix(_PREFIX)


def topic_specs(
    saga_name: str, *, partitions: int, retention_ms: int | None, replication_factor: int | None = None
) -> tuple[TopicSpec, ...]:
    """What the topics of a saga have to be: history, dead letters, contracts.

    Dead letters have the partitions and the retention of the history, so that a dead letter lies in the partition
    of its saga and is kept as long. Contracts are few and must never be lost: one partition, the last of each key.
    """
    return (
        TopicSpec(
            name=saga_topic(saga_name),
            partitions=partitions,
            retention_ms=retention_ms,
            replication_factor=replication_factor,
        ),
        TopicSpec(
            name=dead_letter_topic(saga_name),
            partitions=partitions,
            retention_ms=retention_ms,
            replication_factor=replication_factor,
        ),
        TopicSpec(name=CONTRACTS_TOPIC, partitions=1, compacted=True, replication_factor=replication_factor),
    )


async def partition_keys(broker: Broker, topic: str) -> list[str]:
    """A key for each partition of a saga's topic, under which records about the partition are written."""
    left = set(range(await broker.partitions(topic)))
    keys = []
    for number in count():
        if not left:
            break
        partition = await broker.partition_of(topic, partition_key(number))
        if partition in left:
            left.remove(partition)
            keys.append(partition_key(number))
    return keys
