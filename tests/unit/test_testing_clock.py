"""Virtual time: waits pass at once, and nothing that is under way outside of the loop is jumped over."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time

import pytest

from choreo.errors import ConfigurationError
from choreo.testing.clock import EPOCH_MS, virtual_time
from choreo.testing.inline import InlineExecutor


async def test_hours_pass_at_once() -> None:
    began = time.monotonic()
    with virtual_time() as clock:
        await asyncio.sleep(3_600)
        assert clock.now_ms() == EPOCH_MS + 3_600_000
    assert time.monotonic() - began < 5


async def test_time_all_but_stands_still_while_there_is_work() -> None:
    with virtual_time() as clock:
        before = clock.monotonic()
        for _ in range(100):
            await asyncio.sleep(0)
        time.sleep(0.01)
        assert 0 < clock.monotonic() - before < 0.000_1


async def test_the_last_billionth_of_a_wait_ends_too() -> None:
    # What is left after rounding makes a timer that is due at once; whoever asks again must see that time has gone on.
    with virtual_time():
        loop = asyncio.get_running_loop()
        due = loop.time() + math.ulp(loop.time())
        for _ in range(10):
            await asyncio.wait((loop.create_future(),), timeout=math.ulp(due) / 4)
        assert loop.time() >= due


async def test_waits_end_in_the_order_of_their_times() -> None:
    ended: list[str] = []

    async def wait(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        ended.append(name)

    with virtual_time():
        await asyncio.gather(wait("a day", 86_400), wait("a second", 1), wait("a month", 30 * 86_400))
    assert ended == ["a second", "a day", "a month"]


async def test_timeouts_pass_too() -> None:
    with virtual_time() as clock, pytest.raises(TimeoutError):
        async with asyncio.timeout(1_000):
            await asyncio.Event().wait()
    assert clock.now_ms() == EPOCH_MS + 1_000_000


async def test_work_in_an_executor_is_not_jumped_over() -> None:
    with virtual_time():
        async with asyncio.timeout(20):
            assert await asyncio.to_thread(lambda: time.sleep(0.2) or "done") == "done"


async def test_an_answer_on_a_socket_is_not_jumped_over() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, virtual_time():
        ours.setblocking(False)
        answer = threading.Timer(0.01, theirs.send, (b"done",))
        answer.start()
        async with asyncio.timeout(20):
            loop = asyncio.get_running_loop()
            waiting = asyncio.create_task(loop.sock_recv(ours, 4))
            assert await waiting == b"done"
        answer.join()


async def test_time_is_real_while_work_outside_is_said_to_be_under_way() -> None:
    with virtual_time() as clock:
        began = time.monotonic()
        with clock.outside_work():
            await asyncio.sleep(0.1)
        assert time.monotonic() - began >= 0.1
        assert clock.now_ms() == EPOCH_MS + 100


async def test_behind_the_block_time_goes_on_at_its_usual_pace() -> None:
    loop = asyncio.get_running_loop()
    with virtual_time():
        await asyncio.sleep(1_000)
        inside = loop.time()
    assert inside <= loop.time() < inside + 100
    began = time.monotonic()
    await asyncio.sleep(0.05)
    assert time.monotonic() - began >= 0.04
    with virtual_time():
        assert loop.time() >= inside


async def test_blocks_may_overlap_and_each_has_its_own_clock() -> None:
    with virtual_time() as outer:
        await asyncio.sleep(10)
        with virtual_time(epoch_ms=0) as inner:
            await asyncio.sleep(5)
        await asyncio.sleep(5)
        assert inner.now_ms() == 10_000
        assert outer.now_ms() == EPOCH_MS + 20_000


async def test_a_loop_whose_time_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(asyncio.get_running_loop(), "_selector")
    with pytest.raises(ConfigurationError, match="cannot be made virtual"), virtual_time():
        pass
    monkeypatch.undo()


def test_a_sync_call_sees_no_running_loop() -> None:
    async def main() -> int:
        async def inside() -> int:
            return 42

        value = InlineExecutor().submit(lambda: asyncio.run(inside())).result()
        await asyncio.sleep(0)  # and ours runs on
        return value

    assert asyncio.run(main()) == 42


def test_an_inline_call_tells_its_exception_through_the_future() -> None:
    error = ValueError("no")

    def fail() -> None:
        raise error

    assert InlineExecutor().submit(fail).exception() is error
