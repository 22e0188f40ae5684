"""The table of an inbox, and its rows.

A step instance has one row, whatever happens to it; so has an outcome hook for each outcome. Its state only moves on:

    (no row) ──▶ begun ──▶ completed ──▶ undone
                   │           │
                   └──▶ failed ┴──▶ barred        a tombstone: the step may still come, and is refused
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

State = Literal["begun", "completed", "failed", "undone", "barred", "told"]
"""``begun``: committed only where a handler works outside of the transaction; ``told``: a hook has run."""


class Row(NamedTuple):
    """What is known of a step instance.

    Attributes:
        key: the saga's name and the id of the instance.
        generation: of the command that was answered last; 0 if none was.
        content_type: what ``outcome`` and ``answer`` are written in.
        outcome: the recorded ``StepCompleted`` or ``StepFailed``, as it was published.
        answer: the recorded ``StepCompensated`` or ``CompensationFailed``.
    """

    key: str
    state: State
    content_type: str
    generation: int = 0
    outcome: bytes | None = None
    answer: bytes | None = None


def make_table(metadata: Any, name: str, schema: str | None) -> Any:
    """The table, in the metadata. Two indexes: the key, and the age for the clean-up."""
    from sqlalchemy import BigInteger, Column, Integer, LargeBinary, String, Table, Text

    return Table(
        name,
        metadata,
        Column("key", Text, primary_key=True),
        Column("state", String(16), nullable=False),
        Column("content_type", String(64), nullable=False),
        Column("generation", Integer, nullable=False),
        Column("outcome", LargeBinary),
        Column("answer", LargeBinary),
        Column("written_ms", BigInteger, nullable=False, index=True),
        schema=schema,
    )
