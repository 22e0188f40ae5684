"""``choreo audit``: questions about the past, answered by folding the log."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from cyclopts import Parameter

from choreo.cli.options import AsJson, BrokerUrl, SagaSpec, broker_url, write_json

if TYPE_CHECKING:
    from choreo.audit import Difference, History, StateAt, Trail
    from choreo.audit.verification import Verified
    from choreo.broker import Broker

T = TypeVar("T")

_NOTICES_SHOWN = 50

SagaId = Annotated[str, Parameter(help="The id that start printed.")]
WHEN = "An offset (4711), a time (2026-11-22T14:02:11Z; 14:02, today, UTC), a time ago (-5m), or now."
When = Annotated[str, Parameter(help=WHEN, allow_leading_hyphen=True)]


def history(saga: SagaSpec, saga_id: SagaId, *, broker: BrokerUrl = None, as_json: AsJson = False) -> int:
    """Every record of a saga in order: who wrote it, what it answers, how long that took, what it led to.

    Example: choreo audit history order 0199a8c3 --broker sqlite:///choreo.db
    """
    from choreo.audit import history as history_of

    found = history_of(_trail(saga, saga_id, broker))
    if as_json:
        write_json(found)
    else:
        _print_history(found)
    return 0


def state(
    saga: SagaSpec,
    saga_id: SagaId,
    *,
    at: When = "now",
    broker: BrokerUrl = None,
    as_json: AsJson = False,
) -> int:
    """A saga as it was at a moment.

    Example: choreo audit state order 0199a8c3 --at 14:02
    """
    from choreo.audit import read_moment, state_at
    from choreo.cli.status import print_status
    from choreo.clock import SystemClock

    moment = read_moment(at, now_ms=SystemClock().now_ms())
    found = state_at(_trail(saga, saga_id, broker), moment)
    if as_json:
        write_json(found)
    else:
        print(f"after offset {found.offset}, {_time(found.at_ms)} by the broker's clock")  # noqa: T201
        print_status(found.status)
        if found.owed:
            print(f"decided, and not yet in the log: {', '.join(found.owed)}")  # noqa: T201
    return 0


def diff(
    saga: SagaSpec,
    saga_id: SagaId,
    before: When,
    after: When = "now",
    /,
    *,
    broker: BrokerUrl = None,
    as_json: AsJson = False,
) -> int:
    """What changed in a saga between two moments.

    Example: choreo audit diff order 0199a8c3 17 42
    """
    from choreo.audit import difference, read_moment
    from choreo.clock import SystemClock

    now_ms = SystemClock().now_ms()
    earlier, later = read_moment(before, now_ms=now_ms), read_moment(after, now_ms=now_ms)
    found = difference(_trail(saga, saga_id, broker), earlier, later)
    if as_json:
        write_json(found)
    else:
        _print_difference(found)
    return 0


def verify(
    sagas: Annotated[list[str], Parameter(help="MODULE:NAME of contracts, or names of registered sagas.")],
    *,
    broker: BrokerUrl = None,
    store: Annotated[
        str | None, Parameter(env_var="CHOREO_STORE", help="Compare the saga-log's store with the fold, too.")
    ] = None,
    patience: Annotated[str, Parameter(help="How long a decision may be unsaid before it is missing.")] = "1m",
    accept: Annotated[
        list[str] | None, Parameter(help="Kinds of faults that are listed and do not count (unreadable, effect_twice).")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Judge every record of a saga's topic: decisions owed, none missing, none forged, no effect twice. Reads only.

    Exit code 0 if there is no fault, 1 if there is one (or the store differs), 4 if the broker cannot be read.

    Example: choreo audit verify order --broker kafka://localhost:9092 --store sqlite:///saga-log.db
    """
    from choreo.cli.exits import Exit
    from choreo.contract.policy import duration_ms
    from choreo.errors import ConfigurationError

    try:
        patience_ms = duration_ms(patience)
    except ValueError as error:
        raise ConfigurationError(f"--patience: {error}") from error

    async def work(opened: Broker) -> bool:
        from choreo.audit.verification import verify as verify_log
        from choreo.broker.registry import Registry
        from choreo.cli.bar import progress_bar
        from choreo.cli.names import find_saga
        from choreo.clock import SystemClock

        sound = True
        for name in dict.fromkeys([(await find_saga(opened, spec)).name for spec in sagas]):
            with progress_bar("verifying") as move:
                now_ms = SystemClock().now_ms()
                found = await verify_log(
                    opened, name, registry=Registry(opened), now_ms=now_ms, patience_ms=patience_ms, on_progress=move
                )
            counted = {kind: count for kind, count in found.faults_total.items() if kind not in (accept or ())}
            sound = sound and not counted
            if as_json:
                write_json({"sound": not counted, **msgspec.structs.asdict(found)})
            else:
                _print_verified(found)
            if store:
                sound = await _store_agrees(opened, name, store, as_json=as_json) and sound
        return sound

    # Payloads as they stand in the log: verification needs no keys, and what was sealed are these bytes.
    return Exit.DONE if with_broker(broker, work, encrypted=False) else Exit.NO


