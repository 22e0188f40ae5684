"""The contracts that are deployed: every version of every saga, in the compacted topic ``choreo.contracts``.

Services, clients and the saga-log publish the contracts they hold when they start. Whoever needs a contract that it
does not hold (a saga-log, a replay, an audit) finds it here: it was published before the first saga under it could be
started. Beside them is what each service runs (``announcement``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from choreo.broker.announcement import ANNOUNCEMENT_HEADERS, Announcement, from_bytes, is_announcement, to_bytes
from choreo.broker.port import Broker, TopicPartition
from choreo.broker.topics import CONTRACTS_TOPIC, dead_letter_topic, saga_topic, topic_specs
from choreo.contract.document import from_json, to_json
from choreo.contract.policy import duration_text
from choreo.contract.saga import Saga, with_children
from choreo.errors import ChoreoError, ConfigurationError, DefinitionError, TopicError
from choreo.messages.headers import JSON

PARTITIONS_DEFAULT = 6
RETENTION_MS_DEFAULT = 7 * 86_400_000

CONTRACT_HEADERS = (
    ("ce_specversion", b"1.0"),
    ("ce_type", b"choreo.contract.v1"),
    ("ce_source", b"/choreo/registry"),
    ("content-type", JSON.encode()),
)


class Registry:
    """All contracts in the topic, as last read. ``refresh`` reads what is new."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._contracts: dict[tuple[str, int], Saga] = {}
        self._services: dict[str, Announcement] = {}
        self._position = 0
        self.unreadable: tuple[str, ...] = ()

    def get(self, saga: str, version: int) -> Saga | None:
        """The contract of that name and version, if it has been read."""
        return self._contracts.get((saga, version))

    @property
    def contracts(self) -> tuple[Saga, ...]:
        """All contracts, by name and version."""
        return tuple(self._contracts[key] for key in sorted(self._contracts))

    @property
    def services(self) -> tuple[Announcement, ...]:
        """What the services said when they last started, by name."""
        return tuple(self._services[name] for name in sorted(self._services))

    def hosts(self, saga: str, version: int, step: str) -> tuple[Announcement, ...]:
        """The services that say they run this step; one, if all is well."""
        return tuple(
            word
            for word in self.services
            if any((each.saga, each.version, each.step) == (saga, version, step) for each in word.steps)
        )

    async def refresh(self) -> None:
        """Read the topic to its end. What is no contract is kept in ``unreadable`` and passed over.

        Raises:
            BrokerUnavailable: the log cannot be read.
        """
        tp = TopicPartition(CONTRACTS_TOPIC, 0)
        if CONTRACTS_TOPIC not in await self._broker.topics():
            return
        _, end = (await self._broker.offsets([tp]))[tp]
        if self._position >= end:
            return
        reader = await self._broker.reader()
        try:
            reader.seek(tp, self._position)
            while reader.position(tp) < end:
                for message in await reader.poll(timeout_s=0.5):
                    self._take(message.key, message.value)
            self._position = reader.position(tp)
        finally:
            await reader.close()

    def _take(self, key: bytes | None, value: bytes) -> None:
        try:
            if is_announcement(key):
                word = from_bytes(value)
                self._services[word.service] = word
                return
            contract = from_json(value)
        except ChoreoError as error:
            self.unreadable = (*self.unreadable, f"{key!r}: {error}")
        else:
            # The first one counts: a later one under the same version is refused, as it would be at start-up.
            self._contracts.setdefault((contract.name, contract.version), contract)


async def ensure_saga_topics(
    broker: Broker,
    sagas: Iterable[Saga],
    *,
    partitions: int | None = None,
    retention_ms: int = RETENTION_MS_DEFAULT,
    replication_factor: int | None = None,
) -> None:
    """Create and verify the topics of these sagas.

    Args:
        partitions: for topics that are missing, ``PARTITIONS_DEFAULT`` by default; if given, those that exist must
            have as many.
        retention_ms: must be longer than each saga's deadline (rule 21).

    Raises:
        ConfigurationError: the retention is too short.
        TopicError: an existing topic differs.
    """
    existing = await broker.topics()
    for name, versions in _by_name(with_children(sagas)).items():
        deadline_ms = max(saga.deadline_ms for saga in versions)
        if retention_ms <= deadline_ms:
            raise ConfigurationError(
                f"retention {duration_text(retention_ms)} is not longer than the deadline of saga {name!r}, "
                f"{duration_text(deadline_ms)}: a saga's start would be deleted while it runs. Raise the retention"
            )
        count = await _partitions_of(broker, name, existing) if partitions is None else partitions
        await broker.ensure_topics(
            topic_specs(name, partitions=count, retention_ms=retention_ms, replication_factor=replication_factor)
        )


async def _partitions_of(broker: Broker, saga_name: str, existing: Collection[str]) -> int:
    """How many partitions a saga's topics have; the default where there are none."""
    topic, letters = saga_topic(saga_name), dead_letter_topic(saga_name)
    counts = {each: await broker.partitions(each) for each in (topic, letters) if each in existing}
    if len(set(counts.values())) > 1:
        raise TopicError(
            f"topic {topic!r} has {counts[topic]} partitions and {letters!r} has {counts[letters]}: one of them was "
            "grown. Sagas under way would be looked for in other partitions than they are in, so nothing starts here. "
            f"Make a new topic with {max(counts.values())} partitions, for a saga of another name "
            "(docs/scale.md, More partitions)"
        )
    return counts.get(topic, PARTITIONS_DEFAULT)


async def register(broker: Broker, sagas: Sequence[Saga]) -> Registry:
    """Publish the contracts that are not in the topic yet, and return all that are. The topics must exist.

    Raises:
        DefinitionError: a contract's version is registered with another content; says for all what to do.
    """
    registry = Registry(broker)
    await registry.refresh()
    problems = []
    missing = []
    for saga in with_children(sagas):
        known = registry.get(saga.name, saga.version)
        if known is None:
            missing.append(saga)
        elif known.content_hash != saga.content_hash:
            problems.append(
                f"saga {saga.name!r} version {saga.version} is registered with hash {known.content_hash[:12]}, this "
                f"program holds {saga.content_hash[:12]}; a changed contract needs version {saga.version + 1}"
            )
    if problems:
        raise DefinitionError("the set of contracts", tuple(problems))
    if missing:
        producer = await broker.producer()
        try:
            for saga in missing:
                key = f"{saga.name}/{saga.version}"
                await producer.send(CONTRACTS_TOPIC, key=key, value=to_json(saga), headers=CONTRACT_HEADERS)
        finally:
            await producer.close()
        await registry.refresh()
    return registry


async def announce(broker: Broker, registry: Registry, words: Iterable[Announcement]) -> None:
    """Publish what services run, where the registry does not say so yet.

    Raises:
        BrokerUnavailable: the log cannot be written.
    """
    known = {word.service: word for word in registry.services}
    news = [word for word in words if known.get(word.service) != word]
    if not news:
        return
    producer = await broker.producer()
    try:
        for word in news:
            await producer.send(CONTRACTS_TOPIC, key=word.key, value=to_bytes(word), headers=ANNOUNCEMENT_HEADERS)
    finally:
        await producer.close()


def _by_name(sagas: Iterable[Saga]) -> dict[str, list[Saga]]:
    found: dict[str, list[Saga]] = {}
    for saga in sagas:
        found.setdefault(saga.name, []).append(saga)
    return found
