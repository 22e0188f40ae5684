"""Values on the command line: JSON, and times."""

from __future__ import annotations

from datetime import datetime

import msgspec

from choreo.errors import ConfigurationError


def parse(text: str, what: str) -> object:
    """The value of a JSON text.

    Raises:
        ConfigurationError: it is none; the message begins with ``what``.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{what} is not JSON: {error}") from error


def moment(text: str) -> datetime:
    """The moment of a text as in ISO 8601, of this machine's time zone if it names none.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigurationError(f"{text!r} is no time like 2026-05-01T08:00 or 2026-05-01T08:00+02:00") from error


def moment_text(at_ms: int) -> str:
    """A moment of the broker's clock in this machine's time zone, for people."""
    return datetime.fromtimestamp(at_ms / 1_000).astimezone().isoformat(sep=" ", timespec="seconds")
