"""``choreo audit what-if``: could the sagas in flight live under another contract?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from choreo.cli.options import AsJson, BrokerUrl, write_json

if TYPE_CHECKING:
    from choreo.audit.candidate import WhatIf
    from choreo.broker import Broker

_SHOWN_MAX = 100


def what_if(
    *,
    contract: Annotated[str, Parameter(help="MODULE:NAME of the candidate; it need not be registered.")],
    version: Annotated[list[int] | None, Parameter(help="Only sagas of this version; all by default.")] = None,
    strict: Annotated[bool, Parameter(negative="", help="Exit code 1 for changes in flight, too.")] = False,
    broker: BrokerUrl = None,
    as_json: AsJson = False,
) -> int:
    """Fold the recorded history through another contract and list what it would mean; nothing is written.

    Exit code 1 if a saga in flight breaks: an effect that nothing would undo, a step that would be undone because
    nothing triggers it, a saga that would turn back, time out or wait for ever. So it is a gate before a release.

    Example: choreo audit what-if --contract services.order:ORDER_V2 --broker kafka://localhost:9092
    """
    from choreo.cli.audit import with_broker
    from choreo.cli.exits import Exit

    async def work(opened: Broker) -> WhatIf:
        from choreo.audit.candidate import what_if as compare
        from choreo.broker.registry import Registry
        from choreo.cli.bar import progress_bar
        from choreo.cli.names import load
        from choreo.clock import SystemClock
        from choreo.contract import Saga

        candidate = load(contract, Saga)
        with progress_bar("folding twice") as move:
            now_ms = SystemClock().now_ms()
            return await compare(
                opened, candidate, registry=Registry(opened), now_ms=now_ms, versions=version or (), on_progress=move
            )

    found = with_broker(broker, work)
    if as_json:
        write_json({"safe": found.safe, **msgspec.structs.asdict(found)})
    else:
        _print(found)
    changes = any(one.offset < 0 and one.kind != "ends_otherwise" for one in found.consequences)
    return Exit.DONE if found.safe and not (strict and changes) else Exit.NO


def _print(found: WhatIf) -> None:
    for one in found.consequences[:_SHOWN_MAX]:
        where = f" offset {one.offset}" if one.offset >= 0 else ""
        mark = "BREAKS" if one.breaks else "change"
        print(f"{mark}  {one.kind:<18}{one.saga_id} v{one.version}{where}: {one.text}")  # noqa: T201 - the output
    if len(found.consequences) > _SHOWN_MAX:
        print(f"… and {sum(found.totals.values()) - _SHOWN_MAX} more")  # noqa: T201
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(found.totals.items())) or "no difference"
    print(  # noqa: T201
        f"{found.saga} under version {found.version} ({found.contract_hash[:12]}): "
        f"{'safe' if found.safe else f'{found.broken} sagas in flight BREAK'}; {found.records:,} records, "
        f"{found.sagas} sagas, {found.in_flight} in flight; {counts}",
        file=sys.stderr,
    )
