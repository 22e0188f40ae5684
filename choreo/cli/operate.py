"""``choreo retry``, ``skip`` and ``resolve``: an operator's answers to a stuck saga."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from choreo.cli.options import BrokerUrl, SagaSpec, broker_url

if TYPE_CHECKING:
    from choreo.client.client import Act

SagaId = Annotated[str, Parameter(help="The id of the stuck saga.")]
StepName = Annotated[str, Parameter(help="The step at which the saga is stuck.")]
Reason = Annotated[str, Parameter(help="Why; it stays in the saga's history.")]
Operator = Annotated[str, Parameter(help="Who; the login name by default.")]


def retry(
    saga: SagaSpec,
    saga_id: SagaId,
    step: StepName,
    *,
    reason: Reason,
    operator: Operator = "",
    broker: BrokerUrl = None,
) -> int:
    """Try again what the saga is stuck at, with new attempts: a compensation, or past the pivot the step itself.

    Example: choreo retry order 0199a8c3 charge_card --reason "the gateway is back"
    """
    return _act("retry", saga, saga_id, step, reason=reason, operator=operator, broker=broker)


def skip(
    saga: SagaSpec,
    saga_id: SagaId,
    step: StepName,
    *,
    reason: Reason,
    operator: Operator = "",
    broker: BrokerUrl = None,
) -> int:
    """Take what the saga is stuck at as done by hand, and go on: back, or past the pivot forward.

    Example: choreo skip order 0199a8c3 charge_card --reason "refunded by hand, receipt 4711"
    """
    return _act("skip", saga, saga_id, step, reason=reason, operator=operator, broker=broker)


def resolve(
    saga: SagaSpec,
    saga_id: SagaId,
    step: StepName,
    *,
    reason: Reason,
    operator: Operator = "",
    broker: BrokerUrl = None,
) -> int:
    """Take all that is left, to undo or past the pivot to do, as done by hand: the saga ends, and its history says so.

    Example: choreo resolve order 0199a8c3 charge_card --reason "settled with the customer"
    """
    return _act("resolve", saga, saga_id, step, reason=reason, operator=operator, broker=broker)


def _act(act: Act, saga: str, saga_id: str, step: str, *, reason: str, operator: str, broker: str | None) -> int:
    import getpass

    from choreo.broker import open_broker
    from choreo.cli.names import find_saga
    from choreo.cli.process import run_async
    from choreo.client import Client

    url = broker_url(broker)

    async def tell() -> None:
        opened = await open_broker(url)
        try:
            contract = await find_saga(opened, saga)
            async with Client(opened, source="cli") as client:
                who = operator or getpass.getuser()
                await client.act(contract, saga_id, act, step, operator=who, reason=reason)
        finally:
            await opened.close()

    run_async(tell)
    return 0
