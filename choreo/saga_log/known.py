"""Which sagas of a partition the store may have, in three to six bytes for each: whether to ask it. No I/O.

Nearly every saga that is not in memory is new, and only a few come back after they have settled. To ask the store about
each would cost more than to fold it. So what leaves the memory is remembered, and what the store had before is
read from it, a page at a time: until the last page, everything may be there.

A new filter, twice as large, is begun when the last one is full. At ``LAYERS_MAX`` (four million sagas, 12 MiB) the
last one takes all that comes, and the store is asked ever more often without need, until the partition is loaded again.
"""

from __future__ import annotations

from collections.abc import Sequence

from choreo.saga_log.bloom import BloomFilter, hashes_of

ROOM_FIRST = 4_000
LAYERS_MAX = 10
_BITS_EACH = 24
_PROBES = 8


class Known:
    """The sagas that are in the store and may not be in memory.

    Attributes:
        read_after: the saga id after which the next page of the store's has to be read; ``None`` if all are known.
    """

    def __init__(self, *, nothing_stored: bool) -> None:
        self.read_after = None if nothing_stored else ""
        self._layers: list[BloomFilter] = []
        self._room = 0

    def may_have(self, saga_id: str) -> bool:
        """Whether the store has to be asked for a saga that is not in memory."""
        if self.read_after is not None:
            return True
        if not self._layers:
            return False
        first, step = hashes_of(saga_id)
        return any(layer.has_hashes(first, step) for layer in self._layers)

    def add(self, saga_id: str) -> None:
        """A saga has left the memory, and is in the store."""
        if not self._room and len(self._layers) < LAYERS_MAX:
            self._room = ROOM_FIRST << len(self._layers)
            self._layers.append(BloomFilter(self._room, bits_each=_BITS_EACH, probes=_PROBES))
        self._layers[-1].add(saga_id)
        self._room = max(self._room - 1, 0)

    def take(self, saga_ids: Sequence[str]) -> None:
        """The next page of what the store has, in order; an empty one comes last."""
        for saga_id in saga_ids:
            self.add(saga_id)
        self.read_after = saga_ids[-1] if saga_ids else None
