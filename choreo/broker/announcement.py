"""What a service says of itself when it starts: which steps it runs. Kept beside the contracts, the last word of each.

Nothing is decided by it: records alone move a saga. It tells people, and ``choreo explain`` and ``choreo doctor``, whom
a step waits for. Replicas of one service share a word, so that during an upgrade it is that of the one that started
last.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from choreo.errors import Undecodable
from choreo.messages.headers import JSON

KEY_PREFIX = "service:"  # no saga's name has a colon, so that no contract has such a key

ANNOUNCEMENT_HEADERS = (
    ("ce_specversion", b"1.0"),
    ("ce_type", b"choreo.service.v1"),
    ("ce_source", b"/choreo/registry"),
    ("content-type", JSON.encode()),
)


class HostedStep(msgspec.Struct, frozen=True, order=True):
    """A step of one version of a saga."""

    saga: str
    version: int
    step: str


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """A service and what it runs.

    Attributes:
        service: its name.
        group: its consumer group.
        steps: sorted, so that equal services say equal words.
    """

    service: str
    group: str
    steps: tuple[HostedStep, ...]

    @property
    def key(self) -> str:
        return f"{KEY_PREFIX}{self.service}"


_decoder = msgspec.json.Decoder(Announcement)


def announcement(service: str, group: str, steps: Iterable[tuple[str, int, str]]) -> Announcement:
    """What to say of a service that runs these (saga, version, step)."""
    return Announcement(service=service, group=group, steps=tuple(sorted(HostedStep(*step) for step in steps)))


def is_announcement(key: bytes | None) -> bool:
    """Whether a record of the contracts' topic is one of a service."""
    return key is not None and key.startswith(KEY_PREFIX.encode())


def to_bytes(word: Announcement) -> bytes:
    """Its value on the wire."""
    return msgspec.json.encode(word)


def from_bytes(value: bytes) -> Announcement:
    """Raises ``Undecodable`` if the bytes are none."""
    try:
        return _decoder.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise Undecodable(f"not a service's announcement: {error}") from error
