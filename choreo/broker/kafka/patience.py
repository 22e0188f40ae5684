"""Patience: a reader lets the broker wake it when what is for it has come, not for each record before that.

All records of a saga are in one topic, and most are for others. Who asks for whatever comes is woken by each of them:
the broker answers it, it looks, and asks again, while the one whose turn it is waits for a processor, and for its own
answer behind those of the others. When sagas come one by one there is a rhythm in the log: between two records that are
for this reader always lies about as much. So it asks for the next when that has come and half a record more, by the
``min_bytes`` of its fetch. That request is with the broker in good time, and the record itself completes it.

A rhythm is what the last sixteen times had in common, so the least of them counts. Sagas side by side have none, and
then each record is fetched as it comes. Where a rhythm breaks, a record is held up until as much has come as usual, for
``HOLD_MS`` at most; and that once, since then there is no rhythm any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any

TIMES = 16
HOLD_MS = 15  # some hops of a saga; a request that ends so early is followed by one for what is left to come
RESPONSE_BYTES_MAX = 32_768  # larger ones come under load, where there is no rhythm to look for

_BATCH = Struct(">qi")  # base offset, length of what follows

Topics = Sequence[tuple[str, Sequence[Sequence[Any]]]]
"""As in ``FetchResponse``: by topic, the fields of each partition; number first, records last."""

Batches = Mapping[tuple[str, int], Mapping[int, int]]
"""By topic and partition: the first offsets of batches, and their sizes in bytes."""


class Patience:
    """How much one reader lets come together at one broker."""

    def __init__(self) -> None:
        self._between: deque[int] = deque(maxlen=TIMES)  # bytes from one record that was for us to the next
        self._slack = 0  # records are not all of one size
        self._bytes = 0  # that have come since
        self._batches: Batches = {}  # of the last response
        self._is_silent = True  # whether nothing was in it

    def fetched(self, topics: Topics) -> None:
        """A response has come."""
        size = sum(len(partition[-1] or b"") for _, partitions in topics for partition in partitions)
        if size > RESPONSE_BYTES_MAX:
            self._between.append(0)
            self._bytes, self._batches = 0, {}
        else:
            self._bytes += size
            self._batches = batches_of(topics)
        self._is_silent = not size

    def worked_on(self, places: Sequence[tuple[tuple[str, int], int]]) -> None:
        """These records, by partition and offset, were for us. Those of other brokers' partitions are passed over."""
        ours = [(tp, offset) for tp, offset in places if tp in self._batches]
        if not ours:
            return
        tp, offset = ours[0]
        size = self._batches[tp].get(offset) if len(ours) == 1 else None
        self._between.append(0 if size is None else max(0, self._bytes - size))
        self._slack = 0 if size is None else size // 2
        self._bytes = 0

    @property
    def min_bytes(self) -> int:
        """What the next request should wait for, for ``HOLD_MS`` at most; 1 if it should not."""
        if self._is_silent or len(self._between) < TIMES:
            return 1  # who waits in silence is to hear of the first thing that comes
        least = min(self._between)
        return 1 + max(0, least + self._slack - self._bytes) if least else 1


def batches_of(topics: Topics) -> Batches:
    """The batches in a response. One that ends too early is as long as it says: whoever parses it will complain."""
    found: dict[tuple[str, int], dict[int, int]] = {}
    for topic, partitions in topics:
        for number, *_, records in partitions:
            if records:
                batches = found[topic, number] = {}
                at = 0
                while at + _BATCH.size <= len(records):
                    offset, length = _BATCH.unpack_from(records, at)
                    batches[offset] = _BATCH.size + max(0, length)
                    at += batches[offset]
    return found
