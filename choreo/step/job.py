"""What there is to do for a record: run a step, or undo one."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from choreo import ids
from choreo.contract.saga import Saga, StepSpec
from choreo.messages.records import Failure


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do for one step of one saga.

    Attributes:
        key_round: whose idempotency key the step runs with, if not that of its own round; else 0.
        run: drawn for this execution.
        due_ms: broker's clock; an answer appended later is late.
        due_at: the same on the monotonic clock, in seconds, so that two machines' clocks are never compared.
        effects: of the steps that this one builds on, in ``content_type``, as ``input`` is.
        signals: what the step waited for, by name, likewise.
    """

    saga: Saga
    step: StepSpec
    saga_id: str
    start: str
    round: int
    run: str
    due_ms: int
    due_at: float
    input: msgspec.Raw
    effects: Mapping[str, msgspec.Raw]
    content_type: str
    traceparent: bytes | None
    key_round: int = 0
    signals: Mapping[str, msgspec.Raw] = {}

    @property
    def step_key(self) -> str:
        """The idempotency key of the step itself."""
        return ids.idempotency_key(self.saga_id, self.start, self.step.name, self.key_round or self.round)


class StepJob(Job, frozen=True, kw_only=True):
    """Run a step.

    Attributes:
        is_fresh: no other run of the trigger can have begun: it was appended after the partition became ours.
            Otherwise nobody knows what an earlier run has left behind (rule 5).
    """

    saga_due_ms: int
    is_fresh: bool

    @property
    def key(self) -> str:
        return self.step_key


class CompensationJob(Job, frozen=True, kw_only=True):
    """Undo a step. The fields are those of ``Compensate``."""

    generation: int
    effect: msgspec.Raw | msgspec.UnsetType
    failure: Failure | None
    own: bool
    remaining: tuple[str, ...]

    @property
    def key(self) -> str:
        return ids.compensation_key(self.saga_id, self.start, self.step.name, self.round, self.generation)
