"""``choreo http-token``: a token for the saga-log's API and dashboard."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from choreo.errors import ConfigurationError


def http_token(
    name: Annotated[str, Parameter(help="Whose it is; stands beside what they do, in the sagas' histories.")],
    *,
    role: Annotated[
        Literal["read", "start", "operate"], Parameter(help="What it allows; each includes the ones before.")
    ] = "read",
) -> int:
    """Make a token: the token itself on standard error, once; the line for the saga-log on standard output.

    Example: choreo http-token ann --role operate >> tokens.txt
    """
    from choreo.web.access import digest_of, new_token, read_grants

    token = new_token()
    line = f"{role} {name} {digest_of(token)}"
    try:
        read_grants(line)
    except ConfigurationError:
        raise ConfigurationError(
            f"the name {name!r} must be 1 to 64 letters, digits, dots, underscores, at signs and hyphens"
        ) from None
    print(f"token of {name} ({role}), shown once: {token}", file=sys.stderr)  # noqa: T201 - the command's output
    print(line)  # noqa: T201
    return 0
