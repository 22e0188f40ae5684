"""A small HTTP/1.1 server for a step service's own affairs: ``/metrics``, ``/healthz``, ``/readyz``.

Written by hand, so that a step service needs no web framework to be scraped; ADR 0013 says what that saves. It reads
GET requests without a body, within limits on size, time and number of connections, and it listens on the loopback
address unless told otherwise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from choreo.observe.affairs import Affairs, Response
from choreo.observe.metrics import Metrics

logger = logging.getLogger(__name__)

HEAD_BYTES_MAX = 8_192
CONNECTIONS_MAX = 64
READ_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0


class Request(NamedTuple):
    """A request's head, as far as it matters here; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]


class BadRequestError(Exception):
    """The client did not send a request that can be answered; ``status`` says why."""

    def __init__(self, status: HTTPStatus) -> None:
        self.status = status
        super().__init__(status.phrase)


class HttpServer:
    """Serves until closed. Use as ``async with HttpServer(metrics, not_ready_because=…) as server``."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        not_ready_because: Callable[[], str | None],
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Prepare a server.

        Args:
            metrics: what ``/metrics`` writes out.
            not_ready_because: why the process cannot do its work now; ``None`` if it can.
            host: an address of this machine; ``0.0.0.0`` opens the port to the network.
            port: 0 takes a free one, ``self.port`` then says which.
        """
        self.host = host
        self.port = port
        self._affairs = Affairs(metrics, not_ready_because)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises ``OSError`` if the address cannot be had."""
        self._server = await asyncio.start_server(self._accept, self.host, self.port, limit=HEAD_BYTES_MAX)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and drop what is connected."""
        if self._server is None:
            return
        self._server.close()
        connections = tuple(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="http/connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            keep = True
            while keep:
                keep = await self._serve_one(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            logger.debug("a connection ended early", exc_info=True)
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. Returns whether the connection may carry another."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                request = await _read_request(reader)
        except BadRequestError as error:
            await _write(writer, _problem(error.status), keep=False)
            return False
        keep = request.headers.get("connection", "").lower() != "close"
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await _write(writer, self._answer(request), keep=keep)
        return keep

    def _answer(self, request: Request) -> Response:
        if request.method != "GET":
            return _problem(HTTPStatus.METHOD_NOT_ALLOWED)
        answer = self._affairs.answer(request.target.partition("?")[0], request.headers.get("accept", ""))
        return answer if answer is not None else _problem(HTTPStatus.NOT_FOUND)


async def _read_request(reader: asyncio.StreamReader) -> Request:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from None
    lines = head.decode("latin-1").split("\r\n")
    method, _, rest = lines[0].partition(" ")
    target, _, protocol = rest.rpartition(" ")
    if protocol not in ("HTTP/1.1", "HTTP/1.0") or not target.startswith("/"):
        raise BadRequestError(HTTPStatus.BAD_REQUEST)
    headers: dict[str, str] = {"connection": "close"} if protocol == "HTTP/1.0" else {}
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        if not colon or name != name.strip():
            raise BadRequestError(HTTPStatus.BAD_REQUEST)
        headers[name.lower()] = value.strip()
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        # A body that is not read would be taken for the next request.
        raise BadRequestError(HTTPStatus.BAD_REQUEST if method == "GET" else HTTPStatus.METHOD_NOT_ALLOWED)
    return Request(method, target, headers)


def _problem(status: HTTPStatus) -> Response:
    return status, msgspec.json.encode({"status": status.value, "title": status.phrase}), "application/problem+json"


async def _write(writer: asyncio.StreamWriter, response: Response, *, keep: bool) -> None:
    status, body, content_type = response
    lines = [
        f"HTTP/1.1 {int(status)} {HTTPStatus(status).phrase}",
        f"content-type: {content_type}",
        f"content-length: {len(body)}",
        f"connection: {'keep-alive' if keep else 'close'}",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
    ]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("allow: GET")
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    await writer.drain()
