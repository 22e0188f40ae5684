"""Histories of sagas, folded from the log, and kept for who looks at the same saga again and again.

A page that shows a running saga asks for its history after every change. The first time its partition is read from
its start; from then on only what is new.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

import msgspec

from choreo.broker.port import Broker, Message, TopicPartition
from choreo.broker.registry import Registry
from choreo.broker.topics import saga_topic
from choreo.contract.saga import Saga
from choreo.core import SagaState, fold
from choreo.core.status import status_of
from choreo.messages.codec import encode
from choreo.messages.headers import JSON
from choreo.saga_log.intake import Refused, Unheld, contract_of, read_entry
from choreo.saga_log.replay import Line, records
from choreo.web.shapes import History, HistoryLine, tag_of

KEPT_MAX = 64


class Told:
    """One saga's history as far as it was read."""

    def __init__(self, saga_id: str) -> None:
        self.state = SagaState(saga_id)
        self.contract: Saga | None = None
        self.lines: list[tuple[Message, Line]] = []
        self.offset: int | None = None
        self.lock = asyncio.Lock()


class Histories:
    """Reads and keeps histories."""

    def __init__(self, broker: Broker, registry: Registry) -> None:
        self._broker = broker
        self._registry = registry
        self._kept: OrderedDict[tuple[str, str], Told] = OrderedDict()

    async def read(self, saga: str, saga_id: str) -> Told | None:
        """A saga's history as the log has it now; ``None`` if there is none.

        Raises:
            BrokerUnavailable: the log cannot be read.
        """
        key = (saga, saga_id)
        told = self._kept.get(key) or Told(saga_id)
        async with told.lock:
            topic = saga_topic(saga)
            if topic not in await self._broker.topics():
                return None
            tp = TopicPartition(topic, await self._broker.partition_of(topic, saga_id))
            first, end = (await self._broker.offsets([tp]))[tp]
            await self._registry.refresh()
            wanted = saga_id.encode()
            async for messages in records(self._broker, tp, max(first, told.offset or 0), end):
                for message in messages:
                    if message.key == wanted:
                        self._take(told, saga, message)
            told.offset = end
        if not told.lines:
            return None
        self._kept[key] = told
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return told

    def _take(self, told: Told, saga: str, message: Message) -> None:
        entry = read_entry(message, saga)
        if isinstance(entry, Refused):
            return
        contract = contract_of(self._registry.get, told.state, entry.record)
        if isinstance(contract, Unheld | Refused):
            return
        folded = fold(contract, told.state, entry)
        told.state, told.contract = folded.state, contract
        told.lines.append((message, Line(entry, folded.note, folded.owed)))


def history_of(told: Told) -> History:
    """As the API gives it."""
    assert told.contract is not None, "a history that was read has a contract"
    return History(
        status=status_of(told.contract, told.state),
        records=tuple(_line(message, line) for message, line in told.lines),
    )


def _line(message: Message, line: Line) -> HistoryLine:
    record = line.entry.record
    return HistoryLine(
        partition=message.partition,
        offset=message.offset,
        at_ms=message.timestamp_ms,
        type=tag_of(type(record)),
        step=getattr(record, "step", None),
        round=getattr(record, "round", 1),
        record=_plain(record, line.entry.content_type),
        note=line.note,
        decided=tuple(f"{one.kind} {one.step}".rstrip() for one in line.owed),
    )


def _plain(record: Any, content_type: str) -> Any:
    encoded = encode(record, content_type=content_type)
    return msgspec.json.decode(encoded) if content_type == JSON else msgspec.msgpack.decode(encoded)
