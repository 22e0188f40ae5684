"""Where the saga-log keeps states between runs, by URL: ``sqlite:///file``, ``postgresql://host/db``, ``memory://``.

``port`` says what a store is; ``projection`` makes a row of a state; ``sqlite``, ``postgres`` and ``memory`` are the
adapters; ``inspection`` looks into a store without touching it. A store is a checkpoint of the log and a projection for
queries, never the truth: it may lag, it never leads, and whoever doubts it wipes it and folds the log again.
"""

from __future__ import annotations

from urllib.parse import SplitResult, unquote

from choreo.errors import ConfigurationError
from choreo.store.port import Activity, Advance, Checkpoint, Place, Query, Row, Store
from choreo.url import split_url

__all__ = ["Activity", "Advance", "Checkpoint", "Place", "Query", "Row", "Store", "open_store"]


async def open_store(url: str) -> Store:
    """The store that ``url`` names.

    ``sqlite:///relative.db`` and ``sqlite:////absolute.db`` are a file of this machine; ``postgresql://user@host:port/db``
    is a database that several instances share, where the store has a schema of its own (``?schema=choreo``);
    ``memory://`` keeps nothing when the process ends, so that the log is folded from its start by the next.

    Raises:
        ConfigurationError: the URL has no known scheme or names no file or database, or what it names is another
            program's or a newer release's; or the driver is not installed.
        StoreUnavailable: the database does not answer.
    """
    parts = split_url(url)
    if parts.scheme == "postgresql":
        need_driver()
        from choreo.store.postgres import PostgresStore

        return await PostgresStore.open(url)
    if parts.query or parts.fragment:
        raise ConfigurationError(f"store URL {without_password(parts)!r}: it takes no options")
    if parts.scheme == "memory":
        from choreo.store.memory import MemoryStore

        return MemoryStore()
    if parts.scheme == "sqlite":
        path = unquote(parts.path)[1:]
        if parts.netloc or not path:
            raise ConfigurationError(
                f"store URL {without_password(parts)!r} names no file; use sqlite:///relative.db or sqlite:////absolute.db"
            )
        from choreo.store.sqlite import SqliteStore

        return await SqliteStore.open(path)
    raise ConfigurationError(
        f"store URL {without_password(parts)!r} has no known scheme; use sqlite:///path/to/file.db, "
        "postgresql://user@host:5432/database or memory://"
    )


def need_driver() -> None:
    """Raise ``ConfigurationError`` if the driver of PostgreSQL is not installed."""
    try:
        import asyncpg  # noqa: F401 -- whether it is there
    except ImportError as error:
        raise ConfigurationError(
            "a store in PostgreSQL needs the package asyncpg, which is missing: pip install 'choreo-sagas[postgres]'"
        ) from error


def without_password(parts: SplitResult) -> str:
    """The URL as it may be shown: without a password, and without options that may hold one."""
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}@{host}" if user else host, query="", fragment="").geturl()
