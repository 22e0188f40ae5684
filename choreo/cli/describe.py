"""``choreo describe``: a contract, drawn."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from choreo.cli.options import AsJson, Contract


def describe(
    contract: Contract,
    *,
    mermaid: Annotated[bool, Parameter(negative="", help="As a Mermaid flowchart.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show the steps of a saga, what undoes them, and their limits; behind it, the sagas that are steps of it.

    Example: choreo describe services.order:ORDER --mermaid
    """
    from choreo.cli.names import load
    from choreo.contract import Saga
    from choreo.contract.document import to_json
    from choreo.contract.render import mermaid as draw

    saga = load(contract, Saga)
    drawn = draw(saga) if mermaid else "\n\n".join(map(str, (saga, *saga.children)))
    print(to_json(saga).decode() if as_json else drawn)  # noqa: T201 - the command's output
    return 0
