"""What a saga and the saga that is one of its steps say to each other (rule 19).

The parent's saga-log writes ``SagaStarted``, ``CancelRequested`` and ``UndoRequested`` into the child's topic. The
child's saga-log answers in the parent's topic with the records that a service would write about the step.
"""

from __future__ import annotations

import msgspec

from choreo.messages.base import Record
from choreo.messages.values import Counter, Millis, Round, SagaId, SagaName, StartHash, StepName, Undone


class Parent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The step of another saga that a saga is.

    Attributes:
        saga, version, saga_id, start: of that saga, as in its records.
        step, round: which step, in which round.
        due_ms: due of that saga, which bounds this one's.
    """

    saga: SagaName
    version: Round
    saga_id: SagaId
    start: StartHash
    step: StepName
    round: Round
    due_ms: Millis

    def is_same(self, other: Parent | None) -> bool:
        """Whether both name one step. Its due is none of its name: it moves when that saga is paused."""
        return other is not None and msgspec.structs.replace(other, due_ms=self.due_ms) == self


class UndoRequested(Record, frozen=True, kw_only=True, omit_defaults=True, tag="undo_requested"):
    """The parent wants this saga undone: not to be begun, cancelled, or what it completed undone.

    Attributes:
        generation: of the parent's ``Compensate``; the answer names it.
        parent: who asks; where the answer goes even if the start is not in the log.
    """

    generation: Counter
    parent: Parent

    @property
    def id(self) -> str:
        return f"{self.saga_id}/{self.start}/undo/{self.generation}"


class SagaUndone(Record, frozen=True, kw_only=True, omit_defaults=True, tag="saga_undone"):
    """Nothing of the saga stands any more, and the parent was told. The saga's own outcome stays what it was.

    Attributes:
        generation: of the request.
        undone: whether there was anything to undo.
        compensations: all that was undone, in order.
    """

    generation: Counter
    undone: bool
    compensations: tuple[Undone, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.saga_id}/undo-outcome/{self.generation}"
