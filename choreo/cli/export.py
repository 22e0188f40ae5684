"""``choreo audit export``: history for tables, notebooks and process mining."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

from cyclopts import Parameter

from choreo.cli.audit import WHEN
from choreo.cli.options import BrokerUrl, SagaSpec
from choreo.errors import ConfigurationError

if TYPE_CHECKING:
    from choreo.audit.tables import RowWriter
    from choreo.broker import Broker

Format = Literal["jsonl", "csv", "parquet", "ocel"]


def export(
    saga: SagaSpec,
    *,
    format: Annotated[Format, Parameter(name=["--format", "-f"], help="parquet needs the extra audit.")] = "jsonl",  # noqa: A002 - the user's word
    output: Annotated[
        str | None, Parameter(name=["--output", "-o"], help="The file; standard output without it.")
    ] = None,
    since: Annotated[
        str | None, Parameter(help=f"Only records from then on. {WHEN}", allow_leading_hyphen=True)
    ] = None,
    until: Annotated[str | None, Parameter(help="Only records up to then.", allow_leading_hyphen=True)] = None,
    values: Annotated[bool, Parameter(help="Whether records are there in full, inputs and effects included.")] = True,
    broker: BrokerUrl = None,
) -> int:
    """Write a saga topic's history, a row for each record: JSON lines, CSV, Parquet, or OCEL 2.0 for process mining.

    Example: choreo audit export order --format ocel --output order.jsonocel --since -7d
    """
    from choreo.audit import read_moment
    from choreo.cli.audit import with_broker
    from choreo.clock import SystemClock

    if format == "parquet" and output is None:
        raise ConfigurationError("Parquet is written to a file; give --output")
    now_ms = SystemClock().now_ms()
    times = [None if text is None else read_moment(text, now_ms=now_ms) for text in (since, until)]
    if any(moment is not None and moment.offset is not None for moment in times):
        raise ConfigurationError("--since and --until take times: offsets are each partition's own")
    since_ms, until_ms = (moment.at_ms if moment else None for moment in times)

    async def work(opened: Broker) -> int:
        from choreo.audit.rows import exported
        from choreo.broker.registry import Registry
        from choreo.cli.bar import progress_bar
        from choreo.cli.names import find_saga

        name, count = (await find_saga(opened, saga)).name, 0
        with ExitStack() as stack:
            writer = stack.enter_context(_writer(format, output, stack))
            move = stack.enter_context(progress_bar("exporting"))
            batches = exported(
                opened,
                name,
                registry=Registry(opened),
                since_ms=since_ms or 0,
                until_ms=until_ms or 2**63,
                with_values=values,
                on_progress=move,
            )
            async for batch in batches:
                writer.write(batch)
                count += len(batch)
        return count

    count = with_broker(broker, work)
    print(f"{count:,} records exported", file=sys.stderr)  # noqa: T201
    return 0


def _writer(kind: Format, output: str | None, stack: ExitStack) -> RowWriter:
    from choreo.audit.ocel import Ocel
    from choreo.audit.tables import Csv, JsonLines, Parquet

    stream: BinaryIO = sys.stdout.buffer
    try:
        if kind == "parquet":
            return Parquet(Path(output or ""))
        if output is not None:
            stream = stack.enter_context(Path(output).open("wb"))  # noqa: SIM115 -- the stack closes it
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror or error}") from error
    if kind == "ocel":
        return Ocel(stream)
    return Csv(stream) if kind == "csv" else JsonLines(stream)
