"""Noticing a consumer that has something to read and does not move.

aiokafka's consumer can come out of a broker's restart, or of a long pause of the event loop, alive and deaf: it stays a
member of its group and delivers nothing, and nothing in its public state says so. What can be seen from outside is that
the log goes on while the position does not.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiokafka.structs import TopicPartition as KafkaTopicPartition

CHECKS_PER_TIMEOUT = 5


class StallWatch:
    """Remembers since when each partition has been lagging at one place. All times are monotonic seconds."""

    def __init__(self, timeout_s: float, now: float) -> None:
        self.timeout_s = timeout_s
        self._next_check = now + timeout_s / CHECKS_PER_TIMEOUT
        self._since: dict[KafkaTopicPartition, tuple[int | None, float]] = {}

    def due(self, now: float) -> bool:
        """Is it time to look again? Asking for the log's ends costs a round trip."""
        if now < self._next_check:
            return False
        self._next_check = now + self.timeout_s / CHECKS_PER_TIMEOUT
        return True

    def stalled(
        self,
        positions: Mapping[KafkaTopicPartition, int | None],
        ends: Mapping[KafkaTopicPartition, int],
        now: float,
    ) -> bool:
        """Has one of the partitions been behind its end, at one place, for longer than the timeout?"""
        lagging = {tp: at for tp, at in positions.items() if at is None or at < ends.get(tp, 0)}
        since = {tp: self._since.get(tp, (at, now)) for tp, at in lagging.items()}
        self._since = {tp: known if known[0] == lagging[tp] else (lagging[tp], now) for tp, known in since.items()}
        return any(now - first >= self.timeout_s for _, first in self._since.values())

    def reset(self) -> None:
        """Nothing can be said: the broker does not answer, or everything has just been assigned anew."""
        self._since.clear()
