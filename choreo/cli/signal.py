"""``choreo signal``: tell a saga that something outside of it has happened."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from choreo.cli.options import BrokerUrl, SagaSpec, broker_url


def signal(
    saga: SagaSpec,
    saga_id: Annotated[str, Parameter(help="The id that start printed.")],
    name: Annotated[str, Parameter(help="Which signal: one that a step of the saga waits for.")],
    *,
    payload: Annotated[str | None, Parameter(help="JSON for the steps that wait; null without it.")] = None,
    id: Annotated[str | None, Parameter(help="An id of the signal; the same id again is the same signal.")] = None,  # noqa: A002
    by: Annotated[str, Parameter(help="Who, for the history; the login name by default.")] = "",
    why: Annotated[str, Parameter(help="For the history.")] = "",
    broker: BrokerUrl = None,
) -> int:
    """Send a signal to a saga. It counts for every step that waits for it, now or later; the first of its name counts.

    Example: choreo signal order 0199a8c3 approved --payload '{"limit": 500}' --why "called the customer"
    """
    import getpass

    from choreo.broker import open_broker
    from choreo.cli.exits import complain
    from choreo.cli.names import find_saga
    from choreo.cli.process import run_async
    from choreo.cli.values import parse
    from choreo.client import Client

    value = None if payload is None else parse(payload, "the payload")
    url = broker_url(broker)

    async def tell() -> None:
        opened = await open_broker(url)
        try:
            contract = await find_saga(opened, saga)
            async with Client(opened, source="cli") as client:
                status = await client.status(contract, saga_id)
                await client.signal(contract, saga_id, name, value, id=id, reason=why, sent_by=by or getpass.getuser())
                if status.finished_ms:
                    complain(
                        f"saga {saga_id!r} has {status.phase} already; the signal is in the log and changes nothing"
                    )
                elif name in status.signals:
                    complain(f"saga {saga_id!r} had a signal {name!r} before, and that one counts; this one is noted")
        finally:
            await opened.close()

    run_async(tell)
    return 0
