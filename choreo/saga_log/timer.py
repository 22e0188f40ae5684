"""Which saga of a partition has a timer that is due, as a heap. No clock: the time comes as an argument.

A timer that fires appends a record, and the record counts only if the broker's clock agrees that it is time (rule 15).
So a fired timer waits until its record is read back; if the saga still has it then, the broker's clock is behind
ours, and it fires again after a pause. The pause is by our clock, which may be wrong: should that be set back, pauses
end, or what was fired an hour ahead would wait for that hour.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import NamedTuple

EARLY_PAUSE_MS = 500


class _Fired(NamedTuple):
    at_ms: int
    offset: int


class Timers:
    """The next timer of each saga. Heap entries are left behind when a saga's time changes, and passed over later."""

    def __init__(self) -> None:
        self._at: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self._fired: dict[str, _Fired] = {}
        self._paused: dict[str, int] = {}  # the time that they have in truth
        self._now_ms = 0

    def __len__(self) -> int:
        return len(self._at) + len(self._fired)

    def set(self, saga_id: str, at_ms: int | None, offset: int) -> None:
        """The saga, folded up to ``offset``, has its next timer at ``at_ms``; none if ``None``."""
        if at_ms is None:
            self.drop(saga_id)
            return
        fired = self._fired.get(saga_id)
        if fired is not None:
            if offset < fired.offset:
                return  # what it appended is on its way back
            del self._fired[saga_id]
            if at_ms <= fired.at_ms:
                self.pause(saga_id, at_ms, fired.at_ms)
                return
        self._paused.pop(saga_id, None)
        self._put(saga_id, at_ms)

    def drop(self, saga_id: str) -> None:
        """The saga has no timer."""
        self._at.pop(saga_id, None)
        self._fired.pop(saga_id, None)
        self._paused.pop(saga_id, None)

    def pause(self, saga_id: str, at_ms: int, now_ms: int) -> None:
        """Its timer of ``at_ms`` was due ``now_ms``, in vain; try again a little later."""
        self._paused[saga_id] = at_ms
        self._put(saga_id, now_ms + EARLY_PAUSE_MS)

    def _put(self, saga_id: str, at_ms: int) -> None:
        if self._at.get(saga_id) != at_ms:
            self._at[saga_id] = at_ms
            heappush(self._heap, (at_ms, saga_id))
            if len(self._heap) > 2 * len(self._at) + 1_000:
                self._heap = [(when, each) for each, when in self._at.items()]
                heapify(self._heap)

    def due(self, now_ms: int, limit: int) -> list[str]:
        """Take out up to ``limit`` sagas with a timer that is due, the earliest first.

        Each has to be told about with ``fired`` or ``set``.
        """
        if now_ms < self._now_ms:
            self._end_pauses(now_ms)
        self._now_ms = now_ms
        found: list[str] = []
        while len(found) < limit:
            earliest = self.next_ms()
            if earliest is None or earliest > now_ms:
                break
            _, saga_id = heappop(self._heap)
            del self._at[saga_id]
            found.append(saga_id)
        return found

    def _end_pauses(self, now_ms: int) -> None:
        for saga_id, at_ms in self._paused.items():
            if saga_id in self._at:
                self._put(saga_id, at_ms)
        self._paused.clear()
        for saga_id, (at_ms, offset) in self._fired.items():
            self._fired[saga_id] = _Fired(min(at_ms, now_ms), offset)

    def fired(self, saga_id: str, at_ms: int, offset: int) -> None:
        """Its records were appended at ``at_ms`` by our clock, the last one at ``offset``."""
        self._fired[saga_id] = _Fired(at_ms, offset)

    def next_ms(self) -> int | None:
        """When the earliest timer is due; ``None`` if none is set."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None
