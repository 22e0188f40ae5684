"""One measurement: a load on a client, with the CPU time that each process spent meanwhile."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping

import msgspec

from benchmarks.load import Load, Measured, Operation, apply
from benchmarks.order_saga import BAD, GOOD
from benchmarks.processes import Usage, usage_of
from benchmarks.report import Report, Result, result_of
from choreo import Client, Saga, SagaFailed

WARMUP_S = 3.0
UsageOfAll = Callable[[], Mapping[str, Usage]]


def orders(client: Client, saga: Saga, failing_share: int = 0) -> Operation:
    """Run one saga after the other; every ``failing_share``-th fails at its last step, none if that is 0."""
    turn = itertools.count(1)

    async def one() -> None:
        if not failing_share or next(turn) % failing_share:
            await client.run(saga, GOOD)
            return
        try:
            await client.run(saga, BAD)
        except SagaFailed:
            return

    return one


async def measure(
    report: Report,
    name: str,
    layout: str,
    operation: Operation,
    load: Load,
    *,
    seconds: float,
    usage: UsageOfAll,
    own_name: str = "load",
    more: Callable[[Measured], Result] = lambda _: {},
) -> Measured:
    """Measure and report.

    Args:
        usage: of the processes that take part, but this one.
        own_name: of this one in the result.
        more: adds to the result.
    """
    report.progress(f"{name}, {layout}, {load}")
    looks: list[Mapping[str, Usage]] = []
    measured = await apply(
        load,
        operation,
        seconds=seconds,
        warmup_s=WARMUP_S,
        look=lambda: looks.append({**usage(), own_name: usage_of(os.getpid())}),
    )
    result = result_of(name, layout, measured, looks[0], looks[1])
    measured = msgspec.structs.replace(measured, cpu_us=sum(result["cpu_us_each"].values()))
    report.say(result | more(measured))
    return measured
