"""Which steps at work need not go on once the saga has turned back: nothing they come to will be used (rule 25)."""

from __future__ import annotations

from choreo.contract.saga import Saga
from choreo.core.state import Instance, Key, SagaState
from choreo.core.survey import Survey


def to_cancel(contract: Saga, state: SagaState, survey: Survey) -> list[Key]:
    """The instances to be cancelled, while a failing saga waits for them to settle.

    None as long as a substitute may mend what has failed: a cancelled step fails without one, so it would decide that.
    """
    if not contract.cancellable or not _is_lost(contract, state):
        return []
    return [
        key
        for key in survey.in_flight
        if key[1] == state.round
        and key[0] in contract.cancellable
        and (instance := state.instance(key)).first is None
        and not instance.cancelling
    ]


def _is_lost(contract: Saga, state: SagaState) -> bool:
    """Whether the saga can only go back from here, whatever is still to come in this round."""
    return (
        state.cancelled
        or state.aborted
        or any(
            not _may_be_mended(contract, key[0], instance)
            for key, instance in state.instances.items()
            if key[1] == state.round and instance.first not in (None, "completed") and instance.offer != "taken"
        )
    )


def _may_be_mended(contract: Saga, step: str, failed: Instance) -> bool:
    """Whether the failed step's own compensation will run, and may answer with a substitute (rule 8)."""
    kind = "" if failed.failure is None else failed.failure.kind
    is_asked = failed.may_stand and contract[step].compensation is not None
    return is_asked and not failed.completed and contract[step].may_recover_from(kind)
