"""The records that begin and end pauses (rule 24)."""

from __future__ import annotations

from choreo.messages.base import Record
from choreo.messages.values import RunId, Text


class PauseRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What all of them have.

    Attributes:
        request: drawn once for each call.
        operator: who.
        reason: why, for the audit.
    """

    request: RunId
    operator: Text = ""
    reason: Text = ""


class SagaPaused(PauseRecord, frozen=True, kw_only=True, omit_defaults=True, tag="saga_paused"):
    """An operator holds a saga: nothing is decided for it, and no further step begins, until ``SagaResumed``.

    Attributes:
        request: drawn once for each call.
        operator: who.
        reason: why, for the audit.
    """

    @property
    def id(self) -> str:
        return f"{self.saga_id}/pause/{self.request}"


class SagaResumed(PauseRecord, frozen=True, kw_only=True, omit_defaults=True, tag="saga_resumed"):
    """An operator lets a paused saga go on.

    Attributes:
        request: drawn once for each call.
        operator: who.
        reason: why, for the audit.
    """

    @property
    def id(self) -> str:
        return f"{self.saga_id}/resume/{self.request}"


class TypePaused(PauseRecord, frozen=True, kw_only=True, omit_defaults=True, tag="type_paused"):
    """An operator holds all sagas of a type, those too that start later; one in each partition.

    It belongs to no saga: ``saga_id`` is a key of the partition's (``ids.partition_key``).

    Attributes:
        request: drawn once for each call.
        operator: who.
        reason: why, for the audit.
    """

    @property
    def id(self) -> str:
        return f"{self.saga_id}/pause/{self.request}"


class TypeResumed(PauseRecord, frozen=True, kw_only=True, omit_defaults=True, tag="type_resumed"):
    """An operator lets all sagas of a type go on, but for those that are paused themselves. See ``TypePaused``.

    Attributes:
        request: drawn once for each call.
        operator: who.
        reason: why, for the audit.
    """

    @property
    def id(self) -> str:
        return f"{self.saga_id}/resume/{self.request}"
