"""One Kafka cluster: what everything else here is opened from."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code
from aiokafka.structs import TopicPartition as KafkaTopicPartition

from choreo.broker.kafka.consumer import STOP_S, KafkaConsumer, new_consumer, started, stopped
from choreo.broker.kafka.errors import translated, translating
from choreo.broker.kafka.fetching import Quarantine, log_quarantined
from choreo.broker.kafka.groups import COORDINATOR_MOVES, look_at_group
from choreo.broker.kafka.internals import refusal
from choreo.broker.kafka.partitioner import Partitioner
from choreo.broker.kafka.producer import KafkaProducer, SupervisedProducer
from choreo.broker.kafka.reader import KafkaReader
from choreo.broker.kafka.settings import KafkaSettings
from choreo.broker.kafka.topics import config_of_new, differences, info_of
from choreo.broker.port import AssignmentListener, GroupInfo, TopicInfo, TopicPartition, TopicSpec
from choreo.errors import BrokerUnavailable, ConfigurationError, TopicError

OPEN_BACKOFF_S = 0.2
NO_ERROR, UNKNOWN_TOPIC, TOPIC_EXISTS = 0, 3, 36
CLUSTER_DEFAULT = -1


class KafkaBroker:
    """Apache Kafka, by way of aiokafka. Use ``open``.

    Attributes:
        url: as it was given.
        settings: what it says.
    """

    def __init__(self, url: str, settings: KafkaSettings, quarantine: Quarantine) -> None:
        self.url = url
        self.settings = settings
        self._quarantine = quarantine
        self._admin: AIOKafkaAdminClient | None = None
        self._offset_client: AIOKafkaConsumer | None = None
        self._offset_lock = asyncio.Lock()
        self._producer: SupervisedProducer | None = None
        self._producer_lock = asyncio.Lock()
        self._partitions: dict[str, int] = {}
        self._partitioner = Partitioner()
        self._partition_locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._asking: Counter[str] = Counter()
        self._opened: list[KafkaConsumer | KafkaReader] = []

    @classmethod
    async def open(cls, url: str, *, quarantine: Quarantine = log_quarantined) -> KafkaBroker:
        """Connect, trying for ``open_timeout_ms``.

        Args:
            url: ``kafka://host:port[,host:port…][?option=value…]``; the options are those of ``KafkaSettings``.
            quarantine: told of every record that cannot be read and is passed over; logs an error by default.

        Raises:
            ConfigurationError: the URL is wrong, or who answers there refuses us, or shows no certificate to trust.
            BrokerUnavailable: nobody answers there.
        """
        broker = cls(url, KafkaSettings.parse(url), quarantine)
        deadline = time.monotonic() + broker.settings.open_timeout_ms / 1_000
        while True:
            admin = AIOKafkaAdminClient(
                **broker.settings.connection(), request_timeout_ms=broker.settings.request_timeout_ms
            )
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await admin.start()
            except (KafkaError, OSError, TimeoutError) as error:
                await admin.close()
                await broker._complain_if_refused()
                if time.monotonic() + OPEN_BACKOFF_S > deadline:
                    raise BrokerUnavailable(
                        f"no Kafka broker answers at {url} (tried for {broker.settings.open_timeout_ms} ms)"
                    ) from error
                await asyncio.sleep(OPEN_BACKOFF_S)
            except BaseException:
                await admin.close()
                raise
            else:
                broker._admin = admin
                return broker

    async def _complain_if_refused(self) -> None:
        """Tell a wrong password or certificate as what it is, not as a broker that is away.

        Raises:
            ConfigurationError: the first broker that has something against us says what.
        """
        if not self.settings.security.security:
            return
        for address in self.settings.bootstrap:
            host, _, port = address.rpartition(":")
            error = await refusal(
                self.settings.connection(), host.strip("[]"), int(port), self.settings.request_timeout_ms
            )
            if error is not None:
                user = self.settings.security.username or self.settings.security.token_client_id
                raise ConfigurationError(
                    f"Kafka at {address} and we{f' as {user!r}' if user else ''} do not trust each other: {error}"
                ) from error

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        found = await self._describe()
        missing = [spec for spec in specs if spec.name not in found]
        if missing:
            await self._create(missing)
            found = await self._described_when_led({spec.name for spec in missing})
        configs = await self._configs([spec.name for spec in specs])
        wrong = [
            difference
            for spec in specs
            for difference in differences(
                spec,
                len(found[spec.name]["partitions"]),
                len(found[spec.name]["partitions"][0]["replicas"]),
                configs.get(spec.name, {}),
            )
        ]
        if wrong:
            raise TopicError(f"{len(wrong)} difference(s) at {self.url}:" + "".join(f"\n  - {line}" for line in wrong))

    async def partitions(self, topic: str) -> int:
        # All topics are asked for: a request that names a missing one creates it on clusters that are set up so.
        found = await self._describe()
        if topic not in found:
            raise TopicError(f"there is no topic {topic!r} at {self.url}")
        return len(found[topic]["partitions"])

    async def topics(self) -> frozenset[str]:
        return frozenset(await self._describe())

    async def partition_of(self, topic: str, key: str) -> int:
        return await self._partition_of(topic, key.encode())

    async def offsets(self, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, tuple[int, int]]:
        asked = [KafkaTopicPartition(*tp) for tp in tps]
        with translating(f"offsets at {self.url}"):
            client = await self._offsets_from()
            for tp in asked:
                if tp.partition >= await self._known_partitions(tp.topic):
                    raise TopicError(f"topic {tp.topic!r} at {self.url} has no partition {tp.partition}")
            if not asked:
                await client.topics()  # whoever asks for nothing wants to know whether the broker answers
                return {}
            async with asyncio.timeout(self.settings.request_timeout_ms / 1_000):
                earliest, ends = await asyncio.gather(client.beginning_offsets(asked), client.end_offsets(asked))
        return {TopicPartition(*tp): (earliest[tp], ends[tp]) for tp in asked}

    async def topic_info(self, topic: str) -> TopicInfo:
        found = await self._describe()
        if topic not in found:
            raise TopicError(f"there is no topic {topic!r} at {self.url}")
        configs = await self._configs([topic])
        return info_of(topic, found[topic]["partitions"], configs.get(topic, {}))

    async def group_info(self, group: str) -> GroupInfo:
        with translating(f"group {group} at {self.url}"):
            async with asyncio.timeout(self.settings.request_timeout_ms / 1_000):
                while True:
                    try:
                        return await look_at_group(self._connected(), group)
                    except COORDINATOR_MOVES:
                        await asyncio.sleep(OPEN_BACKOFF_S)

    async def producer(self) -> KafkaProducer:
        async with self._producer_lock:
            if self._producer is None:
                producer = SupervisedProducer(self.settings, self.url, self._partition_of, self._partition_now)
                with translating(f"producer at {self.url}"):
                    await producer.start()
                self._producer = producer
        return KafkaProducer(self._producer)

    async def consumer(
        self,
        group: str,
        topics: Collection[str],
        *,
        on_assigned: AssignmentListener,
        on_revoked: AssignmentListener,
    ) -> KafkaConsumer:
        for topic in topics:
            await self.partitions(topic)
        consumer = KafkaConsumer(
            self.settings,
            group,
            topics,
            on_assigned=on_assigned,
            on_revoked=on_revoked,
            offsets=self.offsets,
            quarantine=self._quarantine,
            partitioner=self._partitioner,
        )
        with translating(f"group {group} at {self.url}"):
            await consumer.start()
        self._keep(consumer)
        return consumer

    async def reader(self) -> KafkaReader:
        reader = KafkaReader(
            self.settings, offsets=self.offsets, quarantine=self._quarantine, partitioner=self._partitioner
        )
        with translating(f"reader at {self.url}"):
            await reader.start()
        self._keep(reader)
        return reader

    async def close(self) -> None:
        opened, self._opened = self._opened, []
        await asyncio.gather(*(each.close() for each in opened))
        if self._producer is not None:
            await self._producer.close()
        if self._offset_client is not None:
            await stopped(self._offset_client, STOP_S)
            self._offset_client = None
        if self._admin is not None:
            await self._admin.close()
            self._admin = None

    def _keep(self, opened: KafkaConsumer | KafkaReader) -> None:
        """For ``close``. A client may open a reader for each question, so those that are closed are forgotten."""
        self._opened = [*(each for each in self._opened if not each.closed), opened]

    async def _partition_of(self, topic: str, key: bytes) -> int:
        return self._partitioner.partition_of(topic, key, await self._known_partitions(topic))

    def _partition_now(self, topic: str, key: bytes) -> int | None:
        """The same without a wait, if it can be said so; ``None`` also while others wait for it, who came first."""
        count = self._partitions.get(topic)
        if count is None or self._asking.get(topic):
            return None
        return self._partitioner.partition_of(topic, key, count)

    async def _known_partitions(self, topic: str) -> int:
        """The number of partitions, asked for once: it is fixed for the life of the topic."""
        # Through the lock even when the answer is known, so that sends keep the order of their calls: those who wait
        # for the first answer go on before those who come after it.
        self._asking[topic] += 1
        try:
            async with self._partition_locks[topic]:
                if topic not in self._partitions:
                    self._partitions[topic] = await self.partitions(topic)
                return self._partitions[topic]
        finally:
            self._asking[topic] -= 1

    async def _offsets_from(self) -> AIOKafkaConsumer:
        async with self._offset_lock:
            if self._offset_client is None:
                # Uncommitted, because the question is where the next record will be, not what may be read by now.
                client = new_consumer(
                    self.settings,
                    isolation_level="read_uncommitted",
                    request_timeout_ms=self.settings.request_timeout_ms,
                )
                await started(client, self.settings.open_timeout_ms / 1_000)
                self._offset_client = client
            return self._offset_client

    async def _describe(self) -> Mapping[str, Any]:
        with translating(f"topics at {self.url}"):
            described = await self._connected().describe_topics()
        return {topic["topic"]: topic for topic in described if topic["error_code"] == NO_ERROR}

    async def _described_when_led(self, names: Collection[str]) -> Mapping[str, Any]:
        """Brokers hear of a new topic one after the other; it is of use when all its partitions have a leader."""
        deadline = time.monotonic() + self.settings.request_timeout_ms / 1_000
        while True:
            found = await self._describe()
            if all(name in found and all(p["leader"] >= 0 for p in found[name]["partitions"]) for name in names):
                return found
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"new topics at {self.url} have no leaders yet: {', '.join(sorted(names))}")
            await asyncio.sleep(0.05)

    async def _create(self, specs: Sequence[TopicSpec]) -> None:
        topics = [
            NewTopic(
                spec.name,
                spec.partitions,
                CLUSTER_DEFAULT if spec.replication_factor is None else spec.replication_factor,
                # aiokafka wants replicas to be named where the factor is left to the cluster; none is an answer, too.
                replica_assignments={} if spec.replication_factor is None else None,
                topic_configs=config_of_new(spec),
            )
            for spec in specs
        ]
        with translating(f"new topics at {self.url}"):
            admin = self._connected()
            if admin._client.cluster.controller is None:  # noqa: SLF001 -- aiokafka would stumble over it
                raise BrokerUnavailable(f"new topics at {self.url}: the cluster has no controller at the moment")
            response = await admin.create_topics(topics)
        failed = [
            f"{name}: {for_code(code).__name__}: {message}"
            for name, code, message in response.topic_errors
            if code not in (NO_ERROR, TOPIC_EXISTS)  # somebody was quicker; it is verified like any other
        ]
        if failed:
            raise TopicError(f"topics could not be created at {self.url}: {'; '.join(failed)}")

    async def _configs(self, names: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        with translating(f"topic settings at {self.url}"):
            responses = await self._connected().describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
            )
        configs: dict[str, dict[str, str]] = {}
        for response in responses:
            for code, message, _, name, entries in response.resources:
                if code != NO_ERROR:
                    raise translated(for_code(code)(message), f"settings of topic {name!r}")
                configs[name] = {entry[0]: entry[1] for entry in entries}
        return configs

    def _connected(self) -> AIOKafkaAdminClient:
        if self._admin is None:
            raise BrokerUnavailable(f"the broker object for {self.url} is closed")
        return self._admin
