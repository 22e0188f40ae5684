"""Works of the saga-log that do not wait for each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

AT_ONCE = 1_000  # after a long outage everything may be owed at once

Work = Callable[[], Coroutine[Any, Any, bool]]


async def side_by_side(works: Sequence[Work]) -> list[bool]:
    """Run all of them to their end, some at a time; the first error ends the others and is raised."""
    if len(works) == 1:
        return [await works[0]()]
    results: list[bool] = []
    for first in range(0, len(works), AT_ONCE):
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work(), name="saga-log/append") for work in works[first : first + AT_ONCE]]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        results += [task.result() for task in tasks]
    return results
