"""The runtime of step services: handlers bound to the steps of contracts, run by the records of the log.

A record passes ``route`` (is it ours?), ``partition`` (offsets, back-pressure), ``lanes`` (one at a time for each
saga and step), ``perform`` or ``compensate`` (what is to be done), ``trigger`` (as a ``job``), ``attempts`` (retries
of a ``call``, ``retried`` says for what), ``answer`` (with a ``failure``), ``reply`` and ``publish``. ``worker`` polls
and commits; ``place`` and ``answered`` know a partition's time and what was answered before a crash; ``refusal`` and
``dead_letter`` deal with what cannot be understood, ``compensation_error`` with what cannot be undone; ``counts``
counts, ``tracers`` watch, ``outcome`` runs every ``hook``, and ``runtime`` puts it together. For users: ``service``,
``handler``, ``context``, ``verdict``, ``options``.
"""

from choreo.observe.events import AttemptEnded, AttemptEvent, OutcomeEvent
from choreo.step.compensation_error import CompensationError, CompensationErrorAnswer, Resolved, RetryLater, Stuck
from choreo.step.context import CompensationContext, Context
from choreo.step.options import Options
from choreo.step.runtime import StepRuntime
from choreo.step.service import Service
from choreo.step.verdict import (
    Abort,
    AbortRetries,
    CompensationAnswer,
    Continue,
    InvalidInput,
    NothingToUndo,
    Reject,
    Retry,
)

__all__ = [
    "Abort",
    "AbortRetries",
    "AttemptEnded",
    "AttemptEvent",
    "CompensationAnswer",
    "CompensationContext",
    "CompensationError",
    "CompensationErrorAnswer",
    "Context",
    "Continue",
    "InvalidInput",
    "NothingToUndo",
    "Options",
    "OutcomeEvent",
    "Reject",
    "Resolved",
    "Retry",
    "RetryLater",
    "Service",
    "StepRuntime",
    "Stuck",
]
