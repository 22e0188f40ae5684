"""The protocol: what every record means. Pure and total: no I/O, no clock, no random, no exception.

``state`` is what is known of a saga; ``evolve`` what a record changes in it; ``decide`` what is owed then; ``fold`` the
two in turn, which is all that a saga-log, a status query and an audit ever do; ``straight`` is the short way to the
same, where nothing out of the ordinary happens. ``order`` says what builds on what,
``commands`` turns a decision into its record, ``family`` into what it says to parent and child, ``due`` says when time
alone has something to say.

Comments name the protocol rules by number; ``docs/protocol.md`` has them in full.
"""

from choreo.core.commands import record_of
from choreo.core.due import Timer, next_due_ms, timers
from choreo.core.family import said_elsewhere
from choreo.core.fold import Folded, fold, refuse
from choreo.core.state import Decision, Entry, Instance, Phase, SagaState

__all__ = [
    "Decision",
    "Entry",
    "Folded",
    "Instance",
    "Phase",
    "SagaState",
    "Timer",
    "fold",
    "next_due_ms",
    "record_of",
    "refuse",
    "said_elsewhere",
    "timers",
]
