"""Records of contract versions that a service does not hold: which of its steps they may be for (rule 18).

Under another version a step may follow another one, or be new, so the routes of the versions that are held do not say.
The registry does: a contract is published before the first saga under it is started. What it cannot say is whether a
step that is new will be this service's after its upgrade, unless another service has announced it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import NamedTuple

from choreo.broker.registry import Registry
from choreo.clock import Clock
from choreo.contract.saga import Saga
from choreo.errors import BrokerError
from choreo.messages.records import AnyRecord, Compensate, Execute, SagaStarted, StepCompleted

logger = logging.getLogger(__name__)

REFRESH_S = 5.0


class Concern(NamedTuple):
    """What a record of an unheld version is to a service.

    Attributes:
        own: steps of ours that it triggers, or that it undoes.
        perhaps: it may be for a step that is ours after an upgrade.
    """

    own: tuple[str, ...]
    perhaps: bool


class Unheld:
    """Judges records of versions that one service does not hold."""

    def __init__(
        self, registry: Registry, service: str, held: Collection[Saga], own: Collection[tuple[str, str]], clock: Clock
    ) -> None:
        """Know the service.

        Args:
            registry: read again when it does not say enough, at most every ``REFRESH_S`` seconds.
            held: the contracts that the service holds.
            own: saga and name of each step that it runs in whatever version.
        """
        self._registry = registry
        self._service = service
        self._held = tuple(held)
        self._own = frozenset(own)
        self._clock = clock
        self._refreshed_at: float | None = None

    async def concern(self, record: AnyRecord) -> Concern:
        """What the record is to the service: by the contract of its version or, if nobody knows that, by those held."""
        if not isinstance(record, SagaStarted | StepCompleted | Execute | Compensate):
            return Concern((), perhaps=False)
        concern = self._judge(record)
        now = self._clock.monotonic()
        if concern.perhaps and (self._refreshed_at is None or now - self._refreshed_at >= REFRESH_S):
            self._refreshed_at = now
            try:
                await self._registry.refresh()
            except BrokerError as error:
                logger.warning("cannot look for contracts now: %s", error)
            concern = self._judge(record)
        return concern

    def _judge(self, record: SagaStarted | StepCompleted | Execute | Compensate) -> Concern:
        held = [saga for saga in self._held if saga.name == record.saga]
        contract = self._registry.get(record.saga, record.version)
        if contract is None:
            return Concern(
                self._ours(record.saga, {step for saga in held for step in _steps(record, saga)}), perhaps=True
            )
        steps = _steps(record, contract)
        known = {step.name for saga in held for step in saga.steps}
        perhaps = any(step not in known and not self._is_others(record, step) for step in steps)
        return Concern(self._ours(record.saga, steps), perhaps)

    def is_ours(self, saga: str, step: str) -> bool:
        """Whether the service runs a step of this name, in whatever version."""
        return (saga, step) in self._own

    def _ours(self, saga: str, steps: Collection[str]) -> tuple[str, ...]:
        return tuple(sorted(step for step in steps if self.is_ours(saga, step)))

    def _is_others(self, record: AnyRecord, step: str) -> bool:
        hosts = {word.service for word in self._registry.hosts(record.saga, record.version, step)}
        return bool(hosts) and self._service not in hosts


def _steps(record: SagaStarted | StepCompleted | Execute | Compensate, saga: Saga) -> set[str]:
    """The steps that the record is for, by that contract."""
    if isinstance(record, SagaStarted):
        return set(saga.graph.roots)
    if isinstance(record, StepCompleted):
        return set(saga.graph.chained.get(record.step, ()))
    return {record.step}
