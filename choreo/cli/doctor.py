"""``choreo doctor``: is a deployment as sagas need it?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from choreo.cli.options import AsJson, BrokerUrl, write_json

if TYPE_CHECKING:
    from choreo.broker import Broker
    from choreo.doctor import Diagnosis


def doctor(
    contracts: Annotated[
        list[str] | None,
        Parameter(help="MODULE:NAME of contracts, or names of registered sagas; all of these by default."),
    ] = None,
    *,
    broker: BrokerUrl = None,
    store: Annotated[
        str | None, Parameter(env_var="CHOREO_STORE", help="The saga-log's store, to be examined too.")
    ] = None,
    read_log: Annotated[
        bool | None, Parameter(help="Fold the log for versions in flight, however long it is, where there is no store.")
    ] = None,
    strict: Annotated[bool, Parameter(negative="", help="Let warnings count as errors.")] = False,
    as_json: AsJson = False,
) -> int:
    """Examine topics, services, contracts, store and clocks; each finding comes with its fix. Reads only.

    Exit code 0 if there is no error (with --strict: nor a warning), 1 if there is one, 4 if no broker answers.

    Example: choreo doctor order --broker kafka://localhost:9092 --store sqlite:///saga-log.db
    """
    from choreo.cli.audit import with_broker
    from choreo.cli.exits import Exit

    async def work(opened: Broker) -> Diagnosis:
        from choreo.cli.names import load
        from choreo.clock import SystemClock
        from choreo.contract import Saga
        from choreo.doctor import examine

        specs = contracts or []
        deployed = [load(spec, Saga) for spec in specs if ":" in spec]
        names = [spec.partition("@")[0] for spec in specs if ":" not in spec]
        now_ms = SystemClock().now_ms()
        return await examine(opened, names, now_ms=now_ms, contracts=deployed, store=store, read_log=read_log)

    found = with_broker(broker, work)
    if as_json:
        write_json(found)
    else:
        _print(found)
    bad = any(finding.level == "error" or (strict and finding.level == "warning") for finding in found.findings)
    return Exit.NO if bad else Exit.DONE


def _print(found: Diagnosis) -> None:
    for finding in found.findings:
        print(f"{finding.level:<8}{finding.subject}: {finding.text}")  # noqa: T201 - the command's output
        print(f"        fix: {finding.fix}")  # noqa: T201
    counts = {level: sum(one.level == level for one in found.findings) for level in ("error", "warning")}
    print(  # noqa: T201
        f"{found.checks} checks of {', '.join(found.sagas)}: {counts['error']} errors, {counts['warning']} warnings",
        file=sys.stderr,
    )
