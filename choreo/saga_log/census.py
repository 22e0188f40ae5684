"""Where the sagas of a partition are: how many in which phase, how many paused, and when the oldest began. No I/O.

Gauges are looked at a few times a second, and most sagas are over by then. So a record only leaves its saga's id here,
and sagas are counted when somebody asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from choreo.core import Phase, SagaState

IN_PROGRESS = (Phase.SCHEDULED, Phase.FORWARD, Phase.COMPENSATING, Phase.STUCK)


class Census:
    """Counts the sagas that do not rest.

    Attributes:
        changed: ids of those that have to be counted anew; add to it.
    """

    def __init__(self, find: Callable[[str], SagaState | None]) -> None:
        """Count nothing yet. ``find`` has the state of a saga that does not rest, ``None`` for one that does."""
        self.changed: set[str] = set()
        self._find = find
        self._phases: Counter[Phase] = Counter()
        self._phase_of: dict[str, Phase] = {}
        self._paused: set[str] = set()
        self._starts: list[tuple[int, str]] = []  # a heap, with entries left behind

    @property
    def phases(self) -> Counter[Phase]:
        """How many sagas are in each of the phases of ``IN_PROGRESS``."""
        self.count_changed()
        return self._phases

    @property
    def paused(self) -> int:
        """How many sagas that are not over are paused."""
        self.count_changed()
        return len(self._paused)

    @property
    def stuck(self) -> list[str]:
        """The sagas that wait for an operator."""
        if not self.phases[Phase.STUCK]:
            return []
        return [saga_id for saga_id, phase in self._phase_of.items() if phase is Phase.STUCK]

    def oldest_start_ms(self) -> int | None:
        """When the oldest saga in progress began, or will begin; ``None`` if none is in progress."""
        self.count_changed()
        while self._starts:
            began_ms, saga_id = self._starts[0]
            state = self._find(saga_id)
            if state is not None and state.began_ms == began_ms and state.outcome is None:
                return began_ms
            heappop(self._starts)
        return None

    def count_changed(self) -> None:
        """Count what has changed, as is done for whoever asks."""
        changed, self.changed = self.changed, set()
        for saga_id in changed:
            if (state := self._find(saga_id)) is not None:
                self.count(state)

    def count(self, state: SagaState) -> None:
        """Count a saga that does not rest, at once."""
        saga_id, phase = state.saga_id, state.phase
        if state.is_paused:
            self._paused.add(saga_id)
        else:
            self._paused.discard(saga_id)
        before = self._phase_of.get(saga_id)
        if phase is before:
            return
        self._drop_phase(saga_id)
        if phase in IN_PROGRESS:
            self._phases[phase] += 1
            self._phase_of[saga_id] = phase
            if before is None:
                self._begin(state)

    def drop(self, saga_id: str) -> None:
        """Count it no longer: it rests."""
        self.changed.discard(saga_id)
        self._paused.discard(saga_id)
        self._drop_phase(saga_id)

    def _drop_phase(self, saga_id: str) -> None:
        if (phase := self._phase_of.pop(saga_id, None)) is not None:
            self._phases[phase] -= 1

    def _begin(self, state: SagaState) -> None:
        heappush(self._starts, (state.began_ms, state.saga_id))
        if len(self._starts) > 2 * len(self._phase_of) + 1_000:
            self._starts = list({entry for entry in self._starts if entry[1] in self._phase_of})
            heapify(self._starts)
