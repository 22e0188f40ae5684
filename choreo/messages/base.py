"""What all records have. ``records`` has the records, ``values`` the types of their fields."""

from __future__ import annotations

import msgspec

from choreo import ids
from choreo.messages.values import Round, SagaId, SagaName, StartHash, StepName


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="type"):
    """What all records have.

    Attributes:
        saga: the contract's name.
        version: the contract's version.
        saga_id: the key.
        start: hash of the input of the start that this descends from (protocol rule 13).
    """

    saga: SagaName
    version: Round
    saga_id: SagaId
    start: StartHash

    @property
    def id(self) -> str:
        raise NotImplementedError


class StepRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What all records about one step in one round have.

    Attributes:
        step: the step's name in the contract.
        round: 1, and one more with every forward retry of the saga.
    """

    step: StepName
    round: Round = 1

    @property
    def instance(self) -> str:
        """The id of the step instance: the stem of the record's own id."""
        return ids.instance_id(self.saga_id, self.start, self.step, self.round)
