"""A look over a saga's instances: what is in flight, and what is still to be undone."""

from __future__ import annotations

from choreo.core.state import Key, SagaState


class Survey:
    """The instances that matter to the way back.

    Attributes:
        in_flight: triggered and without an outcome (rule 4), or given up before its due and not settled (rule 15).
        given_up: those of them that were given up, and whose service has not been asked whether they have settled.
        awaiting: their Compensate is not answered.
        stuck: their compensation failed for good, or past the pivot they themselves.
        candidates: may stand and are not wanted, and nothing is under way for them.
        uncompensated: all but the first: nothing that they build on may be undone yet.
    """

    def __init__(self, state: SagaState) -> None:
        going_back = (state.failing and not state.only_forward) or (state.outcome is not None and state.is_unwanted)
        standing = state.standing
        self.in_flight: list[Key] = []
        self.given_up: list[Key] = []
        self.awaiting: list[Key] = []
        self.stuck: list[Key] = []
        self.candidates: list[Key] = []
        for key, instance in state.instances.items():
            # As ``instance.in_flight``, which would be a call for each instance at each record.
            if (instance.first is None and instance.triggered) or (instance.settling and not instance.stuck):
                self.in_flight.append(key)
                if instance.settling and not instance.awaits_answer:
                    self.given_up.append(key)
            elif instance.awaits_answer:
                self.awaiting.append(key)
            elif instance.stuck:
                self.stuck.append(key)
            elif instance.may_stand and (going_back or standing.get(key[0]) != key[1] or instance.offer == "taken"):
                self.candidates.append(key)
        self.uncompensated = [*self.candidates, *self.awaiting, *self.stuck]

    @property
    def is_settled(self) -> bool:
        """Nothing is in flight and no compensation is owed or unanswered."""
        return not self.in_flight and not self.uncompensated
