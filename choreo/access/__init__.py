"""Who may do what at the broker: the least that each part needs, from the contracts and services themselves.

``grants`` says it, ``render`` writes it down for people, for ``kafka-acls.sh`` and for Strimzi.
"""

from __future__ import annotations

from choreo.access.grants import (
    Grant,
    Principal,
    audit,
    bootstrap,
    client,
    operator,
    principals,
    saga_log,
    step_service,
)
from choreo.access.render import FORMATS, render

__all__ = [
    "FORMATS",
    "Grant",
    "Principal",
    "audit",
    "bootstrap",
    "client",
    "operator",
    "principals",
    "render",
    "saga_log",
    "step_service",
]
