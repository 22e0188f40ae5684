"""``fold``: evolve and decide in turn. State, status, recovery and audit are all folds of the same log."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from choreo.contract.saga import Saga
from choreo.core.decide import decide
from choreo.core.evolve import evolve
from choreo.core.state import Decision, Entry, Note, SagaState
from choreo.core.straight import straight_on
from choreo.messages.records import TypePaused


class Folded(NamedTuple):
    """The state after a record.

    Attributes:
        owed: the decisions that this record brought about; all of them, old and new, are in ``state.owed``.
        note: what was remarkable about the record.
    """

    state: SagaState
    owed: tuple[Decision, ...]
    note: Note | None


def fold(contract: Saga, state: SagaState, entry: Entry) -> Folded:
    """The state after one more record. Pure and total; ``state`` is left as it was.

    A record at or before ``state.offset`` has been folded already and changes nothing.
    """
    if entry.offset <= state.offset and not isinstance(entry.record, TypePaused):  # a saga learns of it when it starts
        return Folded(state, (), "duplicate")
    ahead = straight_on(contract, state, entry)
    if ahead is not None:
        # As ``Folded(…)``, which takes twice as long.
        owed = () if ahead.owed is state.owed else ahead.owed[len(state.owed) :]
        return tuple.__new__(Folded, (ahead, owed, None))
    return fold_by_the_rules(contract, state, entry)


def fold_by_the_rules(contract: Saga, state: SagaState, entry: Entry) -> Folded:
    """As ``fold``, of a record that is new, whatever it is."""
    draft = state.copy()
    owed_before = draft.owed
    note = evolve(contract, draft, entry)
    decide(contract, draft)
    if draft.type_pause is not None and draft.is_settled:
        draft.type_pause = None  # it holds what is not over yet; a saga that is over learns of no resumption
    owed = draft.owed if not owed_before else tuple(one for one in draft.owed if one not in owed_before)
    return Folded(draft, owed, note)


def refuse(state: SagaState, offset: int, at_ms: int) -> SagaState:
    """The state after one more record under the saga's key that nobody can read: a dead letter (rule 18).

    It means nothing, so it changes nothing but the mark. Of a saga without its start not even that is kept.
    """
    if offset <= state.offset or not state.started:
        return state
    return msgspec.structs.replace(state, dead_letters=state.dead_letters + 1, offset=offset, updated_ms=at_ms)
