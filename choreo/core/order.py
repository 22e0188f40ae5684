"""What builds on what: the order in which effects may be undone, and the context that a step has seen."""

from __future__ import annotations

from choreo.contract.saga import Saga
from choreo.core.state import Instance, Key, SagaState


def builds_on(contract: Saga, state: SagaState, later: Key, earlier: Key) -> bool:
    """Whether instance ``later`` may have used the effect of instance ``earlier``.

    It comes after it in the contract, and in the same round, or in a later round into which ``earlier`` was carried
    over because its step neither ran again nor was skipped in between. Chains of different starts have nothing to do
    with each other.
    """
    if later[0] not in contract.graph.descendants.get(earlier[0], ()):
        return False
    if later[1] == earlier[1]:
        return True
    if later[1] < earlier[1] or earlier[1] < 1:
        return False
    for between in range(earlier[1] + 1, later[1] + 1):
        instance = state.instances.get((earlier[0], between))
        if instance is not None and (instance.triggered or instance.skipped):
            return False
    return True


def effect_of(instance: Instance) -> bytes | None:
    """The effect that successors see."""
    return instance.substitute if instance.offer == "taken" else instance.effect


def context_of(contract: Saga, state: SagaState, key: Key) -> dict[str, bytes]:
    """The effects that the step sees in that round: each predecessor's, from its latest round up to there."""
    step, saga_round = key
    lowest = 1 if saga_round > 0 else saga_round
    context: dict[str, bytes] = {}
    for other in contract.graph.ancestors[step]:
        for earlier in range(saga_round, lowest - 1, -1):
            instance = state.instances.get((other, earlier))
            if instance is not None and (instance.completed or instance.offer == "taken"):
                effect = effect_of(instance)
                if effect is not None:  # none where the step was skipped, or an operator took it as done by hand
                    context[other] = effect
                break
    return context


def completed_with(contract: Saga, state: SagaState) -> dict[str, Instance]:
    """The instance of each step that a completed saga ended with, in the contract's order.

    A saga that is a step may be undone before its outcome has been said (rule 19). What it says then is what it would
    have said at once: a step that stands no longer counts with the last round in which it stood.
    """
    found: dict[str, Instance] = {}
    for step in contract.steps:
        for saga_round in range(state.standing.get(step.name, state.round), 0, -1):
            instance = state.instance((step.name, saga_round))
            if instance.completed or instance.offer == "taken":
                found[step.name] = instance
                break
    return found
