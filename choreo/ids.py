"""Ids of records, derived from what they say, so that a resend or a second decision is recognised.

Every id begins with the saga id. What a start leads to goes on with the hash of that start (a saga id can be started
twice with different inputs; their chains must not be mixed up); cancels, signals and the outcome concern the saga
under whichever start. Nothing here is random: a run id is drawn by the worker and handed in.
"""

from __future__ import annotations

import re
from hashlib import sha256

# They end in \Z because $ would let a final newline pass; the JSON Schemas, written for other dialects, say $ again.
SAGA_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}\Z"
STEP_NAME_PATTERN = r"^[a-z][a-z0-9_]{0,63}\Z"
SAGA_NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,99}\Z"
START_HASH_PATTERN = r"^[0-9a-f]{16}\Z"
CONTRACT_HASH_PATTERN = r"^[0-9a-f]{32}\Z"

_SAGA_ID = re.compile(SAGA_ID_PATTERN)


def is_saga_id(text: str) -> bool:
    """Whether the text may be a saga id: 1 to 200 of ``A-Z a-z 0-9 . _ : / -``, the first one a letter or digit."""
    return _SAGA_ID.match(text) is not None


_PARTITION_KEYS = "choreo.partition/"


def partition_key(number: int) -> str:
    """A key for records that concern a partition and no saga; which partition it falls into, the broker says."""
    return f"{_PARTITION_KEYS}{number}"


def is_partition_key(text: str) -> bool:
    """Whether the text is such a key, so that no saga may have it as its id."""
    return text.startswith(_PARTITION_KEYS)


def input_hash(encoded_input: bytes) -> str:
    """What tells one start of a saga id from another: SHA-256 of the encoded input, 16 hex digits."""
    return sha256(encoded_input).hexdigest()[:16]


def start_hash(encoded_input: bytes, *, not_before_ms: int = 0, delay_ms: int = 0) -> str:
    """The hash of a start: of its input, and where it is scheduled of its time too.

    The time is part of it because one hash has to mean one trigger: a second start with the same input and no time
    would make the first steps run before the saga has begun.
    """
    if not (not_before_ms or delay_ms):
        return input_hash(encoded_input)
    return input_hash(b"%s\0at %d in %d" % (encoded_input, not_before_ms, delay_ms))


def instance_id(saga_id: str, start: str, step: str, saga_round: int) -> str:
    """One step in one round: the common stem of its commands, outcomes and keys."""
    return f"{saga_id}/{start}/{step}/{saga_round}"


def child_id(saga: str, saga_id: str, step: str, saga_round: int) -> str:
    """The saga that a step is in a round. It names the parent's contract, too: two of them may have equal ids."""
    return f"{saga}/{saga_id}/{step}/{saga_round}"


def child_start_hash(saga: str, saga_id: str, start: str, encoded_input: bytes) -> str:
    """As ``input_hash``, of a saga that is a step: the parent is part of it, so that nobody else's start is equal."""
    return input_hash(f"{saga}/{saga_id}/{start}/".encode() + encoded_input)


def outcome_id(instance: str, run: str) -> str:
    """A step's outcome: one for each run of the handler."""
    return f"{instance}/{run}"


def execute_id(instance: str) -> str:
    """The command to run a step that no event alone can trigger."""
    return f"{instance}/execute"


def skipped_id(instance: str) -> str:
    """The notice that a step does not run in a round."""
    return f"{instance}/skipped"


def cancel_id(instance: str) -> str:
    """The command to cancel what runs of a step in a round."""
    return f"{instance}/cancel"


def compensate_id(instance: str, generation: int) -> str:
    """The command to undo a step; its answer's id derives from it."""
    return f"{instance}/compensate/{generation}"


def answer_id(command: str, run: str) -> str:
    """The answer to a Compensate: derived from the command's id."""
    return f"{command}/answer/{run}"


def idempotency_key(saga_id: str, start: str, step: str, saga_round: int) -> str:
    """Constant over all attempts and redeliveries of one step in one round."""
    return instance_id(saga_id, start, step, saga_round)


def compensation_key(saga_id: str, start: str, step: str, saga_round: int, generation: int) -> str:
    """Constant within a generation, another one in the next (protocol rule 11)."""
    return compensate_id(instance_id(saga_id, start, step, saga_round), generation)
