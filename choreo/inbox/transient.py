"""Which errors of a database pass by themselves: it is away, or it has let another transaction go first."""

from __future__ import annotations

from typing import Any

# Classes of SQLSTATE, and single codes (PostgreSQL, appendix A).
_CLASSES = ("08", "53", "58")  # connection, resources, the server's own machine
_CODES = frozenset(
    {
        "40001",  # serialization failure
        "40P01",  # deadlock
        "40003",  # statement completion unknown
        "55P03",  # a lock was not to be had in time
        "57P01",  # shut down by an administrator
        "57P02",  # … by a crash
        "57P03",  # … and not up again
        "57P05",  # idle for too long
        "25P03",  # … within a transaction
        "25006",  # read-only: a replica that is about to be promoted
    }
)
_SQLITE_CODES = frozenset({5, 6, 10, 13, 14})  # busy, locked, I/O error, full, cannot open


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may succeed later. Looks at what SQLAlchemy raises, and at its causes."""
    from sqlalchemy import exc

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, exc.TimeoutError):
            return True  # no connection was free
        if isinstance(seen, exc.DBAPIError):
            if seen.connection_invalidated:
                return True
            return _is_transient_code(seen.orig, is_operational=isinstance(seen, exc.OperationalError))
        seen = seen.__cause__
    return False


def is_of_database(error: BaseException) -> bool:
    """Whether it comes from the database or the way to it, where no code but ours was at work."""
    from sqlalchemy import exc

    # Where a connection cannot be made, drivers' own errors come through as they are.
    return isinstance(error, exc.SQLAlchemyError | OSError) or isinstance(_sqlstate(error), str)


def _is_transient_code(original: Any, *, is_operational: bool) -> bool:
    code = _sqlstate(original)
    if isinstance(code, str):
        return code[:2] in _CLASSES or code in _CODES
    sqlite_code = getattr(original, "sqlite_errorcode", None)
    if isinstance(sqlite_code, int):
        return sqlite_code & 0xFF in _SQLITE_CODES
    return is_operational  # a driver that has no code to tell has not reached the server


def _sqlstate(error: Any) -> Any:
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
