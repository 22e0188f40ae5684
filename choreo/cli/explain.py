"""``choreo explain`` and ``choreo preview``: why a saga is where it is, and what a cancel would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from choreo.cli.options import AsJson, BrokerUrl, SagaSpec, write_json

if TYPE_CHECKING:
    from choreo.audit import CancelPreview, Explanation
    from choreo.broker import Broker

SagaId = Annotated[str, Parameter(help="The id that start printed.")]


def explain(saga: SagaSpec, saga_id: SagaId, *, broker: BrokerUrl = None, as_json: AsJson = False) -> int:
    """Say why a saga is where it is: what it waits for, since when, who should act, and what to do.

    Joins its state with the consumer groups that have to move it, and with the dead letters under its id.

    Example: choreo explain order 0199a8c3
    """
    from choreo.cli.audit import with_broker

    async def work(opened: Broker) -> Explanation:
        from choreo.audit import explain as why
        from choreo.broker.registry import Registry
        from choreo.cli.names import find_saga
        from choreo.clock import SystemClock

        contract = await find_saga(opened, saga)
        now_ms = SystemClock().now_ms()
        return await why(opened, contract.name, saga_id, registry=Registry(opened), now_ms=now_ms)

    found = with_broker(broker, work)
    if as_json:
        write_json(found)
        return 0
    for reason in found.reasons:
        print(reason.text)  # noqa: T201 - the command's output
        for advice in reason.advice:
            print(f"  try: {advice}")  # noqa: T201
    for letter in found.dead_letters:
        print(f"dead letter of {letter.source}, offset {letter.offset}: {letter.error}: {letter.message}")  # noqa: T201
    return 0


def preview_cancel(saga: SagaSpec, saga_id: SagaId, *, broker: BrokerUrl = None, as_json: AsJson = False) -> int:
    """Show what a cancel would undo, in which order, and what it could not. Nothing is cancelled.

    Exit code 1 if the cancel would be refused.

    Example: choreo preview cancel order 0199a8c3
    """
    from choreo.cli.audit import with_broker
    from choreo.cli.exits import Exit

    async def work(opened: Broker) -> CancelPreview:
        from choreo.audit import preview_cancel as preview
        from choreo.audit import read_trail
        from choreo.broker.registry import Registry
        from choreo.cli.names import find_saga

        contract = await find_saga(opened, saga)
        trail = await read_trail(opened, contract.name, saga_id, registry=Registry(opened))
        return preview(trail.contract or contract, trail.state)

    found = with_broker(broker, work)
    if as_json:
        write_json(found)
    else:
        _print_preview(found)
    return Exit.NO if found.verdict == "refused" else Exit.DONE


def _print_preview(found: CancelPreview) -> None:
    print(f"a cancel now: {found.verdict.replace('_', ' ')}; {found.why}")  # noqa: T201 - the command's output
    if found.settles:
        print(f"first, the outcome of what is in flight is awaited: {', '.join(found.settles)}")  # noqa: T201
    for one in found.undo:
        doubt = "" if one.certain else "  if it leaves an effect"
        again = f" of round {one.round}" if one.round > 1 else ""
        print(f"{one.wave:>3}. {one.compensation} undoes {one.step}{again}{doubt}")  # noqa: T201
    words = {
        "no_compensation": "it has no compensation",
        "past_pivot": "the saga is past its pivot",
        "stuck": "stuck: an operator is needed",
    }
    for kept in found.keeps:
        print(f"stays: {kept.step}, {words[kept.why]}")  # noqa: T201
