"""Every error that choreo raises, in one small tree.

    ChoreoError
    ├── DefinitionError        a contract or a service is wrong; fix the program
    ├── ConfigurationError     a URL, setting or file is wrong; fix the deployment
    ├── WireError              bytes that are not a record of ours
    │   ├── Undecodable        … read from a topic
    │   └── Unencodable        … about to be written to one
    ├── BrokerError            the log cannot be used
    │   ├── BrokerUnavailable  … right now (retriable)
    │   ├── TopicError         … a topic is missing or configured differently
    │   ├── CommitRefused      … this member no longer owns the partition (retriable)
    │   └── RecordTooLarge     … the broker refuses the size
    ├── StoreError             the saga-log's store cannot be used
    │   ├── StoreUnavailable   … right now (retriable)
    │   └── StoreConflict      … another instance has moved the checkpoint (retriable)
    ├── InboxUnavailable       the database of a service's inbox cannot be used right now (retriable)
    └── SagaError              what a client is told about one saga
        ├── SagaNotFound       no record under this id
        ├── SagaFailed         it was compensated (raised by ``Client.run``)
        ├── StartRefused       the id is taken by a saga with another input
        ├── NotStuck           an operator's act finds nothing to act on
        ├── NoSuchDeadLetter   no dead letter has this name
        ├── NotRedriven        a dead letter cannot be written back, or was already
        └── WaitTimeout        the wait ended; the saga goes on (retriable)

``retriable`` says whether the same call may succeed later without a change by a person.
"""

# ruff: noqa: N818 -- a name says what happened; that it is an error, its base says

from __future__ import annotations

from typing import Any


class ChoreoError(Exception):
    """Base of all errors of choreo."""

    retriable = False


class DefinitionError(ChoreoError):
    """A contract, a handler or a service is defined wrongly. ``problems`` lists all that was found."""

    def __init__(self, subject: str, problems: tuple[str, ...]) -> None:
        self.subject = subject
        self.problems = problems
        lines = "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"{subject} is not valid:{lines}")


class ConfigurationError(ChoreoError):
    """A URL, a setting, an option or a file that the program was given cannot be used."""


class WireError(ChoreoError):
    """Bytes and records do not fit each other."""


class Undecodable(WireError):
    """Bytes read from a topic are no record of ours. The one error that ``codec.decode`` raises."""


class Unencodable(WireError):
    """A value cannot be written: its type has no encoding, or it breaks a limit."""


class BrokerError(ChoreoError):
    """The log cannot be used."""


class BrokerUnavailable(BrokerError):
    """No broker answers, or the connection broke. What was sent may or may not be in the log."""

    retriable = True


class TopicError(BrokerError):
    """A topic is missing, or its partitions, retention or timestamps differ from what the contract needs."""


class CommitRefused(BrokerError):
    """The group has moved the partition to another member; its offset is not ours to commit."""

    retriable = True


class RecordTooLarge(BrokerError):
    """The broker refuses a record of this size."""


class StoreError(ChoreoError):
    """The store of the saga-log cannot be used."""


class StoreUnavailable(StoreError):
    """The store does not answer, or the connection broke. What was saved last may or may not be there."""

    retriable = True


class StoreConflict(StoreError):
    """The stored offset is not the one we loaded: another saga-log instance owns the partition now."""

    retriable = True


class InboxUnavailable(ChoreoError):
    """The database of a service's inbox does not answer, or has let another transaction go first; none was committed,
    or nobody knows. A step's attempt that ends so is made again, and does not count.
    """  # noqa: D205  # the sentence is worth its length

    retriable = True


class SagaError(ChoreoError):
    """Something a client is told about one saga; ``saga_id`` says which."""

    def __init__(self, saga_id: str, message: str) -> None:
        self.saga_id = saga_id
        super().__init__(message)


class SagaNotFound(SagaError):
    """No record of this saga is in the log (any more)."""


class StartRefused(SagaError):
    """The id belongs to a saga that was started with another input."""


class NotStuck(SagaError):
    """An operator wants to act on a step at which the saga is not stuck (any more)."""


class NoSuchDeadLetter(SagaError):
    """No dead letter of this name is in the log (any more)."""


class NotRedriven(SagaError):
    """A dead letter was not written back: it was already, or what it held is gone."""


class WaitTimeout(SagaError):
    """The wait has ended, the saga has not. Ask ``status`` with the same id later."""

    retriable = True


class SagaFailed(SagaError):
    """The saga was compensated: what it did is undone.

    Attributes:
        outcome: the ``SagaCompensated`` record.
        step, kind, code: of the first failure; empty when the saga was cancelled before any.
    """

    def __init__(
        self, saga_id: str, message: str, *, outcome: Any, step: str = "", kind: str = "", code: str = ""
    ) -> None:
        super().__init__(saga_id, message)
        self.outcome = outcome
        self.step = step
        self.kind = kind
        self.code = code
