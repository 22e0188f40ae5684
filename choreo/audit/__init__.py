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
    await seal(broker, "order", signer=signer)                               # publishes Checkpoints
    proof = await prove(broker, "order", saga_id)                            # Proof: to be handed to somebody
    check_proof(proof, public_key=key)                                       # ProofChecked, without the log
    async for batch in exported(broker, "order", registry=registry): ...     # rows, for a writer of tables or ocel

All results are msgspec structs, so that ``msgspec.json.encode`` serves a command line and an HTTP API alike. Nothing
here but ``seal`` writes to a log, and nothing joins a group or changes a store. Errors are ``SagaNotFound``,
``TopicError``, ``BrokerUnavailable``, and ``ConfigurationError`` for what a person has given and is wrong.

``trail`` comes first; ``histories``, ``moments``, ``preview`` and ``explanation`` answer about one saga, with a look at
consumer groups by ``waiting``. ``verification`` reads a topic, ``judge`` judges its records, ``decisions`` knows which
are the saga-log's own, ``veiled`` compares what is encrypted, ``findings`` are what comes out. ``candidate`` folds
everything twice. ``rows`` flattens, ``tables`` and ``ocel`` write files. ``merkle``, ``segments``, ``signing`` and
``proof`` make what was written hard to deny.
"""

from choreo.audit.candidate import Consequence, WhatIf, what_if
from choreo.audit.explanation import DeadLetter, Explanation, Reason, explain, explain_trail
from choreo.audit.findings import Fault, Notice
from choreo.audit.histories import History, HistoryLine, history
from choreo.audit.moments import Change, Difference, Moment, StateAt, difference, read_moment, state_at
from choreo.audit.preview import CancelPreview, Kept, Undoing, preview_cancel
from choreo.audit.proof import Proof, ProofChecked, check_proof, prove, read_proof
from choreo.audit.rows import Exported, Row, exported
from choreo.audit.segments import Checkpoint, read_checkpoints, seal
from choreo.audit.trail import Fact, Trail, read_trail
from choreo.audit.verification import Verified, verify
from choreo.audit.waiting import Waited

__all__ = [
    "CancelPreview",
    "Change",
    "Checkpoint",
    "Consequence",
    "DeadLetter",
    "Difference",
    "Explanation",
    "Exported",
    "Fact",
    "Fault",
    "History",
    "HistoryLine",
    "Kept",
    "Moment",
    "Notice",
    "Proof",
    "ProofChecked",
    "Reason",
    "Row",
    "StateAt",
    "Trail",
    "Undoing",
    "Verified",
    "Waited",
    "WhatIf",
    "check_proof",
    "difference",
    "explain",
    "explain_trail",
    "exported",
    "history",
    "preview_cancel",
    "prove",
    "read_checkpoints",
    "read_moment",
    "read_proof",
    "read_trail",
    "seal",
    "state_at",
    "verify",
    "what_if",
]
