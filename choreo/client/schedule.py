"""When a saga is to begin, as a caller says it and as the start's record does."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TypedDict

from choreo.contract.policy import duration_ms
from choreo.errors import ConfigurationError

StartTime = datetime | timedelta | str
"""A moment with a time zone; or a delay from the start's append: "90s", "1h30m", or a ``timedelta``."""

_MS_MAX = 2**51


class Schedule(TypedDict, total=False):
    """The fields of ``SagaStarted`` that say it."""

    not_before_ms: int
    delay_ms: int


def schedule_of(at: StartTime | None) -> Schedule:
    """The schedule of a start; empty for one that begins at once.

    Raises:
        ConfigurationError: a moment without a time zone, or before 1970; a delay that is not above zero.
    """
    if at is None:
        return {}
    if isinstance(at, datetime):
        if at.utcoffset() is None:
            raise ConfigurationError(
                f"the time {at.isoformat()} has no time zone, so that it is another moment on every machine; "
                "give it one, as in datetime(…, tzinfo=UTC)"
            )
        not_before_ms = round(at.timestamp() * 1_000)
        if not 0 < not_before_ms <= _MS_MAX:
            raise ConfigurationError(f"the time {at.isoformat()} is before 1970 or too far away")
        return {"not_before_ms": not_before_ms}
    try:
        delay_ms = duration_ms(at)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"a start's delay: {error}") from error
    if delay_ms > _MS_MAX:
        raise ConfigurationError(f"a start's delay of {at} is too long")
    return {"delay_ms": delay_ms}