async def _store_agrees(broker: Broker, saga: str, url: str, *, as_json: bool) -> bool:
    from choreo.broker.registry import RETENTION_MS_DEFAULT, Registry
    from choreo.cli.check_store import print_checked
    from choreo.clock import SystemClock
    from choreo.saga_log.check import check
    from choreo.store.inspection import open_inspection

    inspection = await open_inspection(url)
    try:
        before_ms = SystemClock().now_ms() - RETENTION_MS_DEFAULT
        checked = await check(broker, inspection, saga, registry=Registry(broker), dropped_before_ms=before_ms)
    finally:
        await inspection.close()
    if as_json:
        write_json({"agrees": checked.agrees, **msgspec.structs.asdict(checked)})
    else:
        print_checked(checked)
    return checked.agrees


def _print_verified(found: Verified) -> None:
    for fault in found.faults:
        where = f"{found.saga}[{fault.partition}]" + (f" offset {fault.offset}" if fault.offset >= 0 else "")
        print(f"FAULT   {fault.kind:<14}{where}  {fault.saga_id}: {fault.text}")  # noqa: T201 - the command's output
    for notice in found.notices[:_NOTICES_SHOWN]:
        where = f"{found.saga}[{notice.partition}] offset {notice.offset}"
        print(f"notice  {notice.kind:<14}{where}  {notice.saga_id}: {notice.text}")  # noqa: T201
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(found.faults_total.items())) or "no faults"
    notices = ", ".join(f"{count} {kind}" for kind, count in sorted(found.notices_total.items())) or "no notices"
    unfinished = sum(each.unfinished for each in found.partitions)
    print(  # noqa: T201
        f"{found.saga}: {'sound' if found.sound else 'NOT SOUND'}; {found.records:,} records in "
        f"{len(found.partitions)} partitions, {unfinished} sagas under way; {faults}; {notices}",
        file=sys.stderr,
    )


def with_broker(
    url: str | None, work: Callable[[Broker], Awaitable[T]], *, signed: bool = True, encrypted: bool = True
) -> T:
    """Open the broker (as ``open_broker`` does), do the work, close the broker."""
    from choreo.broker import open_broker
    from choreo.cli.process import run_async

    address = broker_url(url)

    async def main() -> T:
        opened = await open_broker(address, signed=signed, encrypted=encrypted)
        try:
            return await work(opened)
        finally:
            await asyncio.shield(opened.close())

    return run_async(main)


def _trail(saga: str, saga_id: str, broker: str | None) -> Trail:
    async def read(opened: Broker) -> Trail:
        from choreo.audit import read_trail
        from choreo.broker.registry import Registry
        from choreo.cli.names import find_saga

        contract = await find_saga(opened, saga)
        return await read_trail(opened, contract.name, saga_id, registry=Registry(opened))

    return with_broker(broker, read)


def _print_history(found: History) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from choreo.cli.status import print_status

    console = Console(highlight=False)
    started = _time(found.lines[0].at_ms)
    console.print(Text(f"history of {found.saga} {found.saga_id}, partition {found.partition}, from {started}"))
    table = Table(box=None, pad_edge=False)
    for heading in (
        "offset",
        "after",
        "record",
        "step",
        "by",
        "answers",
        "waited",
        "worked",
        "about",
        "so it is decided",
    ):
        table.add_column(heading, overflow="fold")
    for line in found.lines:
        again = f" ({line.round})" if (line.round or 1) > 1 else ""
        note = f"[{line.note}]" if line.note else ""
        table.add_row(
            str(line.offset),
            f"{line.after_ms:+,} ms",
            line.type,
            f"{line.step or ''}{again}",
            Text(line.writer),
            "" if line.caused_by is None else str(line.caused_by),
            _ms(line.waited_ms),
            _ms(line.worked_ms),
            Text(", ".join(filter(None, (line.about, note)))),
            Text(", ".join(line.decided)),
        )
    console.print(table)
    for offset, why in found.unfolded:
        console.print(Text(f"offset {offset} is no part of it: {why}"))
    console.print()
    print_status(found.status)


def _print_difference(found: Difference) -> None:
    for name, one in (("from", found.before), ("to", found.after)):
        print(f"{name:<5} {_place(one)}")  # noqa: T201 - the command's output
    print(f"records between them: {len(found.offsets)}")  # noqa: T201
    for change in found.changes:
        print(f"{change.path}: {_value(change.before)} -> {_value(change.after)}")  # noqa: T201


def _place(state: StateAt) -> str:
    return f"offset {state.offset}, {_time(state.at_ms)}, {state.status.phase}"


def _value(value: Any) -> str:
    return "nothing" if value is None else msgspec.json.encode(value).decode()


def _time(at_ms: int) -> str:
    at = datetime.fromtimestamp(at_ms / 1_000, UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}.{at_ms % 1_000:03} UTC"


def _ms(value: int | None) -> str:
    return "" if value is None else f"{value:,} ms"
