"""From a message in a saga's topic to an entry of that saga's history, or why it is none.

Live run, rebuild, status and audit all take this way in, so that they fold the same records and refuse the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from choreo.broker.port import Message
from choreo.contract.saga import Saga
from choreo.core import Entry, SagaState
from choreo.errors import Undecodable
from choreo.messages.codec import decode_whole
from choreo.messages.records import RULES, AnyRecord, SagaStarted

if TYPE_CHECKING:  # what clients read the log with does without Prometheus
    from choreo.observe.metrics import DeadLetterReason

Contracts = Callable[[str, int], Saga | None]
"""Finds the contract of a name and version; ``Registry.get`` is one."""


class Refused(NamedTuple):
    """Why a message is no part of any history; it belongs into the dead letters.

    Attributes:
        reason: the word for metrics.
        error_type: name of the error's class, for programs that sort dead letters.
        message: what is wrong and, where there is something, what to do; for people.
    """

    reason: DeadLetterReason
    error_type: str
    message: str


class Unheld(NamedTuple):
    """What is missing here to understand a record: it has to wait (rule 18)."""

    saga: str
    version: int
    rules: int

    def __str__(self) -> str:
        if self.rules > RULES:
            return f"rules {self.rules} of the protocol; this release knows rules up to {RULES}: upgrade it"
        return (
            f"contract {self.saga!r} version {self.version}; services and clients publish the contracts they hold when "
            "they start: start one that has it, or give it to the saga-log"
        )


def read_entry(message: Message, saga: str) -> Entry | Refused:
    """The entry that a message of the topic of ``saga`` holds. Total."""
    try:
        record, content_type, traceparent = decode_whole(message.key, message.value, message.headers)
    except Undecodable as error:
        return Refused("undecodable", type(error).__name__, str(error))
    if record.saga != saga:
        text = f"a record of saga {record.saga!r} in the topic of saga {saga!r}: its sender writes to the wrong topic"
        return Refused("undecodable", "WrongTopic", text)
    return Entry(record, message.offset, message.timestamp_ms, content_type, traceparent)


def contract_of(contracts: Contracts, state: SagaState, record: AnyRecord) -> Saga | Unheld | Refused:
    """The contract under which the saga's next record is folded: the one that its start pins.

    Before the start is known, the record's own counts. A start that was made under another contract than the one
    registered under its version is refused: nobody would agree on what it means.
    """
    if state.start:
        version, rules = state.version, state.rules
    else:
        version, rules = record.version, record.rules if isinstance(record, SagaStarted) else RULES
    contract = contracts(record.saga, version)
    if contract is None or rules > RULES:
        return Unheld(record.saga, version, rules)
    if isinstance(record, SagaStarted) and record.version == version and record.contract_hash != contract.content_hash:
        return Refused(
            "unknown_contract",
            "ContractMismatch",
            f"saga {record.saga!r} version {version} is registered with contract hash {contract.content_hash}, the "
            f"start has {record.contract_hash}: give the changed contract a version of its own and start again",
        )
    return contract
