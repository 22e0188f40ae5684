"""The application on a port, by uvicorn, inside the event loop of the saga-log."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from choreo.web.bulk import Bulks
from choreo.web.desk import Desk
from choreo.web.limits import CONNECTIONS_MAX

HEAD_BYTES_MAX = 16_384
KEEP_ALIVE_S = 15
SHUTDOWN_S = 3
FIRST_REQUEST_S = 10.0


class WebServer:
    """Serves until closed. Use as ``async with WebServer(…) as server``."""

    def __init__(self, app: Any, desk: Desk, bulks: Bulks, *, host: str, port: int) -> None:
        """Prepare a server.

        Args:
            host: an address of this machine.
            port: 0 takes a free one, ``self.port`` then says which.
        """
        self.host = host
        self.port = port
        self._desk = desk
        self._bulks = bulks
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # who asks is who is connected: a header could say anything
                limit_concurrency=CONNECTIONS_MAX,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=SHUTDOWN_S,
                h11_max_incomplete_event_size=HEAD_BYTES_MAX,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Listen. Raises ``OSError`` if the address cannot be had."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listening = socket.socket(family)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((self.host, self.port))
            listening.listen(128)
        except BaseException:
            listening.close()
            raise
        self.port = listening.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listening]), name="web/server")
        while not self._server.started and not self._task.done():  # noqa: ASYNC110 -- uvicorn has nothing that tells
            await asyncio.sleep(0.005)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._bulks.close()
        await self._desk.close()  # or streams would keep their connections
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)


class _Server(uvicorn.Server):
    """Signals are the process's business, not the server's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """Drops who connects and then asks for nothing, or not to the end: connections are not without number."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(FIRST_REQUEST_S, self._drop_if_silent)

    def _drop_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()
