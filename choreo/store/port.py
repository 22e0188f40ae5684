"""What the saga-log needs of a store, and nothing more.

A partition's checkpoint is the offset up to which its records are in the saved states. It moves by compare-and-set
together with the states, so that of two instances that both think they own a partition only one moves it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from choreo.broker.port import Message, TopicPartition
from choreo.core import SagaState

MESSAGE_CHARS_MAX = 1_000

PAGE = 2_000
PAGE_OF_IDS = 10_000


class Checkpoint(NamedTuple):
    """How far a partition is folded into the saved states.

    Attributes:
        offset: the next record to fold.
        mark: what the record before that looks like; a log that has another one there is another log.
        type_pause: the pause of all sagas of the type, if one is in force there; empty for none.
    """

    offset: int
    mark: str
    type_pause: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A saga's state as queries see it. Times are milliseconds since the Unix epoch, by the broker's clock.

    Attributes:
        phase: as ``SagaState.phase``; ``truncated`` where records were found but not the start, ``unstarted`` where
            only a cancel was.
        resting: nothing will happen to it unless a record comes: settled, or without its start.
        started_ms, finished_ms: 0 for "not yet".
        updated_ms: append time of the last record folded.
        step, code: of the failure that the current round goes back for; empty for none.
        message: what went wrong, in words: of that failure and of what is stuck; cut to ``MESSAGE_CHARS_MAX``.
        busy: the steps that run, are being undone or are stuck; separated by spaces.
        paused: held by a pause of its own; one of all of its type is not shown here.
        due_ms: the saga's.
        timer_ms: when its next timer fires; ``None`` for none.
        blob: the state in MessagePack; empty in the rows that queries give.
    """

    topic: str
    partition: int
    saga: str
    saga_id: str
    version: int
    phase: str
    round: int
    resting: bool
    started_ms: int
    updated_ms: int
    finished_ms: int
    step: str
    code: str
    due_ms: int
    timer_ms: int | None
    message: str = ""
    busy: str = ""
    paused: bool = False
    blob: bytes = b""


KEY_OF_ROW = ("topic", "partition", "saga_id")


class Advance(NamedTuple):
    """The outcome of a batch for one partition.

    Attributes:
        expected: the checkpoint's offset as last loaded or saved; ``None`` if there was none.
        released: sagas whose parked records have been folded; they are dropped before ``parked`` is added.
        parked: raw records that wait for their contract (rule 18).
    """

    tp: TopicPartition
    expected: int | None
    checkpoint: Checkpoint
    rows: Sequence[Row]
    released: Collection[str] = ()
    parked: Sequence[Message] = ()


class Place(NamedTuple):
    """A saga's place in the order of lists: by the time of its start, then by its id and name."""

    started_ms: int
    saga_id: str
    saga: str


class Query(NamedTuple):
    """Which sagas to list, the oldest start first. What is ``None`` or empty does not matter.

    Attributes:
        saga: of this name.
        version: of this version of the contract.
        phases: in one of these.
        step: that go back for a failure of this step, or at which it runs, is being undone or is stuck.
        code: that go back for a failure with this code (its kind, where it has none).
        text: in the words of what went wrong, or at the start of the saga's id; small and capital letters of ASCII are
            the same in the words.
        paused: held by a pause of their own, or not.
        started_before_ms, started_from_ms: started before this; then or later.
        updated_before_ms: of which nothing was heard since.
        newest_first: the other way round.
        after: only what comes behind this place, in that order.
    """

    saga: str | None = None
    phases: tuple[str, ...] = ()
    started_before_ms: int | None = None
    limit: int = 100
    version: int | None = None
    step: str | None = None
    code: str | None = None
    text: str = ""
    paused: bool | None = None
    started_from_ms: int | None = None
    updated_before_ms: int | None = None
    newest_first: bool = False
    after: Place | None = None


class Activity(NamedTuple):
    """How often something happened to sagas of one name within one stretch of time.

    Attributes:
        what: ``started``, or the phase in which those sagas are that have their outcome since then.
        stretch: counted from 0.
    """

    saga: str
    what: str
    stretch: int
    number: int


class Store(Protocol):
    """A store, shared by the tasks of one process.

    Everything raises ``StoreError`` when the store cannot be used, and ``StoreConflict`` when it turned out to be
    damaged and was begun anew: what was loaded from it is void then, and has to be loaded again.
    """

    async def checkpoint(self, tp: TopicPartition) -> Checkpoint | None:
        """How far the partition is folded; ``None`` if nothing of it is stored."""
        ...

    async def load_active(self, tp: TopicPartition, *, after: str = "") -> Sequence[SagaState]:
        """States of the partition that are not resting, by saga id: those behind ``after``, at most ``PAGE`` or all.

        None are left when none come.
        """
        ...

    async def saga_ids(self, tp: TopicPartition, *, after: str = "") -> Sequence[str]:
        """The ids of all sagas of the partition, in pages as those of ``load_active``, of ``PAGE_OF_IDS``."""
        ...

    async def load(self, tp: TopicPartition, saga_ids: Collection[str]) -> Mapping[str, SagaState]:
        """The states of these sagas of the partition, as far as there are any."""
        ...

    async def parked_sagas(self, tp: TopicPartition) -> Mapping[str, int]:
        """How many parked records the sagas of the partition have; those that have none are left out."""
        ...

    async def load_parked(self, tp: TopicPartition, saga_id: str) -> Sequence[Message]:
        """A saga's parked records, in order."""
        ...

    async def save(self, advances: Sequence[Advance]) -> None:
        """Move checkpoints together with the states that belong to them: all of it or nothing, in one transaction.

        Raises:
            StoreConflict: a checkpoint is not at ``expected``: another instance has moved it. Nothing was saved.
        """
        ...

    async def wipe(self, tp: TopicPartition) -> None:
        """Forget all about a partition."""
        ...

    async def drop_resting(self, before_ms: int) -> int:
        """Forget some of the resting sagas whose last record is older than that, and of the parked records that are.

        Says how many, 0 if none is left.
        """
        ...

    async def find(self, saga: str, saga_id: str) -> SagaState | None:
        """One saga, whatever its partition."""
        ...

    async def search(self, query: Query) -> Sequence[Row]:
        """The sagas that the query asks for, without their blobs."""
        ...

    async def counts(self) -> Mapping[tuple[str, str], int]:
        """How many sagas there are by name and phase."""
        ...

    async def activity(self, since_ms: int, stretch_ms: int) -> Sequence[Activity]:
        """Starts and outcomes since a moment, in stretches of that length; those without any are left out."""
        ...

    async def close(self) -> None:
        """Finish what is under way and let go."""
        ...
