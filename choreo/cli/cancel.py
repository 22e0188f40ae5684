"""``choreo cancel``: turn a saga round."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from choreo.cli.options import BrokerUrl, SagaSpec, broker_url


def cancel(
    saga: SagaSpec,
    saga_id: Annotated[str, Parameter(help="The id that start printed.")],
    *,
    reason: Annotated[str, Parameter(help="For the history.")] = "",
    requested_by: Annotated[str, Parameter(help="For the history; the login name by default.")] = "",
    broker: BrokerUrl = None,
) -> int:
    """Ask for a running saga to be undone. What it has done is compensated in reverse order.

    Example: choreo cancel order 0199a8c3 --reason "customer changed their mind"
    """
    import getpass

    from choreo.broker import open_broker
    from choreo.cli.exits import complain
    from choreo.cli.names import find_saga
    from choreo.cli.process import run_async
    from choreo.client import Client

    url = broker_url(broker)

    async def ask() -> None:
        opened = await open_broker(url)
        try:
            contract = await find_saga(opened, saga)
            async with Client(opened, source="cli") as client:
                status = await client.status(contract, saga_id)
                await client.cancel(contract, saga_id, reason=reason, requested_by=requested_by or getpass.getuser())
                if status.finished_ms:
                    complain(
                        f"saga {saga_id!r} has {status.phase} already; the request is in the log and will be refused"
                    )
        finally:
            await opened.close()

    run_async(ask)
    return 0
