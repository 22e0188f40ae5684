"""The order saga's processes as chaos meets them: killed, frozen, started and stopped at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from importlib import import_module
from pathlib import Path

from choreo.broker import Broker, TopicPartition
from choreo.broker.kafka import KafkaBroker
from choreo.broker.topics import dead_letter_topic
from choreo.messages.headers import CE_TYPE
from choreo.messages.records import SagaCompensated, SagaCompleted
from choreo.step.route import ce_type_of
from deploy.run_procfile import Processes, free_ports, order_environment, read_procfile
from services.demo.log import TOPIC, partitions_of

REPLICAS_MAX = 4
OUTCOMES = {CE_TYPE[SagaCompleted]: "completed", CE_TYPE[SagaCompensated]: "compensated"}


def services_with_inbox() -> dict[str, bool]:
    """Which of the services record their outcomes in a transaction with their effects."""
    names = [name for name in read_procfile() if name != "saga-log"]
    return {name: getattr(import_module(f"services.{name}").service, "inbox", None) is not None for name in names}


class System:
    """Processes by name: ``payment`` is there from the beginning, ``payment-2`` when it is scaled."""

    def __init__(self, directory: Path, broker_url: str) -> None:
        commands: dict[str, list[str]] = {}
        for name, command in read_procfile().items():
            for number in range(1, REPLICAS_MAX + 1):
                own = name if number == 1 else f"{name}-{number}"
                # Saga-logs side by side have stores of their own: a file serves one.
                store = ["--store", f"sqlite:///{directory / own}.store"] if name == "saga-log" else []
                commands[own] = [*command, *store]
        ports = dict(zip(commands, free_ports(len(commands)), strict=True))
        environment = {**order_environment(directory, broker_url), "CHOREO_LOG_LEVEL": "warning"}
        self.processes = Processes(commands, environment, ports=ports, logs=directory / "logs")
        self.first = tuple(read_procfile())
        self.running: set[str] = set()
        self.frozen: set[str] = set()
        self.died: list[str] = []

    def start(self, *names: str) -> None:
        for name in names:
            self.processes.start(name)
            self.running.add(name)

    def kill(self, name: str) -> None:
        self.running.discard(name)
        self.frozen.discard(name)
        self.processes.kill(name)

    def freeze(self, name: str) -> None:
        self.frozen.add(name)
        os.kill(self.processes.pid(name), signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self.frozen.discard(name)
        os.kill(self.processes.pid(name), signal.SIGCONT)

    async def stop(self, name: str) -> None:
        """End one in order, as a deployment would."""
        self.running.discard(name)
        await asyncio.to_thread(self.processes.stop, name)

    def thaw_all(self) -> None:
        for name in list(self.frozen):
            with contextlib.suppress(ProcessLookupError, KeyError):
                self.thaw(name)

    def restart_the_dead(self) -> None:
        """What an orchestrator does; a process that dies by itself is told in the report."""
        for name in sorted(self.running):
            if not self.processes.alive(name):
                self.died.append(f"{name}{self.processes.tail(name, 6)}")
                self.start(name)

    def free(self) -> list[str]:
        """Who can be killed or frozen now."""
        return sorted(self.running - self.frozen)


class Watch:
    """What the log says while it grows, by headers alone.

    Attributes:
        outcomes: of each saga, the first.
        records: how many of each kind.
        changed_at, outcome_at: when something was read, and when an outcome; by the loop's and the monotonic clock.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.outcomes: dict[str, str] = {}
        self.records: Counter[str] = Counter()
        self.changed_at = self.outcome_at = 0.0
        self.dead_letters = 0

    async def run(self) -> None:
        """Read until cancelled."""
        reader = await self._broker.reader()
        try:
            for tp in await partitions_of(self._broker):
                reader.seek(tp, 0)
                reader.seek(TopicPartition(dead_letter_topic("order"), tp.partition), 0)
            while True:
                for message in await reader.poll(timeout_s=0.2, records_max=5_000):
                    self.changed_at = asyncio.get_running_loop().time()
                    if message.topic != TOPIC:
                        self.dead_letters += 1
                        continue
                    kind = ce_type_of(message.headers) or b"?"
                    self.records[kind.decode()] += 1
                    saga_id = (message.key or b"").decode("utf-8", "replace")
                    if kind in OUTCOMES and saga_id not in self.outcomes:
                        self.outcomes[saga_id], self.outcome_at = OUTCOMES[kind], time.monotonic()
        finally:
            await reader.close()


async def lag(broker: KafkaBroker, groups: list[str]) -> dict[str, int]:
    """Records that each group has not committed."""
    ends = {tp: end for tp, (_, end) in (await broker.offsets(await partitions_of(broker))).items()}
    found = {}
    for group in groups:
        info = await broker.group_info(group)
        found[group] = sum(end - (info.committed[tp].offset if tp in info.committed else 0) for tp, end in ends.items())
    return found


async def replay_topic_into_itself(broker: Broker) -> int:
    """Append every record of the topic once more, as a producer that repeats itself would; says how many."""
    ends = {tp: end for tp, (_, end) in (await broker.offsets(await partitions_of(broker))).items()}
    producer = await broker.producer()
    reader = await broker.reader()
    copied = 0
    try:
        for tp in ends:
            reader.seek(tp, 0)
        while any(reader.position(tp) < end for tp, end in ends.items()):
            messages = [m for m in await reader.poll(timeout_s=1.0, records_max=1_000) if m.offset < ends[m.tp]]
            sends = [
                producer.send(TOPIC, key=(each.key or b"").decode(), value=each.value, headers=each.headers)
                for each in messages
            ]
            await asyncio.gather(*sends)
            copied += len(messages)
    finally:
        await reader.close()
        await producer.close()
    return copied
