"""Contracts as the API gives them."""

from __future__ import annotations

from choreo.contract import render
from choreo.contract.saga import Saga
from choreo.web.shapes import ContractDetail, ContractLine


def contract_line(contract: Saga) -> ContractLine:
    """A contract in a list."""
    return ContractLine(
        saga=contract.name,
        version=contract.version,
        content_hash=contract.content_hash,
        description=contract.description,
        steps=tuple(step.name for step in contract.steps),
    )


def contract_detail(contract: Saga) -> ContractDetail:
    """A contract as a whole."""
    return ContractDetail(
        saga=contract.name,
        version=contract.version,
        content_hash=contract.content_hash,
        description=contract.description,
        deadline_ms=contract.deadline_ms,
        settle_ms=contract.settle_ms,
        grace_ms=contract.grace_ms,
        compensate_on_failure=contract.compensate_on_failure,
        steps=contract.steps,
        mermaid=render.mermaid(contract),
        text=render.text(contract),
    )
