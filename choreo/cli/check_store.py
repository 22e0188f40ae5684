"""``choreo check-store``: is what the store holds the fold of the log?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from choreo.cli.exits import Exit
from choreo.cli.options import AsJson, BrokerUrl, broker_url, write_json
from choreo.errors import ConfigurationError

if TYPE_CHECKING:
    from choreo.saga_log.check import Checked

_SHOWN_MAX = 100


def check_store(
    contracts: Annotated[
        list[str], Parameter(help="MODULE:NAME of each contract, or the name of a registered saga (order).")
    ],
    *,
    broker: BrokerUrl = None,
    store: Annotated[
        str | None, Parameter(env_var="CHOREO_STORE", help="sqlite:///file, or postgresql://user@host:5432/database.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Fold the log again up to the store's checkpoints and compare: the states in the store are the fold, or are not.

    Nothing is changed, and the saga-log may be at work meanwhile. Listed are differences, by saga and field, and sagas
    whose start is no longer in the log. Exit code 1 if there is a difference, or if a saga without its start is not
    finished: the store is then the only place that knows it.

    Example: choreo check-store order --broker kafka://localhost:9092 --store sqlite:///saga-log.db
    """
    from choreo.broker import open_broker
    from choreo.broker.registry import RETENTION_MS_DEFAULT, Registry
    from choreo.cli.names import find_saga
    from choreo.cli.process import run_async
    from choreo.clock import SystemClock
    from choreo.saga_log.check import check
    from choreo.store.inspection import open_inspection

    url = broker_url(broker)
    if not store:
        raise ConfigurationError("no store given; use --store URL or set CHOREO_STORE, as in sqlite:///saga-log.db")

    async def work() -> list[Checked]:
        opened = await open_broker(url)
        try:
            names = dict.fromkeys([(await find_saga(opened, spec)).name for spec in contracts])
            inspection = await open_inspection(store)
            try:
                registry = Registry(opened)
                horizon_ms = SystemClock().now_ms() - RETENTION_MS_DEFAULT
                return [
                    await check(opened, inspection, name, registry=registry, dropped_before_ms=horizon_ms)
                    for name in names
                ]
            finally:
                await inspection.close()
        finally:
            await opened.close()

    found = run_async(work)
    for checked in found:
        if as_json:
            write_json({"agrees": checked.agrees, **msgspec.structs.asdict(checked)})
        else:
            print_checked(checked)
    return Exit.DONE if all(checked.agrees for checked in found) else Exit.NO


def print_checked(checked: Checked) -> None:
    """A comparison for people."""
    for each in checked.differences[:_SHOWN_MAX]:
        where = f"{checked.saga}[{each.partition}] {each.saga_id}".rstrip()
        print(f"{where}  {each.field}: the store has {each.stored}, the log says {each.folded}")  # noqa: T201
    if checked.differences_total > _SHOWN_MAX:
        print(f"… and {checked.differences_total - _SHOWN_MAX} more differences")  # noqa: T201
    unfinished = [each for each in checked.truncated if not each.resting]
    for saga in [*unfinished, *(each for each in checked.truncated if each.resting)][:_SHOWN_MAX]:
        state = saga.phase if saga.resting else f"{saga.phase}, NOT FINISHED: the store alone knows it"
        print(f"{checked.saga}[{saga.partition}] {saga.saga_id}  its start is no longer in the log ({state})")  # noqa: T201
    stored = [each for each in checked.partitions if each.offset is not None]
    behind = sum(each.end - each.offset for each in stored if each.offset is not None)
    summary = (
        f"{checked.saga}: {'agrees' if checked.agrees else 'DIFFERS'}; {sum(each.sagas for each in stored)} sagas in "
        f"{len(stored)} of {len(checked.partitions)} partitions compared, {checked.differences_total} differences, "
        f"{len(checked.truncated)} truncated ({len(unfinished)} not finished), {checked.dropped} dropped by age, "
        f"{behind} records after the checkpoints"
    )
    print(summary, file=sys.stderr)  # noqa: T201
