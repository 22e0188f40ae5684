"""Which sagas of a partition are paused, as far as this worker has read (rule 24).

A trigger that lies behind a pause is held: the worker drops it, and the saga-log gives ``Execute`` when the saga goes
on. What is known here is forgotten with the partition. A worker that comes later and begins behind the pause runs what
it finds; the saga-log takes the outcome as it comes, so nothing goes wrong but that a step has begun in a pause.
"""

from __future__ import annotations

from choreo.broker.port import Message
from choreo.errors import Undecodable
from choreo.messages.codec import decode
from choreo.messages.headers import CE_TYPE
from choreo.messages.records import SagaPaused, SagaResumed, SagaStarted, StepCompleted, TypePaused, TypeResumed

_EVENTS = (
    CE_TYPE[SagaStarted],
    CE_TYPE[StepCompleted],
)  # commands were decided before the pause, so they are carried out


class Pauses:
    """The pauses that are in force in one partition."""

    __slots__ = ("_is_type_paused", "_keys", "_saga")

    def __init__(self, saga: str) -> None:
        self._saga = saga
        self._keys: set[bytes | None] = set()
        self._is_type_paused = False

    def see(self, message: Message) -> None:
        """A record that begins or ends a pause was read. What the saga-log would refuse changes nothing here either."""
        try:
            record = decode(message.key, message.value, message.headers)
        except Undecodable:
            return
        if record.saga != self._saga:
            return
        match record:
            case SagaPaused():
                self._keys.add(message.key)
            case SagaResumed():
                self._keys.discard(message.key)
            case TypePaused():
                self._is_type_paused = True
            case TypeResumed():
                self._is_type_paused = False

    def hold(self, message: Message) -> bool:
        """Whether the record is a trigger that is held."""
        if not self._is_type_paused and message.key not in self._keys:
            return False
        return next((value for name, value in message.headers if name == "ce_type"), None) in _EVENTS
