"""URLs as they may be shown: in errors, in logs, on a terminal."""

from __future__ import annotations

import re

HIDDEN = "********"

_SECRET_OPTION = re.compile(r"(?i)([?&](?:[^=&]*_)?(?:password|secret|token)=)[^&]*")


def shown_url(url: str) -> str:
    """A URL whose password, and options that look like secrets, cannot be read."""
    head, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return _SECRET_OPTION.sub(rf"\g<1>{HIDDEN}", f"{head}{separator}{user}{colon}{HIDDEN if colon else ''}{at}{host}")
