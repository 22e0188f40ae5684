"""Which of a service's steps a record concerns, by its headers alone.

Most records of a saga's topic are for others; they are dropped here, after a look at two headers. The headers do not
say the contract's version, so this answers for all versions that the service holds together; what passes is decoded,
and from then on only the record itself is believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from choreo.broker.port import Headers, Message
from choreo.broker.topics import saga_topic
from choreo.messages.headers import CE_TYPE
from choreo.messages.records import Compensate, Execute, SagaStarted, StepCompleted
from choreo.step.service import Hosted

_STARTED, _COMPLETED = CE_TYPE[SagaStarted], CE_TYPE[StepCompleted]
_CONCERNING = frozenset((_STARTED, _COMPLETED, CE_TYPE[Execute], CE_TYPE[Compensate]))


class Delivery(NamedTuple):
    """A record, delivered to one of our steps."""

    message: Message
    step: str


class _TopicRoutes(NamedTuple):
    roots: tuple[str, ...]
    chained: Mapping[bytes, tuple[str, ...]]
    own: Mapping[bytes, tuple[str, ...]]


class Routes:
    """The way of records to a service's steps.

    Attributes:
        topics: those that the service has to read.
    """

    def __init__(self, hosted: Iterable[Hosted]) -> None:
        by_topic: dict[str, list[Hosted]] = {}
        for each in hosted:
            by_topic.setdefault(saga_topic(each.saga.name), []).append(each)
        self._routes = {topic: _routes_of(steps) for topic, steps in by_topic.items()}
        self.topics = tuple(sorted(by_topic))

    def own_steps(self, topic: str) -> frozenset[str]:
        """The steps of the topic's saga that the service runs, in whatever version."""
        return frozenset(step for steps in self._routes[topic].own.values() for step in steps)

    def match(self, message: Message) -> tuple[str, ...]:
        """The steps of the service that the record concerns; mostly none."""
        ce_type = step_header = None
        for name, value in message.headers:
            if name == "ce_type" and ce_type is None:
                if value not in _CONCERNING:
                    return ()
                ce_type = value
            elif name == "choreo_step" and step_header is None:
                step_header = value
        routes = self._routes[message.topic]
        if ce_type == _STARTED:
            return routes.roots
        if ce_type is None or step_header is None:
            return ()
        return (routes.chained if ce_type == _COMPLETED else routes.own).get(step_header, ())


def ce_type_of(headers: Headers) -> bytes | None:
    """The record's kind; cheaper than ``read_route`` for the many records that need no more."""
    for name, value in headers:
        if name == "ce_type":
            return value
    return None


def _routes_of(hosted: list[Hosted]) -> _TopicRoutes:
    roots: dict[str, None] = {}  # a set that keeps its order, so that every run starts lanes in the same order
    chained: dict[str, dict[str, None]] = {}
    for each in hosted:
        name, after = each.step.name, each.step.after
        if not after:
            roots[name] = None
        elif len(after) == 1:
            chained.setdefault(after[0], {})[name] = None
    return _TopicRoutes(
        roots=tuple(roots),
        chained={step.encode(): tuple(others) for step, others in chained.items()},
        own={each.step.name.encode(): (each.step.name,) for each in hosted},
    )
