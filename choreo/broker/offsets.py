"""Which offsets of a partition are finished, when work on its records ends out of order.

Records are delivered in ascending order and finished in any order. What can be committed is the lowest unfinished
offset; the finished ones above it travel in the commit's metadata (the *tail*), so that the next owner of the
partition does not do them again. Losing a tail, or a part of it, is harmless: those records are only redone.

A tail reads ``f1:2,1+3,4``: from the committed offset on, 2 unfinished and 1 finished, 1 unfinished and 3 finished,
4 unfinished and 1 finished. Offsets that the log has left out count with their neighbours.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice

from choreo.broker.port import COMMIT_METADATA_MAX_CHARS, Committed

TAIL_CHARS_WARNING = COMMIT_METADATA_MAX_CHARS * 3 // 4

_PREFIX = "f1:"  # our format, version 1; other programs may have written metadata of their own
_RUN = r"[1-9][0-9]{0,18}(?:\+[1-9][0-9]{0,18})?"
_TAIL = re.compile(rf"{_PREFIX}{_RUN}(?:,{_RUN})*")

_UNFINISHED, _FINISHED = 0, 1
_TRIM_MIN = 1_024  # entries; trimming less often than this is not worth a copy

Range = tuple[int, int]  # [start, end), in offsets


class OffsetTracker:
    """The finished offsets of one partition, from the committed offset on.

    ``begin`` and ``finish`` take constant time; ``committable`` takes time in proportion to the finished ranges.
    """

    def __init__(self, start: int, finished_tail: str = "") -> None:
        """Go on where a commit left off.

        Args:
            start: the committed offset: the next record to be delivered, all below it are finished.
            finished_tail: the commit's metadata; one that is not ours is taken as empty.
        """
        self._start = start
        self._restored = _decode(start, finished_tail)  # finished before the restart; ascending and apart
        self._restored_starts = [range_start for range_start, _ in self._restored]

        # The window: records from the lowest unfinished one on, in order of delivery. Entry i has the offset
        # _offsets[i] and the state _states[i]; entries before _head are finished and wait to be trimmed.
        self._offsets: list[int] = []
        self._states = bytearray()
        self._head = 0
        self._trimmed = 0  # entries trimmed so far; index + _trimmed names an entry for good
        self._entry_of: dict[int, int] = {}  # unfinished offset -> index + _trimmed

        self._next = start  # one above the highest offset that began
        self._runs = 0  # runs of finished entries in the window
        self._changed = False  # has anything been finished since the start?
        self._tail: tuple[Committed, int] | None = None  # committable and the full tail's length, until one changes

    @property
    def unfinished(self) -> int:
        """How many records began and are not finished."""
        return len(self._entry_of)

    def begin(self, offset: int) -> None:
        """A record was delivered. Offsets ascend; what they leave out is not in the log."""
        assert offset >= self._next, "offsets are delivered in ascending order"
        self._entry_of[offset] = len(self._offsets) + self._trimmed
        self._offsets.append(offset)
        self._states.append(_UNFINISHED)
        self._next = offset + 1
        self._tail = None

    def finish(self, offset: int) -> None:
        """The record that began at ``offset`` needs no more work."""
        assert offset in self._entry_of, "a record begins once and finishes once"
        index = self._entry_of.pop(offset) - self._trimmed
        self._states[index] = _FINISHED
        self._changed = True
        self._tail = None
        if index > self._head:
            finished_before = self._states[index - 1] == _FINISHED
            finished_after = index + 1 < len(self._states) and self._states[index + 1] == _FINISHED
            self._runs += 1 - finished_before - finished_after
            return
        head = self._states.find(_UNFINISHED, index)
        if head == -1:
            head = len(self._states)
        if head > index + 1:
            self._runs -= 1  # the run that began right above the head has joined what is below it
        self._head = head
        if head >= _TRIM_MIN and head * 2 >= len(self._offsets):
            del self._offsets[:head]
            del self._states[:head]
            self._trimmed += head
            self._head = 0

    def is_finished(self, offset: int) -> bool:
        """Whether the record was finished before the restart, as the commit's metadata says."""
        if offset < self._start:
            return True
        at = bisect_right(self._restored_starts, offset) - 1
        return at >= 0 and offset < self._restored[at][1]

    def committable(self) -> Committed | None:
        """The place to commit: the lowest unfinished offset, and what is finished above it.

        The text is ASCII and has at most ``COMMIT_METADATA_MAX_CHARS`` characters: a longer one is cut at its far
        end. ``None`` as long as nothing has been finished since the start.
        """
        return self._encoded()[0] if self._changed else None

    @property
    def tail_is_nearly_full(self) -> bool:
        """Whether the tail takes three quarters of its room: a reason to begin nothing new until old work ends."""
        ahead = self._restored_ahead()
        runs = self._runs + len(self._restored) - ahead
        span_start = self._offsets[self._head] if self._entry_of else self._next
        span_end = self._restored[-1][1] if ahead < len(self._restored) else self._next
        run_chars_max = 2 * len(str(span_end - span_start)) + 2  # a gap, a plus, a length and a comma
        if runs * run_chars_max < TAIL_CHARS_WARNING:
            return False
        return self._encoded()[1] >= TAIL_CHARS_WARNING

    def _encoded(self) -> tuple[Committed, int]:
        if self._tail is None:
            offset = self._offsets[self._head] if self._entry_of else self._next
            ranges = self._finished_ranges()
            ahead = self._restored_ahead()
            if not self._entry_of and ahead < len(self._restored) and self._restored_starts[ahead] <= offset:
                offset = self._restored[ahead][1]  # all delivered is finished, and so is what comes next
            text, chars = _encode(offset, ranges)
            self._tail = (Committed(offset, text), chars)
        return self._tail

    def _finished_ranges(self) -> Iterator[Range]:
        """The finished ranges above the lowest unfinished offset, ascending; neighbours may touch."""
        states, offsets = self._states, self._offsets
        run_start = states.find(_FINISHED, self._head)
        while run_start != -1:
            run_end = states.find(_UNFINISHED, run_start)
            last = (run_end if run_end != -1 else len(states)) - 1
            yield offsets[run_start], offsets[last] + 1
            run_start = states.find(_FINISHED, run_end) if run_end != -1 else -1
        for range_start, range_end in islice(self._restored, self._restored_ahead(), None):
            yield max(range_start, self._next), range_end

    def _restored_ahead(self) -> int:
        """The index of the first restored range that was not delivered again to its end."""
        at = bisect_right(self._restored_starts, self._next) - 1
        return at if at >= 0 and self._restored[at][1] > self._next else at + 1


