"""What operators can do, in words."""

from __future__ import annotations

from typing import NamedTuple

from choreo.core import SagaState
from choreo.web.desk import stuck_steps
from choreo.web.shapes import Act


class Deed(NamedTuple):
    """An act as buttons and pages show it.

    Attributes:
        about: what it does.
        said: what is said when the log has it.
        is_grave: it cannot be taken back.
        of_step: it is about one stuck step.
    """

    label: str
    about: str
    said: str
    is_grave: bool
    of_step: bool


DEEDS: dict[Act, Deed] = {
    "cancel": Deed(
        "Cancel the saga",
        "What it has done is undone, in reverse order.",
        "The log has the cancel.",
        is_grave=True,
        of_step=False,
    ),
    "pause": Deed(
        "Pause",
        "What is in flight finishes; no further step begins, nothing is decided, deadlines stand still.",
        "The log has the pause.",
        is_grave=False,
        of_step=False,
    ),
    "resume": Deed(
        "Resume", "It goes on where it was held.", "The log has it: it goes on.", is_grave=False, of_step=False
    ),
    "retry": Deed(
        "Try again",
        "The stuck step gets another go, with a new generation and new attempts. Mend the cause first.",
        "The log has it: the step gets another go.",
        is_grave=False,
        of_step=True,
    ),
    "skip": Deed(
        "Take as done",
        "The stuck step is taken as done by hand, and what comes after it goes on.",
        "The log has it: the step is taken as done by hand.",
        is_grave=True,
        of_step=True,
    ),
    "resolve": Deed(
        "Resolve all",
        "Everything that is left is taken as done by hand: the saga ends, and its outcome says so.",
        "The log has it: all that was left is taken as done by hand.",
        is_grave=True,
        of_step=True,
    ),
}

SAID: dict[str, str] = {
    **{str(act): deed.said for act, deed in DEEDS.items()},
    "signal": "The log has the signal.",
    "started": "The log has the start.",
    "redriven": "The log has its bytes again.",
}
"""What a page may say about what was done just now, by a word in its address."""


class Offered(NamedTuple):
    """A button on a saga's page."""

    act: Act
    label: str
    step: str
    grave: bool


def offered(state: SagaState) -> list[Offered]:
    """What can be done to a saga now."""
    found = [
        Offered(act, f"{deed.label}: {step}", step, deed.is_grave)
        for step in stuck_steps(state)
        for act, deed in DEEDS.items()
        if deed.of_step
    ]
    if state.started and state.outcome is None:
        act: Act = "pause" if state.pause is None else "resume"
        found.append(Offered(act, DEEDS[act].label, "", DEEDS[act].is_grave))
    if state.started and state.outcome is None and not state.cancelled and not state.failing:
        found.append(Offered("cancel", DEEDS["cancel"].label, "", DEEDS["cancel"].is_grave))
    return found
