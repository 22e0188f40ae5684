"""Access tokens for SASL/OAUTHBEARER (RFC 7628), had by the client credentials grant of OAuth 2.0 (RFC 6749, 4.4)."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import NamedTuple

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import AuthenticationFailedError

ANSWER_TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 65_536
RENEW_AT = 0.8  # of a token's life: late enough to be rare, early enough that no connection shows an old one
LIFE_DEFAULT_S = 300.0


class ClientCredentials(NamedTuple):
    """Where tokens are had, and by whom."""

    url: str
    client_id: str
    client_secret: str
    scope: str
    context: ssl.SSLContext | None

    def __repr__(self) -> str:
        return f"ClientCredentials({self.client_id!r} at {self.url!r})"


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc] # aiokafka has no types
    """Asks for a token when the last one is near its end; connections that open together share one."""

    def __init__(self, credentials: ClientCredentials) -> None:
        self._credentials = credentials
        self._lock = asyncio.Lock()
        self._token = ""
        self._renew_at = 0.0

    async def token(self) -> str:
        """A token that is valid now.

        Raises:
            AuthenticationFailedError: the server refuses, or does not answer.
        """
        async with self._lock:
            if time.monotonic() >= self._renew_at:
                asked_at = time.monotonic()
                self._token, life_s = await asyncio.to_thread(fetch, self._credentials)
                self._renew_at = asked_at + life_s * RENEW_AT
            return self._token


def fetch(credentials: ClientCredentials) -> tuple[str, float]:
    """A new token and how long it lives, in seconds.

    Raises:
        AuthenticationFailedError: the server refuses, does not answer, or its answer holds no token.
    """
    form = {"grant_type": "client_credentials"} | ({"scope": credentials.scope} if credentials.scope else {})
    # RFC 6749, 2.3.1: both are form-encoded before they become the user and the password of HTTP's basic scheme.
    pair = f"{urllib.parse.quote_plus(credentials.client_id)}:{urllib.parse.quote_plus(credentials.client_secret)}"
    request = urllib.request.Request(  # noqa: S310 - https, or http to this machine: checked with the settings
        credentials.url,
        data=urllib.parse.urlencode(form).encode(),
        headers={"Authorization": "Basic " + base64.b64encode(pair.encode()).decode(), "Accept": "application/json"},
    )
    try:
        with urllib.request.urlopen(  # noqa: S310
            request, timeout=ANSWER_TIMEOUT_S, context=credentials.context
        ) as response:
            answer = json.loads(response.read(ANSWER_BYTES_MAX))
        token, life_s = answer["access_token"], float(answer.get("expires_in", LIFE_DEFAULT_S))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else f"{type(error).__name__}: {error}"
        raise AuthenticationFailedError(f"no token from {credentials.url}: {said}") from error
    if not isinstance(token, str) or not token:
        raise AuthenticationFailedError(f"no token from {credentials.url}: the answer's access_token is no text")
    return token, max(life_s, 0.0)
