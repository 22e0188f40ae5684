"""Members of groups that poll in the background, and short ways to wait, read and send."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from choreo.broker import Broker, Committed, Consumer, Message, Reader, TopicPartition
from choreo.errors import CommitRefused

DEADLINE_S = 60  # for things that happen at once in a good adapter; only a broken one gets here


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def all_of(topic: str, partitions: int = 4) -> frozenset[TopicPartition]:
    return frozenset(TopicPartition(topic, partition) for partition in range(partitions))


async def until(condition: Callable[[], bool], *members: Member | MemberProcess) -> None:
    """Wait for the condition, as long as the members are well."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            for member in members:
                member.raise_if_failed()
            await asyncio.sleep(0.01)


async def collect(source: Consumer | Reader, count: int) -> list[Message]:
    """The next ``count`` records, or more if the last poll brought more."""
    messages: list[Message] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(messages) < count:
            messages += await source.poll(timeout_s=0.5)
    return messages


async def ignore(_: Collection[TopicPartition]) -> None:
    """A listener that has nothing to do."""


async def consume(broker: Broker, group: str, topic: str) -> Consumer:
    """A consumer without listeners, for one task."""
    return await broker.consumer(group, [topic], on_assigned=ignore, on_revoked=ignore)


class Member:
    """A consumer that polls in a task of its own and commits what it has when it must give up a partition."""

    consumer: Consumer

    def __init__(
        self,
        *,
        commits: bool = True,
        before_release: Callable[[Collection[TopicPartition]], Awaitable[None]] | None = None,
        after_assign: Callable[[Consumer, Collection[TopicPartition]], Awaitable[None]] | None = None,
    ) -> None:
        self.received: list[Message] = []
        self.assigned: list[TopicPartition] = []
        self.revoked: list[TopicPartition] = []
        self._commits = commits
        self._before_release = before_release
        self._after_assign = after_assign
        self._places: dict[TopicPartition, Committed] = {}
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self, broker: Broker, group: str, topic: str) -> None:
        self.consumer = await broker.consumer(
            group, [topic], on_assigned=self._on_assigned, on_revoked=self._on_revoked
        )
        self._task = asyncio.create_task(self._run(), name=f"member/{group}")

    def assignment(self) -> frozenset[TopicPartition]:
        return self.consumer.assignment()

    async def leave(self) -> None:
        await self._stop()
        await self.consumer.close()

    async def die(self) -> None:
        """Only where the log is in this process."""
        await self._stop()
        self.consumer.abandon()  # type: ignore[attr-defined]

    def raise_if_failed(self) -> None:
        if self._task is not None and self._task.done():
            self._task.result()

    async def _stop(self) -> None:
        self._stopping = True
        if self._task is not None:
            await self._task
            self._task = None

    async def _run(self) -> None:
        while not self._stopping:
            messages = await self.consumer.poll(timeout_s=0.2)
            self.received += messages
            for message in messages:
                self._places[message.tp] = Committed(message.offset + 1)

    async def _on_assigned(self, tps: Collection[TopicPartition]) -> None:
        self.assigned += tps
        if self._after_assign is not None:
            await self._after_assign(self.consumer, tps)

    async def _on_revoked(self, tps: Collection[TopicPartition]) -> None:
        places = {tp: self._places.pop(tp) for tp in tps if tp in self._places}
        if self._before_release is not None:
            await self._before_release(tps)
        if self._commits and places:
            try:
                await self.consumer.commit(places)
            except CommitRefused:
                self._places.clear()  # lost, not revoked: the next owner gets the records again
        self.revoked += tps


class MemberProcess:
    """A member in a process of its own, which tells its assignment and what it receives.

    Attributes:
        received: values, in the order in which they came. What it had received, but not told, when it was killed is
            not among them.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.received: list[str] = []
        self._process = process
        self._assignment: frozenset[TopicPartition] = frozenset()
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, url: str, group: str, topic: str) -> MemberProcess:
        return cls(await start_script("member_process.py", url, group, topic))

    def assignment(self) -> frozenset[TopicPartition]:
        return self._assignment

    def raise_if_failed(self) -> None:
        if self._process.returncode is not None:
            raise AssertionError(f"the member's process has ended with {self._process.returncode}")

    async def leave(self) -> None:
        """Close the standard input, upon which the process leaves the group and ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._listening
        assert await self._process.wait() == 0

    async def die(self) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        await self._listening

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told = json.loads(line)
            self._assignment = frozenset(TopicPartition(*tp) for tp in told["assignment"])
            self.received += told.get("received", ())


async def start_script(name: str, *arguments: str) -> asyncio.subprocess.Process:
    """Run a program of this directory, with pipes to its standard input and output."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name(name)), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


Mortal = Member | MemberProcess
