"""What records are made of: types with bounds, so that what breaks one is no record of ours; failures; accounts."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from choreo import ids
from choreo.messages.alphabets import alphabet

SagaId = Annotated[str, alphabet(ids.SAGA_ID_PATTERN, max_length=200)]
SagaName = Annotated[str, alphabet(ids.SAGA_NAME_PATTERN)]
StepName = Annotated[str, alphabet(ids.STEP_NAME_PATTERN)]
StartHash = Annotated[str, alphabet(ids.START_HASH_PATTERN)]
ContractHash = Annotated[str, alphabet(ids.CONTRACT_HASH_PATTERN)]
Counter = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
Round = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
ScheduleMillis = Annotated[int, msgspec.Meta(ge=0, le=2**51)]  # a deadline added to it is still within ``Millis``
RunId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=4_096)]
LongText = Annotated[str, msgspec.Meta(max_length=65_536)]
Effects = dict[StepName, msgspec.Raw]

FailureKind = Literal["rejected", "crashed", "timed_out", "cancelled"]


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why something failed. Programs branch on ``kind`` and ``code``; the rest is for people.

    Attributes:
        kind: ``rejected`` by the handler's own decision; ``crashed`` with an exception; ``timed_out``; ``cancelled``.
        code: a short word of the program's own ("card_declined"), or one of choreo's ("undecodable", "deadline").
        message: what happened, in words.
        exception_type: module and name of the exception's class.
        traceback: as Python prints it, cut to its end if it is long.
    """

    kind: FailureKind
    code: Text = ""
    message: LongText = ""
    exception_type: Text | None = None
    traceback: LongText | None = None

    def __repr__(self) -> str:
        """Without the texts, which may quote what users have put in."""
        return f"Failure(kind={self.kind!r}, code={self.code!r}, exception_type={self.exception_type!r}, …)"


class Undone(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One compensation in an outcome's account.

    Attributes:
        step: the step's name in the contract.
        round: of the step's effect.
        how: ``undone``; ``nothing_to_undo`` said the service; ``no_compensation`` is defined, so it was skipped;
            ``skipped`` or ``resolved`` by an operator.
    """

    step: StepName
    round: Round
    how: Literal["undone", "nothing_to_undo", "no_compensation", "skipped", "resolved"]
