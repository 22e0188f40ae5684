"""How long a reader lets records come together: a fifth of the time from one record of a saga to its next.

A fetch costs its reader and the broker about a millisecond of a processor, whatever it brings. Where sagas wait for a
database or for each other, two hundred of them append a record every other millisecond, and readers that fetch each by
itself are most of what the processors are busy with. Fetched five times in the mean time between two records of a saga,
they come by the dozen, and each is a tenth of that time late on average.

What counts is the mean over a whole saga, from its start to its outcome: most hops of a saga are short and one is long,
wherever the queue is. And of several sagas, one that is quicker than most: where some are quick, all are fetched for
them. There is no feedback, since what is gathered lengthens a saga by a fifth at most, and that what is gathered by a
fifth of it. Nothing is gathered that comes alone: it is the time from one request to the next that is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from choreo.broker.port import Message
from choreo.messages.headers import CE_TYPE
from choreo.messages.records import SagaCompensated, SagaCompleted, SagaStarted

SHARE = 0.2
GATHER_S_MIN, GATHER_S_MAX = 0.002, 0.040  # a shorter pause is not worth a timer, a longer one gathers little more
SAGAS = 16  # that have ended, by which it is judged; and so many are watched at a time, of all that pass
WATCH_MS_MAX = 60_000

_START = ("ce_type", CE_TYPE[SagaStarted])
_OUTCOMES = {("ce_type", CE_TYPE[kind]) for kind in (SagaCompleted, SagaCompensated)}


class Gathering:
    """Watches some of the sagas that pass a reader, by the times at which their records were appended."""

    def __init__(self) -> None:
        self._hops_ms: deque[float] = deque(maxlen=SAGAS)  # the mean of each saga
        self._watched: dict[bytes | None, tuple[int, int]] = {}  # when it began, and how many records have come since
        self.gather_s = 0.0
        """From the sending of one request to the next; 0 while nothing is known, or where a pause is not worth it."""

    def saw(self, messages: Sequence[Message]) -> None:
        """Records of one partition have come, at least one."""
        watched = self._watched
        if watched:
            for message in messages:
                if message.key in watched:
                    self._follow(message)
        last = messages[-1]
        if len(watched) < SAGAS:
            if last.key not in watched and _START in last.headers:
                watched[last.key] = (last.timestamp_ms, 0)
        else:
            oldest = next(iter(watched))
            if last.timestamp_ms - watched[oldest][0] > WATCH_MS_MAX:
                del watched[oldest]  # it waits for something, or its partition is another's by now

    def _follow(self, message: Message) -> None:
        began_ms, records = self._watched[message.key]
        self._watched[message.key] = (began_ms, records + 1)
        if not _OUTCOMES.isdisjoint(message.headers):
            del self._watched[message.key]
            self._hops_ms.append((message.timestamp_ms - began_ms) / (records + 1))
            self._judge()

    def _judge(self) -> None:
        if len(self._hops_ms) == SAGAS:
            gather_s = sorted(self._hops_ms)[SAGAS // 4] * SHARE / 1_000
            self.gather_s = min(gather_s, GATHER_S_MAX) if gather_s >= GATHER_S_MIN else 0.0
