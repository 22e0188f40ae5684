"""The examination: asks the broker, the registry and the store, and lets the checks judge."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from choreo.broker.port import Broker, GroupInfo, Message, TopicInfo, TopicPartition
from choreo.broker.registry import Registry
from choreo.broker.topics import CONTRACTS_TOPIC, dead_letter_topic, saga_topic
from choreo.contract.policy import duration_text
from choreo.contract.saga import Saga
from choreo.doctor.findings import Diagnosis, Notes
from choreo.doctor.groups import Place, examine_group, examine_steps
from choreo.doctor.topics import examine_topics
from choreo.errors import BrokerUnavailable, ConfigurationError, StoreError, TopicError
from choreo.saga_log.replay import replay
from choreo.saga_log.runtime import GROUP as SAGA_LOG_GROUP
from choreo.store.inspection import Inspection, Overview, open_inspection

SKEW_MS = 1_000
"""The broker's clock may be this far ahead of ours: the grace of a deadline is a few times as much."""

STORE_BEHIND = 10_000  # records; a saga-log saves after every batch
LOG_READ_MAX = 200_000  # records; longer logs are folded only if that is asked for


async def examine(
    broker: Broker,
    sagas: Collection[str] = (),
    *,
    now_ms: int,
    contracts: Sequence[Saga] = (),
    store: str | None = None,
    read_log: bool | None = None,
) -> Diagnosis:
    """Examine a deployment. Reads only.

    Args:
        sagas: names; all that are registered if none is given.
        now_ms: the time, Unix epoch.
        contracts: as they are deployed; they are compared with what is registered.
        store: URL of the saga-log's store; left out, it is not examined.
        read_log: whether versions in flight are found by folding the log where there is no store; ``None``: if it is
            not longer than ``LOG_READ_MAX`` records.

    Raises:
        BrokerUnavailable: the log cannot be read.
        ConfigurationError: nothing is registered and nothing is named.
    """
    registry = Registry(broker)
    await registry.refresh()
    registered = {saga.name for saga in registry.contracts}
    names = tuple(sorted({*(sagas or registered), *(saga.name for saga in contracts)}))
    if not names:
        raise ConfigurationError(f"no saga is registered at {broker.url}; name one, or start a service")
    examination = _Examination(broker, registry, now_ms, read_log=read_log)
    await examination.contracts(contracts)
    inspection = await examination.open_store(store)
    try:
        for name in names:
            await examination.saga(name, inspection)
        await examination.groups()
    finally:
        if inspection is not None:
            await inspection.close()
    return examination.notes.diagnosis(now_ms=now_ms, sagas=names)


