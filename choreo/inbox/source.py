"""Where transactions come from: a user's SQLAlchemy engine or session factory, sync or async."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from choreo.errors import ConfigurationError
from choreo.inbox.resource import Resource


class Source:
    """An ``Engine``, ``sessionmaker``, ``AsyncEngine`` or ``async_sessionmaker``.

    Attributes:
        is_async: what its connections are.
        engine: what connections are taken from.
        make_session: makes a session, given ``bind=`` a connection.
    """

    def __init__(self, given: Any, what: str) -> None:
        """Look at what was given.

        Args:
            what: names it in errors: ``transaction=``, ``Inbox(…)``.

        Raises:
            ConfigurationError: it is something else, or SQLAlchemy is not installed.
        """
        try:
            import sqlalchemy.orm
            from sqlalchemy.ext import asyncio as sqlalchemy_asyncio
        except ImportError as error:
            raise ConfigurationError(f"{what} needs SQLAlchemy: pip install 'choreo-sagas[sqlalchemy]'") from error
        self.engine: Any = given
        self.make_session: Callable[..., Any] = given
        match given:
            case sqlalchemy.Engine():
                self.is_async, self.make_session = False, sqlalchemy.orm.Session
            case sqlalchemy.orm.sessionmaker():
                self.is_async, self.engine = False, given.kw.get("bind")
            case sqlalchemy_asyncio.AsyncEngine():
                self.is_async, self.make_session = True, sqlalchemy_asyncio.AsyncSession
            case sqlalchemy_asyncio.async_sessionmaker():
                self.is_async, self.engine = True, given.kw.get("bind")
            case _:
                raise ConfigurationError(
                    f"{what}: {given!r} is no SQLAlchemy Engine, sessionmaker, AsyncEngine or async_sessionmaker"
                )
        if self.engine is None:
            raise ConfigurationError(f"{what}: the session factory is bound to no engine; make it with bind=…")

    @property
    def dialect(self) -> str:
        """The database's name: ``sqlite``, ``postgresql``."""
        return str(self.engine.dialect.name)

    def problem_with(self, parameter: str, resource: Resource, *, handler_is_async: bool) -> str | None:
        """Why that parameter of a handler cannot be filled from here."""
        if resource.is_async != self.is_async:
            return (
                f"parameter {parameter!r} is annotated {resource.name}, "
                f"but the engine is {'async' if self.is_async else 'sync'}"
            )
        if resource.is_async != handler_is_async:
            return (
                f"parameter {parameter!r} is annotated {resource.name}, but the function is "
                f"{'async: a sync query would hold up the event loop' if handler_is_async else 'not async'}; "
                f"make both {'async' if handler_is_async else 'sync'}"
            )
        return None
