"""``choreo pause`` and ``choreo resume``: hold a saga, or all of a type, and let them go on."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from choreo.cli.options import BrokerUrl, broker_url
from choreo.errors import ConfigurationError

Saga = Annotated[
    str | None, Parameter(help="MODULE:NAME of a contract, or the name of a registered saga: that of the one saga.")
]
SagaId = Annotated[str | None, Parameter(help="The id that start printed.")]
Type = Annotated[
    str | None,
    Parameter(name="--type", help="Instead of one saga: all of this name, those too that start later."),
]
Why = Annotated[str, Parameter(name=["--why", "--reason"], help="Why; it stays in the history.")]
By = Annotated[str, Parameter(name=["--by", "--operator"], help="Who; the login name by default.")]


def pause(
    saga: Saga = None,
    saga_id: SagaId = None,
    *,
    type_: Type = None,
    why: Why,
    by: By = "",
    broker: BrokerUrl = None,
) -> int:
    """Hold a saga: what is in flight finishes, no further step begins, nothing is decided, deadlines stand still.

    Example: choreo pause order 0199a8c3 --why "asking the customer"
    Example: choreo pause --type order --why "the bank is moving house"
    """
    return _set("pause", saga, saga_id, type_, why=why, by=by, broker=broker)


def resume(
    saga: Saga = None,
    saga_id: SagaId = None,
    *,
    type_: Type = None,
    why: Why,
    by: By = "",
    broker: BrokerUrl = None,
) -> int:
    """Let a paused saga go on, or all of a type. A saga goes on when neither it nor its type is paused.

    Example: choreo resume order 0199a8c3 --why "she wants it"
    Example: choreo resume --type order --why "the bank is back"
    """
    return _set("resume", saga, saga_id, type_, why=why, by=by, broker=broker)


def _set(
    verb: Literal["pause", "resume"],
    saga: str | None,
    saga_id: str | None,
    type_: str | None,
    *,
    why: str,
    by: str,
    broker: str | None,
) -> int:
    import getpass

    from choreo.broker import open_broker
    from choreo.cli.names import find_saga
    from choreo.cli.process import run_async
    from choreo.client import Client

    name = saga if type_ is None else type_
    if name is None or (type_ is None) != (saga_id is not None) or (type_ is not None and saga is not None):
        raise ConfigurationError(f"give a saga and its id, as in choreo {verb} order 0199a8c3, or --type order for all")
    url = broker_url(broker)

    async def tell() -> None:
        opened = await open_broker(url)
        try:
            contract = await find_saga(opened, name)
            async with Client(opened, source="cli") as client:
                if saga_id is not None:
                    await client.status(contract, saga_id)
                act = client.pause if verb == "pause" else client.resume
                await act(contract, saga_id, operator=by or getpass.getuser(), reason=why)
        finally:
            await opened.close()

    run_async(tell)
    return 0
