"""Trails of sagas, kept for who looks at the same saga again and again.

A page that shows a running saga asks for its history after every change. The first time its partition is read from
its start; from then on only what is new.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from choreo.audit import Trail
from choreo.broker.port import Broker, TopicPartition
from choreo.broker.registry import Registry
from choreo.broker.topics import saga_topic
from choreo.errors import SagaNotFound
from choreo.saga_log.replay import records

KEPT_MAX = 64


class Kept:
    """A trail as far as it was read, and where to go on."""

    def __init__(self, trail: Trail, offset: int) -> None:
        self.trail = trail
        self.offset = offset
        self.lock = asyncio.Lock()


class Trails:
    """Reads trails, and keeps those that were asked for last."""

    def __init__(self, broker: Broker, registry: Registry) -> None:
        self._broker = broker
        self._registry = registry
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()

    async def read(self, saga: str, saga_id: str) -> Trail:
        """All that the log has of a saga now.

        Raises:
            SagaNotFound: the log has no record under this id.
            BrokerUnavailable: the log cannot be read.
        """
        topic = saga_topic(saga)
        tp = TopicPartition(topic, await self._broker.partition_of(topic, saga_id))
        first, end = (await self._broker.offsets([tp]))[tp]
        await self._registry.refresh()  # after the end is read: a contract is published before its first saga
        key = (saga, saga_id)
        kept = self._kept.get(key)
        if kept is None or kept.offset < first or kept.trail.problems:  # what could not be folded may be by now
            kept = Kept(Trail(saga, saga_id, tp, self._registry.get), first)
        async with kept.lock:
            async for messages in records(self._broker, tp, kept.offset, end):
                kept.trail.take_all(messages)
            kept.offset = max(kept.offset, end)
        if not kept.trail.facts:
            raise SagaNotFound(saga_id, f"no saga {saga_id!r} in the log of {saga!r} (any more)")
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return kept.trail
