"""URLs of brokers and stores: taken apart, and as they may be shown in errors, in logs, on a terminal."""

from __future__ import annotations

import re
from urllib.parse import SplitResult

HIDDEN = "********"

_PARTS = re.compile(r"(?s)(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?")  # RFC 3986, appendix B

_SECRET_OPTION = re.compile(r"(?i)([?&](?:[^=&]*_)?(?:password|secret|token)=)[^&]*")


def split_url(url: str) -> SplitResult:
    """Take a URL apart, also ``kafka://one,[::1]:9092``, which newer Pythons refuse in ``urlsplit``."""
    found = _PARTS.fullmatch(url)
    assert found is not None, "the expression matches everything"
    scheme, *parts = (part or "" for part in found.groups())
    return SplitResult(scheme.lower(), *parts)


def shown_url(url: str) -> str:
    """A URL whose password, and options that look like secrets, cannot be read."""
    head, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return _SECRET_OPTION.sub(rf"\g<1>{HIDDEN}", f"{head}{separator}{user}{colon}{HIDDEN if colon else ''}{at}{host}")
