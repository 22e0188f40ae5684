"""``choreo status``: where a saga is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from choreo.cli.options import AsJson, BrokerUrl, SagaSpec, broker_url, write_json

if TYPE_CHECKING:
    from choreo.core.status import SagaStatus


def status(
    saga: SagaSpec,
    saga_id: Annotated[str, Parameter(help="The id that start printed.")],
    *,
    broker: BrokerUrl = None,
    as_json: AsJson = False,
) -> int:
    """Show where a saga is: a fold of its log, now.

    Example: choreo status order 0199a8c3 --broker sqlite:///choreo.db
    """
    from choreo.broker import open_broker
    from choreo.cli.names import find_saga
    from choreo.cli.process import run_async
    from choreo.client import Client

    url = broker_url(broker)

    async def ask() -> SagaStatus:
        opened = await open_broker(url)
        try:
            contract = await find_saga(opened, saga)
            async with Client(opened, source="cli") as client:
                return await client.status(contract, saga_id)
        finally:
            await opened.close()

    found = run_async(ask)
    if as_json:
        write_json(found)
    else:
        print_status(found)
    return 0


def print_status(status: SagaStatus) -> None:
    """The status for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from choreo.cli.values import moment_text
    from choreo.contract.policy import duration_text

    console = Console(highlight=False)
    end_ms = status.finished_ms or status.updated_ms
    began_ms = status.begins_ms or status.started_ms
    took = f" after {duration_text(max(1, end_ms - began_ms))}" if status.finished_ms else ""
    again = f", round {status.round}" if status.round > 1 else ""
    console.print(Text(f"saga {status.saga} v{status.version} {status.saga_id}: {status.phase}{took}{again}"))
    for line in _waits(status):
        console.print(Text(line))
    if status.truncated:
        console.print("its start is not in the log (any more), or cannot be read; nothing will be decided for it")
    if status.dead_letters:
        console.print(
            Text(
                f"{status.dead_letters} record(s) under its id cannot be read: "
                f"choreo dead-letters list {status.saga} --saga-id {status.saga_id}"
            )
        )
    if status.failure is not None:
        code = f" ({status.failure.code})" if status.failure.code else ""
        console.print(Text(f"failed at {status.step}: {status.failure.kind}{code} {status.failure.message}"))
    if status.remaining:
        console.print(Text(f"still to be undone: {', '.join(status.remaining)}"))
    table = Table(box=None, pad_edge=False)
    for heading in ("step", "phase", "effect or failure"):
        table.add_column(heading, overflow="fold")
    for step in status.steps:
        detail = (f"saga {step.child}" if step.child else "") if step.effect is None else str(step.effect)
        if step.failure is not None:
            detail = f"{step.failure.kind} {step.failure.code} {step.failure.message}".strip()
        if step.signal is not None:
            detail = f"for signal {step.signal}, until {moment_text(step.signal_due_ms)}"
        table.add_row(step.step, step.phase, Text(detail))
    console.print(table)


def _waits(status: SagaStatus) -> Iterator[str]:
    """What the whole saga waits for, in words."""
    from choreo.cli.values import moment_text

    if status.phase == "scheduled":
        yield f"begins {moment_text(status.begins_ms)}"
    for pause in status.paused:
        what = "paused" if pause.of == "saga" else f"all sagas {status.saga} are paused"
        by = f" by {pause.operator}" if pause.operator else ""
        why = f": {pause.reason}" if pause.reason else ""
        yield f"{what}{by} since {moment_text(pause.since_ms)}{why}"
