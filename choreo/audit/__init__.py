"""Auditing: questions about the past and the present of sagas, answered by folding the log.

``trail`` is one saga's part of the log, folded record by record, and the beginning of all that is asked about one:

    registry = Registry(broker)
    trail = await read_trail(broker, "order", saga_id, registry=registry)
    history(trail)                                       # History: every record, who wrote it, what it answers
    state_at(trail, read_moment("14:02", now_ms=now))    # StateAt: the status as it was
    difference(trail, Moment(offset=17), Moment())       # Difference: what changed between two moments
    preview_cancel(trail.contract, trail.state)          # CancelPreview: what would be undone, in which order

    await explain(broker, "order", saga_id, registry=registry, now_ms=now)   # Explanation: why it is where it is

    await verify(broker, "order", registry=registry, now_ms=now)             # Verified: is the whole log sound
    await what_if(broker, candidate, registry=registry, now_ms=now)          # WhatIf: sagas under another contract

All results are msgspec structs, so that ``msgspec.json.encode`` serves a command line and an HTTP API alike. Nothing
here writes to a log, joins a group or changes a store. Errors are ``SagaNotFound``, ``TopicError``,
``BrokerUnavailable``, and ``ConfigurationError`` for a moment that is none.

``history``, ``moments``, ``preview``, ``explain`` are these questions; ``waiting`` looks at consumer groups;
``decisions`` knows which records are the saga-log's own. ``verify`` reads a topic, ``judge`` judges its records,
``findings`` are what comes out; ``what_if`` folds twice.
"""

from choreo.audit.explain import DeadLetter, Explanation, Reason, explain
from choreo.audit.findings import Fault, Notice
from choreo.audit.history import History, HistoryLine, history
from choreo.audit.moments import Change, Difference, Moment, StateAt, difference, read_moment, state_at
from choreo.audit.preview import CancelPreview, Kept, Undoing, preview_cancel
from choreo.audit.trail import Fact, Trail, read_trail
from choreo.audit.verify import Verified, verify
from choreo.audit.waiting import Waited
from choreo.audit.what_if import Consequence, WhatIf, what_if

__all__ = [
    "CancelPreview",
    "Change",
    "Consequence",
    "DeadLetter",
    "Difference",
    "Explanation",
    "Fact",
    "Fault",
    "History",
    "HistoryLine",
    "Kept",
    "Moment",
    "Notice",
    "Reason",
    "StateAt",
    "Trail",
    "Undoing",
    "Verified",
    "Waited",
    "WhatIf",
    "difference",
    "explain",
    "history",
    "preview_cancel",
    "read_moment",
    "read_trail",
    "state_at",
    "verify",
    "what_if",
]
