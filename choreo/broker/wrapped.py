"""A broker around a broker, that does something to records on their way in and out.

What is common to ``signed`` and ``encrypted``: making producers, consumers and readers that pass every record through
two methods of the wrapper. All else is the inner broker's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Sequence
from typing import Any

from choreo.broker.port import Appended, AssignmentListener, Broker, Consumer, Headers, Message, Producer, Reader


class Changed(Message, frozen=True, gc=False):
    """A record that a wrapper delivers otherwise than it stands in the log.

    Attributes:
        written: as it stands there.
    """

    written: Message


def as_written(message: Message) -> Message:
    """A record as it stands in the log, whatever a wrapper has made of it."""
    return message.written if isinstance(message, Changed) else message


class WrappedBroker:
    """Passes records through ``outgoing`` and ``incoming``.

    Args:
        inner: the broker.
    """

    def __init__(self, inner: Broker) -> None:
        self._inner = inner
        self.url = inner.url

    def outgoing(self, topic: str, key: str, value: bytes, headers: Headers) -> tuple[bytes, Headers]:
        """Value and headers as they are appended."""
        raise NotImplementedError

    def incoming(self, message: Message) -> Message:
        """A record as its reader gets it."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        """All that neither sends nor delivers records is the inner broker's."""
        return getattr(self._inner, name)

    async def producer(self) -> Producer:
        return _Sending(await self._inner.producer(), self)

    async def consumer(
        self,
        group: str,
        topics: Collection[str],
        *,
        on_assigned: AssignmentListener,
        on_revoked: AssignmentListener,
    ) -> Consumer:
        inner = await self._inner.consumer(group, topics, on_assigned=on_assigned, on_revoked=on_revoked)
        return _Delivering(inner, self)

    async def reader(self) -> Reader:
        return _Delivering(await self._inner.reader(), self)

    async def close(self) -> None:
        await self._inner.close()


class _Sending:
    def __init__(self, inner: Producer, wrapper: WrappedBroker) -> None:
        self._inner = inner
        self._outgoing = wrapper.outgoing

    def send(self, topic: str, *, key: str, value: bytes, headers: Headers = ()) -> Awaitable[Appended]:
        value, headers = self._outgoing(topic, key, value, headers)
        return self._inner.send(topic, key=key, value=value, headers=headers)

    async def close(self) -> None:
        await self._inner.close()


class _Delivering:
    """A consumer or a reader."""

    def __init__(self, inner: Consumer | Reader, wrapper: WrappedBroker) -> None:
        self._inner = inner
        self._incoming = wrapper.incoming

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def poll(self, *, timeout_s: float, records_max: int = 500) -> Sequence[Message]:
        messages = await self._inner.poll(timeout_s=timeout_s, records_max=records_max)
        return [self._delivered(message) for message in messages]

    def _delivered(self, message: Message) -> Message:
        ours = self._incoming(message)
        if ours is message:
            return message
        return Changed(
            ours.topic,
            ours.partition,
            ours.offset,
            ours.timestamp_ms,
            ours.key,
            ours.value,
            ours.headers,
            as_written(message),
        )
