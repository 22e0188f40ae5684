"""aiokafka's errors in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka import errors as kafka_errors

from choreo.errors import BrokerError, BrokerUnavailable, ChoreoError, RecordTooLarge, TopicError

# The group has moved on without us; what we wanted to store is not ours to store any more.
REBALANCED = (
    kafka_errors.CommitFailedError,
    kafka_errors.IllegalStateError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.UnknownMemberIdError,
    kafka_errors.RebalanceInProgressError,
)

TOO_LARGE = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.RecordTooLargeError,
)

NOT_ALLOWED = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
)

# No other attempt and no other producer would help the record.
REFUSED = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.InvalidTopicError,
    kafka_errors.PolicyViolationError,
    kafka_errors.UnsupportedForMessageFormatError,
)


def translated(error: BaseException, doing: str) -> ChoreoError:
    """The error of ``choreo.errors`` that tells ``error``; ``doing`` says what we were at, and with whom."""
    said = str(error) or type(error).__name__
    if isinstance(error, TOO_LARGE):
        return RecordTooLarge(f"{doing}: the broker refuses a record of this size ({said})")
    if isinstance(error, NOT_ALLOWED):
        return BrokerError(f"{doing}: not authorized: {said}; `choreo acl` prints the rights that each part needs")
    if isinstance(error, kafka_errors.UnknownTopicOrPartitionError | kafka_errors.InvalidTopicError):
        return TopicError(f"{doing}: no such topic or partition ({said})")
    if isinstance(error, kafka_errors.UnsupportedCodecError):
        return BrokerError(f"{doing}: {said}; pip install 'choreo-sagas[compression]'")
    if isinstance(error, TimeoutError | kafka_errors.KafkaTimeoutError):
        return BrokerUnavailable(f"{doing}: no answer in time")
    if isinstance(error, OSError) or getattr(error, "retriable", False):
        return BrokerUnavailable(f"{doing}: {said}")
    return BrokerError(f"{doing}: {type(error).__name__}: {said}")


@contextmanager
def translating(doing: str) -> Iterator[None]:
    """Raise what goes wrong in the block as one of our errors."""
    try:
        yield
    except (kafka_errors.KafkaError, OSError, TimeoutError) as error:
        raise translated(error, doing) from error
