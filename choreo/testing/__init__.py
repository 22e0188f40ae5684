"""What tests of sagas are made of; needs no test framework, and no broker.

``Runner`` runs contracts and services in this process, in virtual time; ``run_saga`` is that for one saga and for
programs without an event loop. ``Ledger`` refuses effects that are created twice or undone out of order. ``given``,
with the words of ``choreo.testing.spec``, checks what a history decides. ``check_step`` does to a step what
at-least-once delivery does, and says what it does not bear. ``virtual_time`` lets hours pass at once.
"""

from choreo.testing.at_least_once import Finding, StepReport, check_step
from choreo.testing.clock import VirtualClock, virtual_time
from choreo.testing.ledger import Ledger, LedgerViolation
from choreo.testing.runner import Runner, run_saga
from choreo.testing.spec import given

__all__ = [
    "Finding",
    "Ledger",
    "LedgerViolation",
    "Runner",
    "StepReport",
    "VirtualClock",
    "check_step",
    "given",
    "run_saga",
    "virtual_time",
]
