"""What can go wrong: which kinds do in a run, how often, and how often they did.

Each seed picks a part of the kinds and a rate for each ("swarm testing"): faults that are always all on hide one
another. A kind that is off draws nothing, so that its absence changes nothing else.
"""

from __future__ import annotations

from collections import Counter
from random import Random

PER_CALL: dict[str, tuple[float, float]] = {
    # the way to the broker
    "send_delayed": (0.02, 0.3),
    "send_refused": (0.01, 0.15),
    "ack_lost": (0.01, 0.15),
    "ack_delayed": (0.02, 0.3),
    "record_twice": (0.01, 0.2),
    "append_after_death": (0.2, 0.9),  # of the sends that are cancelled on their way
    "poll_delayed": (0.02, 0.3),
    "batch_torn": (0.05, 0.8),
    "commit_lost": (0.05, 0.5),
    "commit_ack_lost": (0.05, 0.5),
    "commit_late": (0.05, 0.5),
    "question_unanswered": (0.02, 0.3),
    # a process dies at a chosen point
    "dies_before_send": (0.002, 0.03),
    "dies_after_append": (0.002, 0.03),
    "dies_after_poll": (0.001, 0.02),
    "dies_before_commit": (0.005, 0.05),
    "dies_after_commit": (0.005, 0.05),
    "dies_before_effect": (0.002, 0.03),
    "dies_after_effect": (0.002, 0.03),
    "dies_before_save": (0.002, 0.03),
    "dies_after_save": (0.002, 0.03),
    "stays_away": (0.05, 0.5),  # of the restarts: past the deadlines of steps
    # the saga-log's store
    "save_refused": (0.01, 0.2),
    "store_lost": (0.1, 0.7),  # of the restarts
    "store_stale": (0.1, 0.7),
    # handlers
    "step_rejects": (0.01, 0.2),
    "step_aborts": (0.01, 0.1),
    "step_fails_before_effect": (0.01, 0.2),
    "step_fails_after_effect": (0.01, 0.2),
    "step_hangs_before_effect": (0.005, 0.1),
    "step_hangs_after_effect": (0.005, 0.1),
    "step_is_slow": (0.05, 0.5),
    "undo_fails_once": (0.01, 0.3),
    "undo_fails_after_effect": (0.01, 0.3),
    "undo_fails_for_good": (0.01, 0.2),
    "undo_hangs": (0.01, 0.1),
    "undo_is_slow": (0.05, 0.5),
    "undo_asks_for_retry": (0.02, 0.4),
    "undo_continues": (0.02, 0.4),
    "undo_aborts_retries": (0.01, 0.2),
    # clients, of each saga
    "cancelled": (0.02, 0.4),
    "cancelled_before_start": (0.01, 0.1),
    "started_again": (0.02, 0.3),
    "started_with_other_input": (0.02, 0.3),
    "scheduled": (0.05, 0.4),
    "signal_before_start": (0.1, 0.6),
    "signal_withheld": (0.05, 0.4),
    "signalled_twice": (0.1, 0.6),
    "left_stuck": (0.1, 0.7),  # of the stuck ones
}
"""Probability of each, from and to, whenever there is occasion for it."""

PER_SECOND: dict[str, tuple[float, float]] = {
    "process_killed": (0.01, 0.3),
    "process_stopped": (0.01, 0.1),
    "stalled_briefly": (0.02, 0.3),
    "stalled_past_session": (0.01, 0.1),
    "rebalance_storm": (0.02, 0.2),
    "clock_stepped": (0.02, 0.2),
    "log_clock_stepped": (0.02, 0.3),
    "broker_away": (0.005, 0.05),
    "cut_off": (0.01, 0.1),
    "poison": (0.02, 0.3),
    "old_record_again": (0.02, 0.5),
    "store_copied": (0.1, 0.5),
}
"""Rate of each, from and to, in virtual time."""

KINDS = (*PER_CALL, *PER_SECOND)


class Faults:
    """The faults of one run.

    Attributes:
        active: off, nothing goes wrong any more.
        fired: how often each kind did.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(f"{seed}/faults")
        share = self.random.uniform(0.1, 0.8)
        self.rates = {
            kind: low * (high / low) ** self.random.random()
            for kind, (low, high) in (PER_CALL | PER_SECOND).items()
            if self.random.random() < share
        }
        if "store_stale" in self.rates:
            self.rates.setdefault("store_copied", 0.3)
        self.active = True
        self.fired: Counter[str] = Counter()

    @classmethod
    def none(cls) -> Faults:
        """A world in which nothing goes wrong by itself."""
        faults = cls(0)
        faults.rates.clear()
        return faults

    def happens(self, kind: str) -> bool:
        """Whether it does now; counted if so."""
        rate = self.rates.get(kind)
        if rate is None or not self.active or self.random.random() >= rate:
            return False
        self.fired[kind] += 1
        return True

    def seconds(self, shortest: float = 0.002, longest: float = 4.0) -> float:
        """A length of time: most are short, some are long."""
        return float(shortest * (longest / shortest) ** self.random.random())
