"""Which of a service's steps a record concerns, by its headers alone.

Most records of a saga's topic are for others; they are dropped here, after a look at three headers. Where the version
is none that the service holds, it takes more than headers to tell (``unheld``). Records of older releases do not say
their version: for them this answers for all versions that the service holds together. What passes is decoded, and from
then on only the record itself is believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from choreo.broker.port import Headers, Message
from choreo.broker.topics import saga_topic
from choreo.messages.headers import CE_TYPE, VERSION
from choreo.messages.records import (
    CancelStep,
    Compensate,
    Execute,
    SagaCompensated,
    SagaCompleted,
    SagaPaused,
    SagaResumed,
    SagaStarted,
    StepCompleted,
    TypePaused,
    TypeResumed,
)
from choreo.step.service import Hosted

_STARTED, _COMPLETED = CE_TYPE[SagaStarted], CE_TYPE[StepCompleted]
_CONCERNING = frozenset((_STARTED, _COMPLETED, CE_TYPE[Execute], CE_TYPE[Compensate]))
_PAUSES = frozenset(CE_TYPE[kind] for kind in (SagaPaused, SagaResumed, TypePaused, TypeResumed))
CANCEL_STEP = CE_TYPE[CancelStep]
_OUTCOMES = frozenset((CE_TYPE[SagaCompleted], CE_TYPE[SagaCompensated]))

UNHELD = "?"
"""In place of a step: the record is of a version that the service does not hold."""

_NOTHING: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Delivery(NamedTuple):
    """A record, delivered to one of our steps, to what runs on outcomes (the lane's name is then ``step``), or as
    ``UNHELD``.
    """  # noqa: D205  # the sentence is worth its length

    message: Message
    step: str


class _TopicRoutes(NamedTuple):
    """The ways of a topic's records, in all versions that are held together or (in ``by_version``) in one of them."""

    roots: tuple[str, ...]
    chained: Mapping[bytes, tuple[str, ...]]
    own: Mapping[bytes, tuple[str, ...]]
    on_outcome: tuple[str, ...] = ()
    by_version: Mapping[bytes, _TopicRoutes] = MappingProxyType({})

    def steps_for(self, ce_type: bytes | None, step: bytes | None) -> tuple[str, ...]:
        """The steps that a trigger, or a command, about ``step`` is for."""
        if ce_type == _STARTED:
            return self.roots
        if step is None:
            return ()
        return (self.chained if ce_type == _COMPLETED else self.own).get(step, ())


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
        self._cancelled = frozenset(
            saga_topic(saga)
            for saga, steps in by_saga.items()
            if any(each.step.name in each.saga.cancellable for each in steps)
        )
        self._concerning = _CONCERNING | _PAUSES | (_OUTCOMES if on_outcome else frozenset())
        self._concerning |= {CANCEL_STEP} if self._cancelled else frozenset()
        self.topics = tuple(sorted(self._routes))

    def own_steps(self, topic: str) -> frozenset[str]:
        """The steps of the topic's saga that the service runs, in whatever version."""
        return frozenset(step for steps in self._routes[topic].own.values() for step in steps)

    def may_be_cancelled(self, topic: str) -> bool:
        """Whether some of these steps may be cancelled in their middle, in whatever version."""
        return topic in self._cancelled

    def match(self, message: Message) -> tuple[str, ...]:
        """The steps of the service that the record concerns; mostly none."""
        ce_type = ce_type_of(message.headers)
        if ce_type not in self._concerning:
            return ()
        step_header, version = message.header("choreo_step"), message.header(VERSION)
        routes = self._routes[message.topic]
        if ce_type in _OF_PARTITION:
            return _OF_PARTITION[ce_type]
        if ce_type in _OUTCOMES:
            return routes.on_outcome
        if version is not None and routes.own:
            held = routes.by_version.get(version)
            if held is None:
                return _UNHELD_ONLY
            routes = held
        return routes.steps_for(ce_type, step_header)


_UNHELD_ONLY = (UNHELD,)

PAUSING = ("",)
"""What ``match`` gives for the records that begin and end pauses: they concern the partition, and no step."""

CANCELLING = ("cancel",)
"""The same for those that cancel steps: they concern what runs, of whichever step, and not what waits in its lane."""

_OF_PARTITION: Mapping[bytes | None, tuple[str, ...]] = {**dict.fromkeys(_PAUSES, PAUSING), CANCEL_STEP: CANCELLING}


def ce_type_of(headers: Headers) -> bytes | None:
    """The record's kind; cheaper than ``read_route`` for the many records that need no more."""
    for name, value in headers:
        if name == "ce_type":
            return value
    return None


def _routes_of(hosted: list[Hosted], on_outcome: tuple[str, ...]) -> _TopicRoutes:
    versions = {each.saga.version for each in hosted}
    by_version = {b"%d" % one: _ways([each for each in hosted if each.saga.version == one]) for one in versions}
    return _ways(hosted)._replace(on_outcome=on_outcome, by_version=by_version)


def _ways(hosted: list[Hosted]) -> _TopicRoutes:
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
    )
