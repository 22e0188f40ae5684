"""What each part of a deployment may do, and nothing beside it.

Inside one topic a broker cannot tell who may write which record: whoever may write a saga's topic may write any record
of it. Two parts that must not do each other's work are told apart by signatures, not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from choreo.broker.topics import CONTRACTS_TOPIC, checkpoint_topic, dead_letter_topic, saga_topic

Resource = Literal["topic", "group"]
Operation = Literal["Read", "Write", "Create", "Describe", "DescribeConfigs"]

SEE: tuple[Operation, ...] = ("Describe", "DescribeConfigs")  # whoever starts verifies how its topics are set up
READ: tuple[Operation, ...] = ("Read", *SEE)
WRITE: tuple[Operation, ...] = ("Write", *SEE)
READ_WRITE: tuple[Operation, ...] = ("Read", "Write", *SEE)
CREATE: tuple[Operation, ...] = ("Create", *SEE)


class Grant(NamedTuple):
    """Operations, as Kafka names them, on one topic or consumer group."""

    resource: Resource
    name: str
    operations: tuple[Operation, ...]


class Principal(NamedTuple):
    """A part of a deployment.

    Attributes:
        role: ``bootstrap``, ``client``, ``saga-log``, ``operator``, ``audit``, or the name of a step service.
        purpose: what it does with its rights, for people.
        grants: its rights.
    """

    role: str
    purpose: str
    grants: tuple[Grant, ...]


def principals(
    sagas: Iterable[str], services: Iterable[tuple[str, str, Iterable[str]]], saga_log_group: str
) -> Sequence[Principal]:
    """All parts of a deployment.

    Args:
        sagas: the names of all sagas.
        services: of each step service its name, its group, and the names of the sagas in which it has steps.
        saga_log_group: the group of the saga-log.
    """
    names = sorted(set(sagas))
    return (
        bootstrap(names),
        client(names),
        *(step_service(name, group, sorted(set(own))) for name, group, own in sorted(services)),
        saga_log(names, saga_log_group),
        operator(names, [saga_log_group, *(group for _, group, _ in sorted(services))]),
        audit(names),
        sealer(names),
    )


def bootstrap(sagas: Sequence[str]) -> Principal:
    """Runs ``choreo topics --create`` before anything else is deployed, and is not needed afterwards."""
    topics = [topic for saga in sagas for topic in (saga_topic(saga), dead_letter_topic(saga))]
    return Principal(
        "bootstrap",
        "creates topics, registers contracts (choreo topics --create)",
        (
            *(Grant("topic", topic, CREATE) for topic in topics),
            Grant("topic", CONTRACTS_TOPIC, ("Create", *READ_WRITE)),
        ),
    )


def client(sagas: Sequence[str]) -> Principal:
    """Starts sagas, waits for outcomes, asks for their state, cancels."""
    return Principal(
        "client",
        "starts sagas, follows and cancels them",
        (*(Grant("topic", saga_topic(saga), READ_WRITE) for saga in sagas), _contracts()),
    )


def step_service(name: str, group: str, sagas: Sequence[str]) -> Principal:
    """Reads the topics of the sagas in which it has steps, and answers there."""
    return Principal(
        name,
        "runs its steps (choreo run)",
        (*_works_on(sagas), _contracts(), Grant("group", group, ("Read", "Describe"))),
    )


def saga_log(sagas: Sequence[str], group: str) -> Principal:
    """Reads everything, decides."""
    return Principal(
        "saga-log",
        "folds the log and decides (choreo saga-log)",
        (*_works_on(sagas), _contracts(), Grant("group", group, ("Read", "Describe"))),
    )


def operator(sagas: Sequence[str], groups: Sequence[str]) -> Principal:
    """A client that also sees dead letters and who is at work, and may hand dead letters back."""
    return Principal(
        "operator",
        "frees stuck sagas, looks at dead letters, lag and members (choreo retry, explain, doctor, …)",
        (
            *(Grant("topic", saga_topic(saga), READ_WRITE) for saga in sagas),
            *(Grant("topic", dead_letter_topic(saga), READ_WRITE) for saga in sagas),
            _contracts(),
            *(Grant("group", group, ("Describe",)) for group in groups),
        ),
    )


def audit(sagas: Sequence[str]) -> Principal:
    """Reads, and changes nothing."""
    return Principal(
        "audit",
        "reads and verifies histories (choreo replay, choreo audit)",
        (
            *(
                Grant("topic", topic(saga), READ)
                for saga in sagas
                for topic in (saga_topic, dead_letter_topic, checkpoint_topic)
            ),
            _contracts(),
        ),
    )


def sealer(sagas: Sequence[str]) -> Principal:
    """Reads, and publishes what it has read as hashes."""
    return Principal(
        "sealer",
        "publishes checkpoints of the log (choreo audit seal)",
        (
            *(Grant("topic", saga_topic(saga), READ) for saga in sagas),
            *(Grant("topic", checkpoint_topic(saga), ("Create", *READ_WRITE)) for saga in sagas),
            _contracts(),
        ),
    )


def _works_on(sagas: Sequence[str]) -> Sequence[Grant]:
    return [
        *(Grant("topic", saga_topic(saga), READ_WRITE) for saga in sagas),
        *(Grant("topic", dead_letter_topic(saga), WRITE) for saga in sagas),
    ]


def _contracts() -> Grant:
    return Grant("topic", CONTRACTS_TOPIC, READ)
