"""Who may do what: bearer tokens with roles, sessions of browsers, and the loopback address where there are no tokens.

A token is 32 random bytes, so one SHA-256 hides it as well as a slow hash would; the configuration holds hashes only.
Hashes are compared in constant time, and all of them each time, so that an answer's time says nothing of where a
token differs.

A browser that has logged in keeps its token in a cookie that scripts cannot read and other sites cannot send, until it
is closed. So any instance of the saga-log knows it, after a restart too, and nothing that could be stolen from here is
kept; what a form has to carry beside the cookie is derived from the token.

Without any token the API and the dashboard answer to this machine alone: the peer and the ``Host`` must be loopback.
The second keeps out a web page elsewhere whose name was made to point here (DNS rebinding).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from enum import IntEnum
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request

from choreo.errors import ConfigurationError
from choreo.web.problem import ProblemError

SESSION_COOKIE = "choreo_session"

TOKEN_PREFIX = "choreo_"  # noqa: S105 -- by which secret scanners find one that has leaked

_ENTRY = re.compile(r"\s*(read|start|operate)\s+([A-Za-z0-9][A-Za-z0-9._@-]{0,63})\s+([0-9a-f]{64})\s*")
_RULE = "a role (read, start or operate), a name, and the SHA-256 of the token as 64 hex digits"


class Role(IntEnum):
    """What a token allows; each includes the ones before."""

    READ = 1
    START = 2
    OPERATE = 3


class Principal(NamedTuple):
    """Who asks.

    Attributes:
        name: as it stands beside what they do, in the sagas' histories.
        csrf: what a form of theirs has to carry; empty for requests that no browser sends by itself.
    """

    name: str
    role: Role
    csrf: str = ""


class Grant(NamedTuple):
    """One line of the configuration."""

    role: Role
    name: str
    digest: str


def new_token() -> str:
    """A token that nobody guesses: 256 bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """What the configuration holds of a token."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def read_grants(setting: str | None) -> tuple[Grant, ...]:
    """The grants of a setting: the path of a file with one on each line, or the lines themselves, or between commas.

    Raises:
        ConfigurationError: the file cannot be read, or a line is no grant.
    """
    if setting is None or not setting.strip():
        return ()
    given = _lines(setting)
    if any(_ENTRY.fullmatch(line) for line in given):
        return _grants(given, "the tokens given")
    try:
        lines = _lines(Path(setting).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read the file of tokens {setting!r}: {error}") from error
    found = _grants(lines, f"the file of tokens {setting!r}")
    if not found:
        raise ConfigurationError(f"the file of tokens {setting!r} has none; a line is {_RULE}")
    return found


def _lines(text: str) -> list[str]:
    return [line.partition("#")[0] for line in re.split(r"[,\n]", text)]


def _grants(lines: list[str], where: str) -> tuple[Grant, ...]:
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _ENTRY.fullmatch(line)
        if match is None:  # what stands there is not said: it may be a token that was put in by mistake
            raise ConfigurationError(
                f"{where}: line {number} is not {_RULE}; 'choreo http-token NAME --role operate' writes one"
            )
        found.append(Grant(Role[match[1].upper()], match[2], match[3]))
    return tuple(found)


class Access:
    """Decides who asks and whether they may."""

    def __init__(self, grants: tuple[Grant, ...]) -> None:
        self._grants = grants
        self._loopback = Principal("loopback", Role.OPERATE, secrets.token_urlsafe(32))

    @property
    def is_open(self) -> bool:
        """No tokens: this machine may do everything, others nothing."""
        return not self._grants

    def principal(self, request: Request) -> Principal:
        """Who asks.

        A cookie stands for its token in requests that change nothing; what a form changes carries a secret beside it,
        which ``check_form`` looks at.

        Raises:
            ProblemError: nobody that is known.
        """
        if self.is_open:
            self._check_loopback(request)
            return self._loopback
        header = request.headers.get("authorization")
        if header is not None:
            scheme, _, token = header.partition(" ")
            grant = self._grant_of(token.strip()) if scheme.lower() == "bearer" else None
            if grant is not None:
                return Principal(grant.name, grant.role)
            raise _unauthorized("the token is not known", 'error="invalid_token"')
        who = self.session(request)
        if who is not None:
            return who
        raise _unauthorized("no token was sent", "")

    def session(self, request: Request) -> Principal | None:
        """Who has logged in with this browser; ``None`` for nobody that is known (any more)."""
        token = request.cookies.get(SESSION_COOKIE)
        grant = self._grant_of(token) if token else None
        if token is None or grant is None:
            return None
        csrf = hmac.new(token.encode("utf-8", "surrogatepass"), b"choreo form", sha256).hexdigest()
        return Principal(grant.name, grant.role, csrf)

    def knows(self, token: str) -> bool:
        """Whether somebody may log in with it."""
        return self._grant_of(token) is not None

    def check_form(self, principal: Principal, given: str) -> None:
        """See that a form was written by us for this session. Raises ``ProblemError`` if not."""
        if not principal.csrf or not hmac.compare_digest(principal.csrf.encode(), given.encode("utf-8", "replace")):
            raise _forbidden(
                "the form is of another session", at="form field csrf", remedy="load the page again and repeat"
            )

    def _grant_of(self, token: str) -> Grant | None:
        digest = digest_of(token)
        found = None
        for grant in self._grants:
            if hmac.compare_digest(grant.digest, digest):
                found = grant
        return found

    def _check_loopback(self, request: Request) -> None:
        peer = request.client.host if request.client else ""
        if not is_loopback(peer):
            raise _forbidden(
                f"no tokens are configured, so only this machine may ask; {peer or 'the peer'} is another one",
                at="peer address",
                rule="must be a loopback address, or tokens must be configured",
                remedy="give the saga-log tokens (--http-tokens, CHOREO_HTTP_TOKENS) and send one as a bearer token",
            )
        host = request.headers.get("host", "")
        if not is_loopback(re.sub(r":\d+\Z", "", host).strip("[]")):
            raise _forbidden(
                f"no tokens are configured, so only this machine may ask, under its own name; {host!r} is another",
                at="header Host",
                rule="must be localhost or a loopback address, or tokens must be configured",
                remedy="ask for http://127.0.0.1, or give the saga-log tokens",
            )


def check_role(principal: Principal, needed: Role) -> None:
    """See that somebody may do it. Raises ``ProblemError`` if not."""
    if principal.role < needed:
        has, needs = principal.role.name.lower(), needed.name.lower()
        raise _forbidden(
            f"{principal.name!r} has the role {has}; this needs {needs}",
            at="bearer token",
            rule=f"must have the role {needs}",
            remedy="use a token with that role",
        )


def check_origin(request: Request) -> None:
    """See that a request that changes something does not come from another site's page. Raises ``ProblemError``."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    own = request.headers.get("host", "")
    if site not in ("same-origin", "none") or (origin is not None and origin.partition("://")[2] != own):
        raise _forbidden(
            f"the request comes from a page of {origin or 'another site'}",
            at="header Origin",
            rule="must be this server's own",
            remedy="use the dashboard's own pages, or send the request without a browser",
        )


def is_loopback(host: str) -> bool:
    """Whether a name or address can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unauthorized(detail: str, challenge: str) -> ProblemError:
    return ProblemError(
        HTTPStatus.UNAUTHORIZED,
        "unauthorized",
        detail,
        at="header Authorization",
        rule="must be 'Bearer' and a token that the saga-log was given",
        remedy="'choreo http-token' makes tokens; a browser logs in at /login",
        headers={"www-authenticate": f'Bearer realm="choreo"{", " + challenge if challenge else ""}'},
    )


def _forbidden(detail: str, *, at: str = "", rule: str = "", remedy: str = "") -> ProblemError:
    return ProblemError(HTTPStatus.FORBIDDEN, "forbidden", detail, at=at, rule=rule, remedy=remedy)
