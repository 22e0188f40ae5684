"""What a worker knows of a partition that is its own."""

from __future__ import annotations

from choreo.step.answered import Answered
from choreo.step.cancelling import Cancellations


class BrokerTime:
    """The broker's clock, as far as the append times that were seen can tell: a lower bound that this machine's
    monotonic clock carries on. Two machines' wall clocks are never compared.

    A record appended at *t* and seen at *m* proves that the broker's clock is at least ``t + (now - m)``. Right after
    a restart on an old backlog the bound is far behind; work is then begun that is due already, its answer comes late,
    and every reader sees that.
    """  # noqa: D205  # the sentence is worth its length

    def __init__(self) -> None:
        self._ahead_ms: float | None = None  # broker's clock minus monotonic clock

    def see(self, append_ms: int, monotonic: float) -> None:
        """A record with that append time was read, or acknowledged, at that moment."""
        ahead_ms = append_ms - monotonic * 1_000
        if self._ahead_ms is None or ahead_ms > self._ahead_ms:
            self._ahead_ms = ahead_ms

    def now_ms(self, monotonic: float) -> float:
        """The least that the broker's clock can show at that moment. Something must have been seen before."""
        assert self._ahead_ms is not None, "time is asked for because of a record, and the record was seen"
        return self._ahead_ms + monotonic * 1_000


class Place:
    """The partition's facts that bear on a record's work.

    Attributes:
        saga: the name of the saga whose topic this is.
        end_at_assignment: records below were in the log when the partition became ours, so others may have run them.
        answered: what this service has answered.
        time: of the broker.
        cancellations: of runs whose saga has turned back.
    """

    __slots__ = ("answered", "cancellations", "end_at_assignment", "saga", "time")

    def __init__(
        self, saga: str, end_at_assignment: int, answered: Answered, time: BrokerTime, cancellations: Cancellations
    ) -> None:
        self.saga = saga
        self.end_at_assignment = end_at_assignment
        self.answered = answered
        self.time = time
        self.cancellations = cancellations