def _encode(base: int, ranges: Iterable[Range]) -> tuple[str, int]:
    """The tail for ranges above ``base``, cut to what a commit can carry, and how many characters it had uncut."""
    texts: list[str] = []
    chars_full = len(_PREFIX) - 1  # the first run needs no comma
    unfinished_from = base
    for start, end in _joined(ranges):
        if start <= base:
            continue
        length = end - start
        text = f"{start - unfinished_from}+{length}" if length > 1 else f"{start - unfinished_from}"
        chars_full += len(text) + 1
        if chars_full <= COMMIT_METADATA_MAX_CHARS:
            texts.append(text)
        unfinished_from = end
    if not texts:
        return "", 0
    return _PREFIX + ",".join(texts), chars_full


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """The same offsets in ranges that do not touch."""
    current: Range | None = None
    for start, end in ranges:
        if current is not None and start <= current[1]:
            current = (current[0], end)
            continue
        if current is not None:
            yield current
        current = (start, end)
    if current is not None:
        yield current


def _decode(base: int, tail: str) -> list[Range]:
    """The finished ranges above ``base``; none if the text is not a tail."""
    if not _TAIL.fullmatch(tail):
        return []
    ranges: list[Range] = []
    offset = base
    for run in tail.removeprefix(_PREFIX).split(","):
        unfinished, _, finished = run.partition("+")
        start = offset + int(unfinished)
        offset = start + int(finished or 1)
        ranges.append((start, offset))
    return ranges
