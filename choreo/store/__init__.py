"""Where the saga-log keeps states between runs, by URL: ``sqlite:///file``, ``memory://``.

``port`` says what a store is; ``projection`` makes a row of a state; ``sqlite`` and ``memory`` are the adapters. A
store is a checkpoint of the log and a projection for queries, never the truth: it may lag, it never leads, and whoever
doubts it wipes it and folds the log again.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from choreo.errors import ConfigurationError
from choreo.store.port import Advance, Checkpoint, Query, Row, Store

__all__ = ["Advance", "Checkpoint", "Query", "Row", "Store", "open_store"]


async def open_store(url: str) -> Store:
    """The store that ``url`` names.

    ``sqlite:///relative.db`` and ``sqlite:////absolute.db`` are a file of this machine; ``memory://`` keeps nothing
    when the process ends, so that the log is folded from its start by the next.

    Raises:
        ConfigurationError: the URL has no known scheme or no file, or the file is another program's.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ConfigurationError(f"store URL {url!r}: it takes no options")
    if parts.scheme == "memory":
        from choreo.store.memory import MemoryStore

        return MemoryStore()
    if parts.scheme == "sqlite":
        path = unquote(parts.path)[1:]
        if parts.netloc or not path:
            raise ConfigurationError(
                f"store URL {url!r} names no file; use sqlite:///relative.db or sqlite:////absolute.db"
            )
        from choreo.store.sqlite import SqliteStore

        return await SqliteStore.open(path)
    raise ConfigurationError(f"store URL {url!r} has no known scheme; use sqlite:///path/to/file.db or memory://")
