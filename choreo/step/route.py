"""Which of a service's steps a record concerns, by its headers alone.

Most records of a saga's topic are for others; they are dropped here, after a look at two headers. The headers do not
say the contract's version, so this answers for all versions that the service holds together; what passes is decoded,
and from then on only the record itself is believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from choreo.broker.port import Headers, Message
from choreo.broker.topics import saga_topic
from choreo.messages.headers import CE_TYPE
from choreo.messages.records import (
    Compensate,
    Execute,
    SagaCompensated,
    SagaCompleted,
    SagaStarted,
    StepCompleted,
)
from choreo.step.service import Hosted

_STARTED, _COMPLETED = CE_TYPE[SagaStarted], CE_TYPE[StepCompleted]
_CONCERNING = frozenset((_STARTED, _COMPLETED, CE_TYPE[Execute], CE_TYPE[Compensate]))
_OUTCOMES = frozenset((CE_TYPE[SagaCompleted], CE_TYPE[SagaCompensated]))

_NOTHING: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Delivery(NamedTuple):
    """A record, delivered to one of our steps, or to what runs on outcomes (the lane's name is then ``step``)."""

    message: Message
    step: str


class _TopicRoutes(NamedTuple):
    roots: tuple[str, ...]
    chained: Mapping[bytes, tuple[str, ...]]
    own: Mapping[bytes, tuple[str, ...]]
    on_outcome: tuple[str, ...]


class Routes:
    """The way of records to a service's steps.

    Attributes:
        topics: those that the service has to read.
    """

    def __init__(self, hosted: Iterable[Hosted], on_outcome: Mapping[str, tuple[str, ...]] = _NOTHING) -> None:
        """Find the ways.

        Args:
            hosted: the service's steps.
            on_outcome: the lanes of what runs on outcomes, by saga.
        """
        by_saga: dict[str, list[Hosted]] = {saga: [] for saga in on_outcome}
        for each in hosted:
            by_saga.setdefault(each.saga.name, []).append(each)
        self._routes = {
            saga_topic(saga): _routes_of(steps, on_outcome.get(saga, ())) for saga, steps in by_saga.items()
        }
        self._concerning = _CONCERNING | _OUTCOMES if on_outcome else _CONCERNING
        self.topics = tuple(sorted(self._routes))

    def own_steps(self, topic: str) -> frozenset[str]:
        """The steps of the topic's saga that the service runs, in whatever version."""
        return frozenset(step for steps in self._routes[topic].own.values() for step in steps)

    def match(self, message: Message) -> tuple[str, ...]:
        """The steps of the service that the record concerns; mostly none."""
        concerning = self._concerning
        ce_type = step_header = None
        for name, value in message.headers:
            if name == "ce_type" and ce_type is None:
                if value not in concerning:
                    return ()
                ce_type = value
            elif name == "choreo_step" and step_header is None:
                step_header = value
        routes = self._routes[message.topic]
        if ce_type == _STARTED:
            return routes.roots
        if step_header is not None:
            if ce_type == _COMPLETED:
                return routes.chained.get(step_header, ())
            if ce_type is not None and ce_type not in _OUTCOMES:
                return routes.own.get(step_header, ())
        return routes.on_outcome if ce_type in _OUTCOMES else ()


def ce_type_of(headers: Headers) -> bytes | None:
    """The record's kind; cheaper than ``read_route`` for the many records that need no more."""
    for name, value in headers:
        if name == "ce_type":
            return value
    return None


def _routes_of(hosted: list[Hosted], on_outcome: tuple[str, ...]) -> _TopicRoutes:
    roots: dict[str, None] = {}  # a set that keeps its order, so that every run starts lanes in the same order
    chained: dict[str, dict[str, None]] = {}
    for each in hosted:
        name, graph = each.step.name, each.saga.graph
        if name in graph.roots:
            roots[name] = None
        for other in graph.before[name]:
            if name in graph.chained[other]:
                chained.setdefault(other, {})[name] = None
    return _TopicRoutes(
        roots=tuple(roots),
        chained={step.encode(): tuple(others) for step, others in chained.items()},
        own={each.step.name.encode(): (each.step.name,) for each in hosted},
        on_outcome=on_outcome,
    )
