"""How much one caller may ask for: size of a body, requests a second, time for an answer."""

from __future__ import annotations

import math
from collections import OrderedDict
from http import HTTPStatus

from starlette.requests import Request

from choreo.clock import Clock
from choreo.web.problem import ProblemError

BODY_BYTES_MAX = 1_048_576
"""As much as a broker's record may have by default; an input beyond it could not be started anyway."""

ANSWER_TIMEOUT_S = 30.0
STREAMS_MAX = 64
CONNECTIONS_MAX = 512
REQUESTS_A_SECOND = 50.0
REQUESTS_AT_ONCE = 200.0
FAILURES_A_SECOND = 0.2
FAILURES_AT_ONCE = 10.0

_CALLERS_MAX = 10_000


class Buckets:
    """A token bucket for each caller: it fills at a constant rate up to a brim, and each request takes one out.

    Args:
        rate: requests a second in the long run.
        brim: how many may come at once.
    """

    def __init__(self, rate: float, brim: float, clock: Clock) -> None:
        self._rate = rate
        self._brim = brim
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> float:
        """Take one out. Returns 0, or after how many seconds there is one again."""
        level = self.level(caller)
        if level < 1:
            return (1 - level) / self._rate
        self._levels[caller] = (level - 1, self._clock.monotonic())
        self._levels.move_to_end(caller)
        while len(self._levels) > _CALLERS_MAX:
            self._levels.popitem(last=False)
        return 0.0

    def level(self, caller: str) -> float:
        """How many the caller has left."""
        level, at_s = self._levels.get(caller, (self._brim, self._clock.monotonic()))
        return min(self._brim, level + (self._clock.monotonic() - at_s) * self._rate)


def too_many(wait_s: float, what: str) -> ProblemError:
    """The caller has to wait."""
    seconds = math.ceil(wait_s)
    return ProblemError(
        HTTPStatus.TOO_MANY_REQUESTS,
        "too-many-requests",
        f"too many {what}; the next one is welcome in {seconds} s",
        rule=f"at most {REQUESTS_A_SECOND:g} requests a second and {REQUESTS_AT_ONCE:g} at once from one caller",
        remedy="wait as long as Retry-After says; GET /api/v1/events tells of changes without asking again and again",
        headers={"retry-after": str(seconds)},
    )


async def body_of(request: Request) -> bytes:
    """The request's body, read no further than it may be long. Raises ``ProblemError`` beyond that."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            raise ProblemError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "too-large",
                f"the body has more than {BODY_BYTES_MAX} bytes",
                at="body",
                rule=f"must have at most {BODY_BYTES_MAX} bytes",
                remedy="keep large values elsewhere and pass references",
                headers={"connection": "close"},
            )
        chunks.append(chunk)
    return b"".join(chunks)
