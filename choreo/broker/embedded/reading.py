"""The port's consumers and readers, for any log that is embedded.

``_Cursor`` knows the position in each partition; ``EmbeddedReader`` is a cursor and nothing else;
``EmbeddedConsumer`` keeps a cursor on what the group gives it. A consumer has no task of its own: it keeps its
lease from within ``poll``, and from beside a listener as long as that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from typing import TypeVar

from choreo.broker.embedded.group import Standing
from choreo.broker.embedded.log import EmbeddedLog
from choreo.broker.embedded.rules import check_metadata
from choreo.broker.port import AssignmentListener, Committed, Message, TopicPartition
from choreo.errors import BrokerError, BrokerUnavailable, CommitRefused

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OUTAGE_PAUSE_S = 0.2  # between looks at a log that cannot be used


class _Outage(Exception):  # noqa: N818 - not an error: poll rides it out
    """The log cannot be used now. Apart from ``BrokerUnavailable``, which a listener may raise for its own reasons."""


class _Cursor:
    """Positions in partitions, and the records that come next."""

    def __init__(self, log: EmbeddedLog) -> None:
        self.positions: dict[TopicPartition, int] = {}
        self.paused: set[TopicPartition] = set()
        self._log = log
        self._turn = 0

    def behind(self) -> dict[TopicPartition, int]:
        """The positions at which there is something to read, as far as is known.

        Each time they begin with another partition, so that a busy one does not starve the others.
        """
        behind = [
            (tp, position)
            for tp, position in self.positions.items()
            if position != self._log.end_known(tp) and tp not in self.paused
        ]
        if len(behind) > 1:
            self._turn = (self._turn + 1) % len(behind)
            behind = behind[self._turn :] + behind[: self._turn]
        return dict(behind)

    async def read(self, behind: Mapping[TopicPartition, int], records_max: int) -> Sequence[Message]:
        batch = await self._log.read(behind, records_max)
        self.positions.update(batch.positions)
        return batch.messages


class EmbeddedReader:
    """Reads partitions on its own."""

    def __init__(self, log: EmbeddedLog) -> None:
        self._log = log
        self._cursor = _Cursor(log)
        self.closed = False

    async def poll(self, *, timeout_s: float, records_max: int = 500) -> Sequence[Message]:
        if self.closed:
            raise BrokerError("the reader is closed")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        await asyncio.sleep(0)  # a loop around poll must let others run, whatever the log is made of
        while not self.closed:
            revision = self._log.changes.revision
            messages: Sequence[Message] = ()
            try:
                if behind := self._cursor.behind():
                    messages = await self._cursor.read(behind, records_max)
            except BrokerUnavailable as error:
                logger.warning("reading goes on when the log can be used again: %s", error)
                await asyncio.sleep(min(_OUTAGE_PAUSE_S, max(deadline - loop.time(), 0)))
            left_s = deadline - loop.time()
            if messages or left_s <= 0:
                return messages
            await self._log.changes.wait(revision, left_s, self._cursor.positions)
        return ()

    def worked_on(self, places: Sequence[tuple[TopicPartition, int]]) -> None:
        """Nobody is woken in vain here: there is one process."""

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._cursor.positions[tp] = offset

    def position(self, tp: TopicPartition) -> int:
        return self._cursor.positions[tp]

    async def close(self) -> None:
        self.closed = True
        self._log.changes.notify()


class EmbeddedConsumer:
    """A member of a consumer group."""

    def __init__(
        self,
        log: EmbeddedLog,
        group: str,
        topics: Collection[str],
        on_assigned: AssignmentListener,
        on_revoked: AssignmentListener,
    ) -> None:
        self._log = log
        self._group = group
        self._topics = tuple(sorted(set(topics)))
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._cursor = _Cursor(log)
        self._member: str | None = None  # our name in the group; None until we have joined, and after the lease lapsed
        self._unreleased: frozenset[TopicPartition] = frozenset()  # revoked here, and the group does not know yet
        self._generation_seen = -1
        self._heartbeat_due = 0.0
        self.closed = False

    async def join(self) -> None:
        """Become a member; the partitions come with ``poll``. Raises ``TopicError`` if a topic does not exist."""
        self._member = await self._log.join(self._group, self._topics)

    async def poll(self, *, timeout_s: float, records_max: int = 500) -> Sequence[Message]:
        if self.closed:
            raise BrokerError(f"the consumer of {self._group} is closed")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        await asyncio.sleep(0)  # a loop around poll must let others run, whatever the log is made of
        messages: Sequence[Message] = ()
        while not self.closed:
            revision = self._log.changes.revision
            try:
                if self._member is None or self._has_news() or loop.time() >= self._heartbeat_due:
                    await self._keep_membership()
                if not self.closed and (behind := self._cursor.behind()):
                    messages = await _riding_out(self._cursor.read(behind, records_max))
            except _Outage as outage:
                logger.warning("consumer of %s goes on when the log can be used again: %s", self._group, outage)
                await asyncio.sleep(min(_OUTAGE_PAUSE_S, max(deadline - loop.time(), 0)))
            left_s = deadline - loop.time()
            if messages or left_s <= 0:
                return messages
            pause_s = min(left_s, max(self._heartbeat_due - loop.time(), 0))
            await self._log.changes.wait(revision, pause_s, self._cursor.positions)
        return ()

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._cursor.positions)

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        check_metadata(offsets)
        if self._member is None:
            raise CommitRefused(f"the session in group {self._group} has ended, its partitions are with others")
        await self._log.commit(self._group, self._member, offsets)

    async def committed(self, tp: TopicPartition) -> Committed | None:
        return (await self._log.committed(self._group, (tp,))).get(tp)

    async def end_offset(self, tp: TopicPartition) -> int:
        return (await self._log.offsets((tp,)))[tp][1]

    def worked_on(self, places: Sequence[tuple[TopicPartition, int]]) -> None:
        """Nobody is woken in vain here: there is one process."""

    def seek(self, tp: TopicPartition, offset: int) -> None:
        if tp in self._cursor.positions:  # otherwise its next owner decides where to read on
            self._cursor.positions[tp] = offset

    def pause(self, tps: Collection[TopicPartition]) -> None:
        self._cursor.paused.update(self.assignment().intersection(tps))

    def resume(self, tps: Collection[TopicPartition]) -> None:
        self._cursor.paused.difference_update(tps)

    def lag(self, tp: TopicPartition) -> int | None:
        position, end = self._cursor.positions.get(tp), self._log.end_known(tp)
        return None if position is None or end is None else max(end - position, 0)

    async def close(self) -> None:
        if self.closed:
            return
        member = self._member
        self.abandon()
        if member is not None:
            try:
                await self._log.leave(self._group, member)
            except BrokerError as error:
                logger.warning("group %s will notice by the lapse of the lease that we left: %s", self._group, error)

    def abandon(self) -> None:
        """Stop as if the process had died: nothing is released, and the group notices when the lease lapses."""
        self.closed = True
        self._member = None
        self._log.changes.notify()

    def _has_news(self) -> bool:
        return self._log.generation_known(self._group) > self._generation_seen

    async def _keep_membership(self) -> None:
        """Renew the lease, and follow the group when its generation has grown."""
        if self._unreleased and self._member is not None:
            await self._release()
        standing = await self._sync()
        if standing is None and not self.closed:
            await self._lose_everything()
            await _riding_out(self.join())
            standing = await self._sync()
        if standing is None or self.closed:
            return
        if standing.leaving:
            if held := standing.leaving.intersection(self._cursor.positions):
                async with self._keeping_the_lease():
                    await self._on_revoked(sorted(held))
                self._forget(held)
            # What a heartbeat has claimed for us, and another member is to get before we have begun with it, is
            # released as well: nobody would serve it otherwise.
            self._unreleased = standing.leaving
            await self._release()
        if gained := standing.owned.difference(self._cursor.positions, standing.leaving):
            await self._begin(gained)
        self._generation_seen = standing.generation

    async def _sync(self) -> Standing | None:
        if self._member is None:
            return None
        standing = await _riding_out(self._log.sync(self._group, self._member))
        self._heartbeat_due = asyncio.get_running_loop().time() + self._log.heartbeat_s
        return standing

    async def _release(self) -> None:
        if self._member is not None:
            await _riding_out(self._log.release(self._group, self._member, self._unreleased))
        self._unreleased = frozenset()

    async def _lose_everything(self) -> None:
        lost = self.assignment()
        self._member = None
        self._unreleased = frozenset()
        self._forget(lost)
        if lost:
            await self._on_revoked(sorted(lost))

    async def _begin(self, gained: frozenset[TopicPartition]) -> None:
        places = await _riding_out(self._log.committed(self._group, gained))
        for tp in sorted(gained):
            self._cursor.positions[tp] = places[tp].offset if tp in places else 0
        self._cursor.paused.clear()
        async with self._keeping_the_lease():
            await self._on_assigned(sorted(gained))

    def _forget(self, tps: Collection[TopicPartition]) -> None:
        for tp in tps:
            del self._cursor.positions[tp]
        self._cursor.paused.clear()

    @contextlib.asynccontextmanager
    async def _keeping_the_lease(self) -> AsyncIterator[None]:
        """Heartbeats while a listener runs: it may read a whole partition before it is ready."""
        beating = asyncio.create_task(self._beat(), name=f"heartbeat/{self._group}")
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.wait((beating,))

    async def _beat(self) -> None:
        while self._member is not None:
            await asyncio.sleep(self._log.heartbeat_s)
            if self._member is not None:
                with contextlib.suppress(_Outage):
                    await self._sync()


async def _riding_out(question: Awaitable[T]) -> T:
    try:
        return await question
    except BrokerUnavailable as error:
        raise _Outage(str(error)) from error
