"""``choreo demo``: the order saga, its services as processes, on the embedded broker or on Kafka."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from choreo.errors import ConfigurationError


def demo(
    *,
    broker: Annotated[
        str | None, Parameter(name=["--broker", "-b"], help="'kafka' starts a local one; or a broker URL.")
    ] = None,
    keep: Annotated[bool, Parameter(negative="", help="Leave everything running at the end, to look around.")] = False,
) -> int:
    """Show sagas that complete, one that is undone in reverse, and one whose step is killed in the middle.

    Example: choreo demo --broker kafka
    """
    try:
        from services.demo import main
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "the demo's services are not installed with the package; run it in a checkout, as 'make demo' does"
        ) from error
    return int(main(broker, keep=keep))
