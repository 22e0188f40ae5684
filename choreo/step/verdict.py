"""What a handler can say besides "done": exceptions for steps, return values for compensations.

A step returns its effect, or raises ``Reject`` or ``Abort``. A compensation returns ``None`` (undone) or one of
``NothingToUndo``, ``Retry``, ``Continue``, ``AbortRetries``. Any other exception is a crash and retried by policy.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

BACKOFF_MS_MAX = 5_000
NUMBER_MAX = 1_000_000_000  # what a record can carry


class Reject(Exception):  # noqa: N818  # a decision of the handler, not an error of the program
    """The step is refused for good and has left no effect. Never retried.

    Raise it only when nothing was done: the step itself is then not compensated (by default).

    Attributes:
        reason: for people.
        code: for programs, a short word ("card_declined"); it travels with the saga's failure. A subclass may name
            its own.
    """

    reason: str = ""
    code: str = ""

    def __init__(self, reason: str, code: str = "") -> None:
        self.reason = reason
        if code:
            self.code = code
        super().__init__(reason)


class Abort(Reject):
    """A ``Reject`` that also forbids every later retry of the saga."""


class InvalidInput(Exception):  # noqa: N818  # reads as the failure's code does
    """A value of the saga's context does not fit the type that the handler asked for; the message says where.

    The step fails with code ``invalid_input`` and is not retried: the same bytes will not fit later either.
    """


class NothingToUndo(msgspec.Struct, frozen=True):
    """The compensation found no effect of the step."""


class Retry(msgspec.Struct, frozen=True):
    """Undone; let the saga go forward again from here, as the next round, after a backoff.

    The backoff is ``min(max_backoff, (2 * base_backoff) ** round)`` milliseconds, and with ``jitter`` a uniform draw
    from 0 to one less than that. It is the saga-log's timer, so it survives restarts.

    Attributes:
        limit: honoured while it is above the round that failed, so N allows N rounds in all.
        base_backoff: milliseconds; 0 goes forward at once.
        max_backoff: milliseconds.
        jitter: draw the wait, so that many sagas do not come back in step.

    Raises:
        ValueError: a number is negative, not whole, or larger than a record can carry.
    """

    limit: int
    base_backoff: int = 0
    max_backoff: int = BACKOFF_MS_MAX
    jitter: bool = True

    def __post_init__(self) -> None:
        for name in ("limit", "base_backoff", "max_backoff"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value <= NUMBER_MAX:
                raise ValueError(f"{name} is {value!r}; it must be a whole number from 0 to {NUMBER_MAX}")

    def backoff_ms(self, saga_round: int, random: Random) -> int:
        """The wait before the next round."""
        if self.base_backoff == 0:
            return 0
        # 2 to the 64th is above every limit that fits the wire: no need to compute a number with a million digits.
        backoff = self.max_backoff if saga_round > 64 else min(self.max_backoff, (2 * self.base_backoff) ** saga_round)
        return random.randrange(backoff) if self.jitter and backoff > 0 else backoff


class Continue(msgspec.Struct, frozen=True):
    """Go on forward with ``effect`` in place of the step's own: a circuit breaker.

    It counts only as the answer of the failing step's own compensation, after a kind of failure that the step's
    ``recover_from`` names (``CompensationContext.may_continue``).
    """

    effect: Any


class AbortRetries(msgspec.Struct, frozen=True):
    """Undone, and no compensation of this saga may send it forward again."""


CompensationAnswer = NothingToUndo | Retry | Continue | AbortRetries | None
