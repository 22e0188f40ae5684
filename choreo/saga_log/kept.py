"""The unfinished sagas of a partition: those that records come for as values, the others as the bytes of a store's row.

A value takes some 3 KiB, its bytes a fifth of that, and most of many unfinished sagas wait for something. All stay in
memory: what is owed and what is due has to be found without a look into the store.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from choreo.core import SagaState
from choreo.store.projection import encoded, state_of


class Kept:
    """States by saga id."""

    def __init__(self, values_max: int) -> None:
        """Keep at most so many as values: those that were put last."""
        self._values_max = values_max
        self._values: OrderedDict[str, SagaState] = OrderedDict()
        self._bytes: dict[str, bytes] = {}

    def put(self, state: SagaState) -> None:
        """Keep a state, in place of an older one of the saga."""
        saga_id, values = state.saga_id, self._values
        if saga_id in values:
            values[saga_id] = state
            values.move_to_end(saga_id)
            return
        self._bytes.pop(saga_id, None)
        values[saga_id] = state
        if len(values) > self._values_max:
            oldest, value = values.popitem(last=False)
            # A copy, which takes no more than it is long: the encoder's bytes lie in a buffer that had room for more.
            self._bytes[oldest] = bytes(memoryview(encoded(value)))

    def get(self, saga_id: str) -> SagaState | None:
        """The saga's state; ``None`` if it is not kept."""
        if (value := self._values.get(saga_id)) is not None:
            return value
        blob = self._bytes.get(saga_id)
        return None if blob is None else state_of(blob)

    def __getitem__(self, saga_id: str) -> SagaState:
        state = self.get(saga_id)
        if state is None:
            raise KeyError(saga_id)
        return state

    def discard(self, saga_id: str) -> None:
        """Forget a saga."""
        if self._values.pop(saga_id, None) is None:
            self._bytes.pop(saga_id, None)

    def __contains__(self, saga_id: str) -> bool:
        return saga_id in self._values or saga_id in self._bytes

    def __len__(self) -> int:
        return len(self._values) + len(self._bytes)

    def __iter__(self) -> Iterator[str]:
        yield from self._values
        yield from self._bytes
