"""Which of a service's steps a record concerns, by its headers alone.

Most records of a saga's topic are for others; they are dropped here, after a look at one header or a few. The headers
do not say the contract's version, so this answers for all versions that the service holds together; what passes is
checked against its own version once it is decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from choreo.broker.port import Headers, Message
from choreo.broker.topics import saga_topic
from choreo.messages.headers import CE_TYPE, Route, read_route
from choreo.messages.records import Compensate, Execute, SagaStarted, StepCompleted
from choreo.step.service import Hosted

_CONCERNING = frozenset(CE_TYPE[kind] for kind in (SagaStarted, StepCompleted, Execute, Compensate))


class Delivery(NamedTuple):
    """A record, delivered to one of our steps."""

    message: Message
    route: Route
    step: str


class _TopicRoutes(NamedTuple):
    roots: tuple[str, ...]
    chained: Mapping[str, tuple[str, ...]]
    own: frozenset[str]


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
        return self._routes[topic].own

    def match(self, message: Message) -> tuple[Delivery, ...]:
        """What the record means to the service: one delivery for each of its steps that it concerns, mostly none."""
        if ce_type_of(message.headers) not in _CONCERNING:
            return ()
        route = read_route(message.headers)
        routes = self._routes[message.topic]
        if route.kind is StepCompleted:
            steps = routes.chained.get(route.step, ())
        elif route.kind is SagaStarted:
            steps = routes.roots
        else:
            steps = (route.step,) if route.step in routes.own else ()
        return tuple([Delivery(message, route, step) for step in steps])


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
        chained={step: tuple(others) for step, others in chained.items()},
        own=frozenset(each.step.name for each in hosted),
    )