class _Examination:
    def __init__(self, broker: Broker, registry: Registry, now_ms: int, *, read_log: bool | None) -> None:
        self.notes = Notes()
        self._broker = broker
        self._registry = registry
        self._now_ms = now_ms
        self._read_log = read_log
        self._topics_of_group: defaultdict[str, set[str]] = defaultdict(set)
        self._service_of_group: dict[str, str] = {}

    async def contracts(self, deployed: Sequence[Saga]) -> None:
        for saga in deployed:
            subject = f"{saga.name}@{saga.version}"
            known = self._registry.get(saga.name, saga.version)
            problem = None if known else "it is not registered: nobody can fold a saga that starts under it"
            fix = "start a service or a saga-log that holds it"
            if self.notes.check("contract_missing", subject, problem, fix) and known is not None:
                problem = None
                if known.content_hash != saga.content_hash:
                    problem = (
                        f"registered with hash {known.content_hash[:12]}, deployed is {saga.content_hash[:12]}: starts "
                        "under it are refused"
                    )
                self.notes.check(
                    "contract_differs", subject, problem, f"give the changed contract version {saga.version + 1}"
                )
        unreadable = "; ".join(self._registry.unreadable[:3]) or None
        fix = "another program writes to this topic: find it and stop it"
        self.notes.check("contract_unreadable", CONTRACTS_TOPIC, unreadable, fix, level="warning")

    async def open_store(self, url: str | None) -> Inspection | None:
        if url is None:
            return None
        problem, inspection = None, None
        try:
            inspection = await open_inspection(url)
        except (ConfigurationError, StoreError) as error:
            problem = str(error)
        fix = "start the database, or give the saga-log and the doctor the same --store"
        self.notes.check("store_unreachable", "store", problem, fix)
        return inspection

    async def saga(self, name: str, inspection: Inspection | None) -> None:
        topic = saga_topic(name)
        versions = [saga for saga in self._registry.contracts if saga.name == name]
        problem = None if versions else "no version of it is registered"
        self.notes.check("contract_missing", name, problem, "start a service or a saga-log that holds it")
        infos = {each: await self._topic(each) for each in (topic, dead_letter_topic(name), CONTRACTS_TOPIC)}
        is_cluster = self._broker.url.startswith("kafka:")
        examine_topics(self.notes, name, versions, infos, is_cluster=is_cluster)
        if (info := infos[topic]) is None:
            return
        await self._clock(info)
        overview = await self._store(info, inspection)
        in_flight = await self._in_flight(name, info, overview)
        self._topics_of_group[SAGA_LOG_GROUP].add(topic)
        for contract in versions:
            newest = contract is versions[-1]
            under_way = in_flight.get(contract.version, 0)
            if newest or under_way:
                hosts = {step.name: self._registry.hosts(name, contract.version, step.name) for step in contract.steps}
                examine_steps(self.notes, contract, hosts, in_flight=None if newest else under_way)
                for words in hosts.values():
                    for word in words:
                        self._topics_of_group[word.group].add(topic)
                        self._service_of_group[word.group] = word.service

    async def groups(self) -> None:
        """All groups that somebody waits for, once each."""
        for name, topics in sorted(self._topics_of_group.items()):
            group = await self._broker.group_info(name)
            places = [place for topic in sorted(topics) for place in await self._places(group, topic)]
            service = self._service_of_group.get(name)
            start = f"choreo run MODULE:{service}" if service else "choreo saga-log MODULE:NAME …"
            examine_group(self.notes, group, places, start=start, now_ms=self._now_ms)

    async def _topic(self, name: str) -> TopicInfo | None:
        try:
            return await self._broker.topic_info(name)
        except TopicError:
            return None

    async def _places(self, group: GroupInfo, topic: str) -> list[Place]:
        tps = [TopicPartition(topic, number) for number in range(await self._broker.partitions(topic))]
        places = []
        for tp, (first, end) in (await self._broker.offsets(tps)).items():
            committed = group.committed.get(tp)
            position = max(first, committed.offset if committed else first)
            lag = max(end - position, 0)
            oldest = await self._message(tp, position) if lag and group.members else None
            places.append(Place(tp, lag, oldest.timestamp_ms if oldest else self._now_ms))
        return places

    async def _message(self, tp: TopicPartition, offset: int) -> Message | None:
        """The first record from there on, if it can be had soon."""
        reader = await self._broker.reader()
        try:
            reader.seek(tp, offset)
            found = await reader.poll(timeout_s=2, records_max=1)
            return found[0] if found else None
        finally:
            await reader.close()

    async def _clock(self, info: TopicInfo) -> None:
        """Whether the broker stamps records with times that we have not reached yet."""
        tps = [TopicPartition(info.name, number) for number in range(info.partitions)]
        newest = 0
        for tp, (first, end) in (await self._broker.offsets(tps)).items():
            if end > first and (message := await self._message(tp, end - 1)) is not None:
                newest = max(newest, message.timestamp_ms)
        problem = None
        if newest - self._now_ms > SKEW_MS:
            problem = (
                f"its newest record is {duration_text(newest - self._now_ms)} in the future of this machine's clock: a "
                "saga-log with this clock fires timers late, one with a clock ahead fires them in vain"
            )
        fix = "let NTP set the clocks of the brokers and of the saga-log's machines"
        self.notes.check("clock_skew", info.name, problem, fix, level="warning")

    async def _store(self, info: TopicInfo, inspection: Inspection | None) -> Overview | None:
        if inspection is None:
            return None
        subject = f"store of {info.name}"
        try:
            overview = await inspection.overview(info.name)
        except StoreError as error:
            self.notes.check("store_unreachable", subject, str(error), "start the database; the saga-log rides it out")
            return None
        tps = [TopicPartition(info.name, number) for number in range(info.partitions)]
        ends = {tp.partition: end for tp, (_, end) in (await self._broker.offsets(tps)).items()}
        ahead = {number: offset for number, offset in overview.checkpoints.items() if offset > ends.get(number, 0)}
        problem = None
        if ahead:
            number, offset = next(iter(ahead.items()))
            problem = (
                f"its checkpoint of partition {number} is at {offset}, the log ends at {ends.get(number, 0)}: it is of "
                "another log"
            )
        fix = "point the saga-log to the store of this log, or let it begin a new one: a store is only a checkpoint"
        self.notes.check("store_of_another_log", subject, problem, fix)
        behind = sum(end - overview.checkpoints.get(number, 0) for number, end in ends.items())
        problem = f"it is {behind:,} records behind the log" if behind > STORE_BEHIND and not ahead else None
        fix = "look whether the saga-log runs and keeps up; queries show an old picture until then"
        self.notes.check("store_behind", subject, problem, fix, level="warning")
        return overview

    async def _in_flight(self, name: str, info: TopicInfo, overview: Overview | None) -> Mapping[int, int]:
        """How many sagas of each version are under way: from the store, or from the log if it is short enough."""
        counts: Counter[int] = Counter()
        if overview is not None:
            for (version, _), number in overview.unfinished.items():
                counts[version] += number
            return counts
        tps = [TopicPartition(info.name, number) for number in range(info.partitions)]
        length = sum(end - first for first, end in (await self._broker.offsets(tps)).values())
        if self._read_log is False or (self._read_log is None and length > LOG_READ_MAX):
            text = f"which versions are in flight: without a store {length:,} records would have to be folded"
            self.notes.check("not_examined", name, text, "give --store, or --read-log", level="note")
            return counts
        try:
            async for state, _ in replay(self._broker, name, registry=self._registry):
                if state.started and not state.is_settled:
                    counts[state.version] += 1
        except BrokerUnavailable as error:
            self.notes.check("not_examined", name, f"which versions are in flight: {error}", "try again", level="note")
        return counts
