"""Policies as data: how long, how often, how far apart."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Literal

import msgspec

Duration = str | float | timedelta
"""``"30s"``, ``"1h30m"``, ``"250ms"``; a number of seconds; or a ``timedelta``."""

CompensateOnFailure = Literal["if_unknown", "always", "never"]
"""Whether the failing step's own compensation runs.

``if_unknown``: after a crash or a timeout, when nobody knows whether there is an effect; not after a definite failure.
``always``: first of all, also after a definite failure (as Sage does). ``never``: not at all (as PhoenixMicro does).
"""

OnSiblingFailure = Literal["settle", "cancel"]
"""What becomes of a step that is at work when the saga turns back, because a sibling has failed or it is cancelled.

``settle``: it goes on to its own end, and then everything is undone. ``cancel``: its attempt is cancelled.
"""

RecoverFrom = Literal["rejected", "crashed", "timed_out"]
"""A kind of failure for which a step's own compensation may have a substitute: ``Continue``."""

RECOVER_FROM_DEFAULT: tuple[RecoverFrom, ...] = ("rejected",)

DURATION_MS_MAX = 2**52
"""Added to a time of today this stays below 2**53, so JSON readers of any language keep every millisecond."""

NO_DUE_MS = DURATION_MS_MAX
"""The due of what no deadline ends: the pivot, and what comes after it."""

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def duration_ms(value: Duration) -> int:
    """The duration in whole milliseconds.

    Raises:
        ValueError: the text is not a sum of numbers with a unit of ms, s, m, h or d, or the duration is out of range.
    """
    if isinstance(value, timedelta):
        milliseconds = value / timedelta(milliseconds=1)
    elif isinstance(value, str):
        if not re.fullmatch(rf"(?:{_DURATION.pattern})+", value):
            raise ValueError(f"duration {value!r} is not like '30s', '1h30m' or '250ms'")
        milliseconds = sum(float(number) * _UNITS_MS[unit] for number, unit in _DURATION.findall(value))
    else:
        milliseconds = value * 1_000
    if not 0 < milliseconds <= DURATION_MS_MAX:
        raise ValueError(f"duration {value!r} is not above zero and at most {duration_text(DURATION_MS_MAX)}")
    return max(1, round(milliseconds))


def duration_text(milliseconds: int) -> str:
    """A text that ``duration_ms`` reads, units from large to small: 90000 is ``1m30s``."""
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):
        count, milliseconds = divmod(milliseconds, _UNITS_MS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


class Retries(msgspec.Struct, frozen=True):
    """Attempts of a handler beyond the first, with exponential backoff.

    Before retry n (1, 2, …) the worker waits ``min(backoff_ms_max, backoff_ms_base * 2**(n - 1))`` milliseconds, or
    with ``jitter`` a uniform draw between zero and that ("full jitter", Brooker, AWS Architecture Blog, 2015).

    Attributes:
        limit: extra attempts; 0 is one attempt in all.
        backoff_ms_base: the wait before the first retry; doubled for each further one.
        backoff_ms_max: no wait is longer.
        jitter: draw each wait between zero and that length, so that many workers do not retry in step.
    """

    limit: int = 0
    backoff_ms_base: int = 100
    backoff_ms_max: int = 5_000
    jitter: bool = True

    def backoff_ms(self, retry: int) -> int:
        """The longest wait before the given retry, counted from 1. Saturates instead of overflowing."""
        return min(self.backoff_ms_max, self.backoff_ms_base << min(retry - 1, 62))


FORWARD_RETRIES_DEFAULT = Retries(limit=10, backoff_ms_base=1_000, backoff_ms_max=300_000)
"""Past the pivot: ten further rounds in about 20 minutes, then an operator is asked."""
