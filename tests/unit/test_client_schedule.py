"""When a saga is to begin, as a caller says it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from choreo.client.schedule import Schedule, schedule_of
from choreo.errors import ConfigurationError


@pytest.mark.parametrize(
    ("at", "schedule"),
    [
        (None, {}),
        ("90s", {"delay_ms": 90_000}),
        (timedelta(hours=1), {"delay_ms": 3_600_000}),
        (datetime(2030, 1, 1, tzinfo=UTC), {"not_before_ms": 1_893_456_000_000}),
        (datetime(2030, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), {"not_before_ms": 1_893_456_000_000}),
    ],
)
def test_a_moment_or_a_delay(at: Any, schedule: Schedule) -> None:
    assert schedule_of(at) == schedule


@pytest.mark.parametrize(
    ("at", "complaint"),
    [
        (datetime(2030, 1, 1), "no time zone"),  # noqa: DTZ001  # that is the point
        (datetime(1969, 1, 1, tzinfo=UTC), "before 1970"),
        ("tomorrow", "is not like"),
        (timedelta(0), "not above zero"),
        (timedelta(days=-1), "not above zero"),
        (timedelta(days=30_000_000), "too long"),
        ([], "a start's delay"),
    ],
)
def test_what_is_no_time_is_refused(at: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        schedule_of(at)
