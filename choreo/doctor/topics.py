"""Whether topics are as sagas need them. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from choreo.broker.port import TopicInfo
from choreo.broker.topics import CONTRACTS_TOPIC, dead_letter_topic, saga_topic
from choreo.contract.policy import duration_text
from choreo.contract.saga import Saga
from choreo.doctor.findings import Notes
from choreo.messages.codec import LIMITS

REPAIR_HORIZON_MS = 86_400_000
"""How long after a saga's last compensation an effect may still be found and undone (rule 21)."""

_ALTER = "kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {setting}"


def retention_needed_ms(contract: Saga) -> int:
    """How long a saga's records have to be there: its deadline, settling, each compensation in a row, and repairs."""
    compensations = sum(step.compensation_deadline_ms for step in contract.steps if step.compensation is not None)
    return contract.deadline_ms + contract.settle_ms + compensations + REPAIR_HORIZON_MS


def examine_topics(
    notes: Notes,
    saga: str,
    contracts: Sequence[Saga],
    topics: Mapping[str, TopicInfo | None],
    *,
    is_cluster: bool,
) -> None:
    """Look at the topics of a saga and at the one that all share.

    Args:
        contracts: all versions.
        topics: what the broker says of each; ``None`` where there is none.
        is_cluster: the broker is one that can keep copies.
    """
    history = topics[saga_topic(saga)]
    for name in (saga_topic(saga), dead_letter_topic(saga)):
        topic = topics[name]
        missing = None if topic else "the topic does not exist: nothing can be written to it"
        notes.check("topic_missing", name, missing, "choreo topics MODULE:NAME --create")
        if topic is not None:
            _examine_history(notes, topic, contracts)
            if is_cluster:
                _examine_replication(notes, topic)
            if history is not None:
                _same_partitions(notes, topic, history)
    shared = topics[CONTRACTS_TOPIC]
    missing = None if shared else "the topic does not exist: contracts cannot be found"
    if notes.check("topic_missing", CONTRACTS_TOPIC, missing, "choreo topics MODULE:NAME --create") and shared:
        problem = None if shared.compacted else "it is not compacted: contracts are deleted by age, sagas outlive them"
        fix = _alter(CONTRACTS_TOPIC, "cleanup.policy=compact")
        notes.check("topic_compaction", CONTRACTS_TOPIC, problem, fix)
        problem = None if shared.partitions == 1 else f"it has {shared.partitions} partitions, only the first is read"
        notes.check("topic_partitions", CONTRACTS_TOPIC, problem, "make it anew with one partition")
        if is_cluster:
            _examine_replication(notes, shared)


def _examine_history(notes: Notes, topic: TopicInfo, contracts: Sequence[Saga]) -> None:
    problem = None
    if not topic.log_append_time:
        problem = "records carry their writers' clocks: deadlines cannot be told, and every reader may decide otherwise"
    notes.check("topic_timestamps", topic.name, problem, _alter(topic.name, "message.timestamp.type=LogAppendTime"))
    problem = "it is compacted: records of running sagas are deleted" if topic.compacted else None
    notes.check("topic_compaction", topic.name, problem, _alter(topic.name, "cleanup.policy=delete"))
    problem = None
    if topic.retention_bytes is not None:
        problem = f"a partition above {topic.retention_bytes:,} bytes loses its oldest records, however young they are"
    notes.check("topic_retention", topic.name, problem, _alter(topic.name, "retention.bytes=-1"))
    needs = max(map(retention_needed_ms, contracts), default=0)
    if topic.retention_ms is not None:
        longest = max(contracts, key=retention_needed_ms, default=None)
        problem = None
        if longest is not None and topic.retention_ms < needs:
            problem = (
                f"records are kept for {duration_text(topic.retention_ms)}; {longest.name}@{longest.version} needs "
                f"{duration_text(needs)} (its deadline, settling, its compensations, a day for repairs): its start may "
                "be deleted while it runs, and then nothing is decided for it"
            )
        notes.check("topic_retention", topic.name, problem, _alter(topic.name, f"retention.ms={needs}"))
    needed = LIMITS.value_bytes_max + LIMITS.header_bytes_max
    problem = None
    if topic.message_bytes_max < needed:
        problem = f"it takes records of {topic.message_bytes_max:,} bytes, choreo may write {needed:,}"
    notes.check("topic_record_size", topic.name, problem, _alter(topic.name, "max.message.bytes=1048576"))


def _examine_replication(notes: Notes, topic: TopicInfo) -> None:
    problem = None
    if topic.replication_factor == 1:
        problem = "it has one copy: a machine that is lost takes the sagas with it"
    elif topic.in_sync_min < 2:
        problem = "one copy is enough for an acknowledgement: a leader that is lost may take records with it"
    elif topic.in_sync_min >= topic.replication_factor:
        problem = (
            f"all {topic.replication_factor} copies must be there for a record to be written: one outage stops all"
        )
    fix = "replication factor 3 (kafka-reassign-partitions.sh), " + _alter(topic.name, "min.insync.replicas=2")
    notes.check("topic_replication", topic.name, problem, fix, level="warning")


def _same_partitions(notes: Notes, topic: TopicInfo, history: TopicInfo) -> None:
    problem = None
    if topic.partitions != history.partitions:
        problem = (
            f"it has {topic.partitions} partitions, {history.name} has {history.partitions}: a dead letter is not "
            "in the partition of its saga"
        )
    notes.check("topic_partitions", topic.name, problem, f"make {topic.name} anew with {history.partitions} partitions")


def _alter(topic: str, setting: str) -> str:
    return _ALTER.format(topic=topic, setting=setting)
