"""Calls of async handlers, whose first step is taken without a timer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from choreo.step.call import AttemptTimeout, call_async

Called = tuple[Any, BaseException | None]


class Bare:
    """A callee that takes nothing."""

    is_async = True

    def __init__(self, function: Callable[..., Awaitable[Any]]) -> None:
        self.function = function

    def arguments(self, subject: None) -> tuple[list[Any], dict[str, Any]]:
        del subject
        return [], {}


def called(function: Callable[..., Awaitable[Any]], limit_s: float = 5.0) -> Called:
    return asyncio.run(_called(function, limit_s))


async def _called(function: Callable[..., Awaitable[Any]], limit_s: float) -> Called:
    return await call_async(Bare(function), None, limit_s, "timeout")


def test_a_handler_that_waits_for_nothing_has_returned() -> None:
    async def handler() -> int:
        return 7

    assert called(handler, limit_s=0) == (7, None)


def test_a_handler_that_waits_goes_on_where_it_was() -> None:
    async def handler() -> list[int]:
        seen = [1]
        await asyncio.sleep(0)
        seen.append(2)
        seen.append(await asyncio.get_running_loop().run_in_executor(None, lambda: 3))
        return seen

    assert called(handler) == ([1, 2, 3], None)


def test_an_awaitable_that_is_no_coroutine_is_awaited() -> None:
    class Later:
        def __await__(self) -> Generator[Any, Any, str]:
            yield from asyncio.sleep(0).__await__()
            return "done"

    assert called(Later) == ("done", None)


@pytest.mark.parametrize("waits_first", [False, True])
def test_what_a_handler_raises_is_its_failure(waits_first: bool) -> None:
    async def handler() -> None:
        if waits_first:
            await asyncio.sleep(0)
        raise SystemExit("gone")

    value, error = called(handler)

    assert value is None
    assert isinstance(error, SystemExit)


def test_a_limit_that_the_handler_set_before_it_waited_is_its_own() -> None:
    async def handler() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            await asyncio.sleep(0)
            return "gave up"
        return "waited"

    assert called(handler) == ("gave up", None)


def test_a_handler_past_its_limit_is_cancelled_and_may_clean_up() -> None:
    cleaned: list[str] = []

    async def handler() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.append("up")

    value, error = called(handler, limit_s=0.01)

    assert value is None
    assert isinstance(error, AttemptTimeout)
    assert cleaned == ["up"]


def test_a_cancelled_handler_may_return_all_the_same() -> None:
    async def handler() -> str:
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue
        return "stubborn"

    async def scenario() -> Called:
        task = asyncio.create_task(_called(handler, 60))
        for _ in range(2):
            await asyncio.sleep(0.01)
            task.cancel()
        return await task

    assert asyncio.run(scenario())[0] == "stubborn"


def test_who_calls_is_cancelled_with_the_handler() -> None:
    async def handler() -> None:
        await asyncio.sleep(60)

    async def scenario() -> None:
        task = asyncio.create_task(_called(handler, 60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_a_handler_that_waited_for_a_cancelled_task_has_crashed() -> None:
    async def handler() -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await task

    assert isinstance(called(handler)[1], asyncio.CancelledError)
