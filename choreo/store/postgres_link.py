"""The way to PostgreSQL: what a store URL says, one connection that is made again when it breaks, and what errors mean.

A call that finds the server away raises ``StoreUnavailable`` and the next one connects again, though not more often
than once in ``RECONNECT_S``: a saga-log that works on without its store must not spend its time on knocking.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode, urlunsplit

import asyncpg

from choreo.errors import ConfigurationError, StoreConflict, StoreError, StoreUnavailable
from choreo.store import postgres_schema
from choreo.url import split_url

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA_DEFAULT = "choreo"
CONNECT_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 15.0
LONG_TIMEOUT_S = 120.0  # for what reads or deletes a whole partition
RECONNECT_S = 1.0
CLOSE_TIMEOUT_S = 2.0

_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_DRIVER_OPTIONS = frozenset(
    ("application_name", "passfile", "sslcert", "sslcrl", "sslkey", "sslmode", "sslrootcert", "target_session_attrs")
)

# Whose fault it is that a call has failed: not the statement's, so that the same one may succeed later.
_AWAY = (
    OSError,  # time-outs are of this kind too
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.TransactionRollbackError,
    asyncpg.exceptions.ReadOnlySQLTransactionError,  # a fail-over has made another server the first one
)
_REFUSED = (
    asyncpg.exceptions.InvalidAuthorizationSpecificationError,
    asyncpg.exceptions.InvalidCatalogNameError,
    asyncpg.exceptions.ClientConfigurationError,
    asyncpg.exceptions.InsufficientPrivilegeError,
)
_GONE = (asyncpg.exceptions.UndefinedTableError, asyncpg.exceptions.InvalidSchemaNameError)


class Address(NamedTuple):
    """What a store URL says.

    Attributes:
        shown: as it may be logged: without the password.
        dsn: for the driver, password included. Never log it.
    """

    shown: str
    dsn: str
    schema: str

    def __repr__(self) -> str:
        return f"Address({self.shown!r}, schema={self.schema!r})"


def address_of(url: str) -> Address:
    """Read ``postgresql://user[:password]@host[:port]/database[?schema=choreo]``.

    Raises:
        ConfigurationError: no database is named, or an option is not known.
    """
    parts = split_url(url)
    user, _, host = parts.netloc.rpartition("@")
    netloc = f"{user.partition(':')[0]}@{host}" if user else host
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    shown = urlunsplit((parts.scheme, netloc, parts.path, urlencode(options), ""))
    schema = options.pop("schema", SCHEMA_DEFAULT)
    unknown = sorted(options.keys() - _DRIVER_OPTIONS)
    if unknown or parts.fragment:
        known = ", ".join(sorted({"schema", *_DRIVER_OPTIONS}))
        what = unknown[0] if unknown else "#"
        raise ConfigurationError(f"store URL {_without_values(shown)!r}: unknown option {what!r}; there are {known}")
    if not _SCHEMA_NAME.fullmatch(schema):
        raise ConfigurationError(
            f"store URL {shown!r}: the schema {schema!r} must be of small letters, digits and underscores"
        )
    if not parts.path.strip("/"):
        raise ConfigurationError(f"store URL {shown!r} names no database; use postgresql://user@host:5432/database")
    options.setdefault("application_name", "choreo")  # by which an administrator finds us
    dsn = urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(options), ""))
    return Address(shown, dsn, schema)


class Link:
    """A connection for one call at a time.

    Args:
        inspecting: change nothing, not even the schema.
    """

    def __init__(self, address: Address, *, inspecting: bool = False) -> None:
        self.address = address
        self._inspecting = inspecting
        self._one_at_a_time = asyncio.Lock()
        self._connection: asyncpg.Connection | None = None
        self._closed = False
        self._away_until_s = 0.0
        self._away_because = ""

    async def open(self) -> None:
        """Connect for the first time.

        Raises:
            ConfigurationError: the server refuses us, or the schema is not ours.
            StoreUnavailable: no server answers.
        """
        async with self._one_at_a_time:
            await self._connected()

    async def call(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Do something with the connection.

        Raises:
            StoreUnavailable: the server is away; the connection is made again by a later call.
            StoreConflict: the tables are gone; they have been made again, empty.
            StoreError: what was asked cannot be done.
        """
        async with self._one_at_a_time:
            if self._closed:
                raise StoreError(f"the store {self.address.shown} is closed")
            try:
                connection = await self._connected()
            except ConfigurationError as error:  # it was our server and our schema when the store was opened
                raise StoreError(str(error)) from error
            try:
                return await work(connection)
            except StoreError:
                raise
            except _GONE as error:
                self._drop()
                raise await self._begun_anew(error) from error
            except asyncpg.DataError as error:
                raise StoreError(f"the store {self.address.shown} cannot take a value: {_said(error)}") from error
            except _AWAY as error:
                self._drop()
                raise StoreUnavailable(f"the store {self.address.shown} is away: {_said(error)}") from error
            except asyncpg.PostgresError as error:
                raise StoreError(f"the store {self.address.shown} cannot be used: {_said(error)}") from error
            except BaseException:  # cancelled in the middle, say: what was begun on this connection must not go on
                self._drop()
                raise

    async def close(self) -> None:
        async with self._one_at_a_time:
            self._closed = True
            if self._connection is not None:
                with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await self._connection.close(timeout=CLOSE_TIMEOUT_S)
                self._drop()

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        now_s = asyncio.get_running_loop().time()
        if now_s < self._away_until_s:
            raise StoreUnavailable(self._away_because)
        try:
            self._connection = await self._connect()
        except StoreUnavailable as error:
            self._away_until_s = asyncio.get_running_loop().time() + RECONNECT_S
            self._away_because = str(error)
            raise
        return self._connection

    async def _connect(self) -> asyncpg.Connection:
        shown, schema = self.address.shown, self.address.schema
        connection: asyncpg.Connection | None = None
        try:
            connection = await asyncpg.connect(
                self.address.dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=CALL_TIMEOUT_S
            )
            # The store may lag, so a server that loses its last moments in a crash does no harm.
            await connection.execute(
                "SELECT set_config('search_path', $1, false), set_config('synchronous_commit', 'off', false), "
                "set_config('default_transaction_read_only', $2, false)",
                f'"{schema}"',
                "on" if self._inspecting else "off",
            )
            await (postgres_schema.check if self._inspecting else postgres_schema.prepare)(connection, schema)
        except BaseException as error:
            if connection is not None:
                connection.terminate()
            if isinstance(error, _REFUSED):
                raise ConfigurationError(f"the store {shown} cannot be opened: {_said(error)}") from error
            if isinstance(error, _AWAY):
                raise StoreUnavailable(f"the store {shown} is away: {_said(error)}") from error
            if isinstance(error, asyncpg.PostgresError):
                raise StoreError(f"the store {shown} cannot be opened: {_said(error)}") from error
            if connection is None and isinstance(error, ValueError):  # whose text may quote the password
                raise ConfigurationError(
                    f"store URL {shown!r} cannot be read; use postgresql://user@host:5432/database"
                ) from None
            raise
        return connection

    async def _begun_anew(self, error: BaseException) -> StoreError:
        if self._inspecting:
            return StoreError(f"the store {self.address.shown} has lost its tables: {_said(error)}")
        await self._connected()
        text = f"the store {self.address.shown} had lost its tables; they are made again and filled from the log"
        logger.warning("%s", text)
        return StoreConflict(text)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _said(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _without_values(shown: str) -> str:
    """For a URL whose options nobody knows: one of them may be a password under another name."""
    return shown.partition("?")[0]
