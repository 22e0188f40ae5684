"""A TCP proxy on the loopback interface that can lose answers, and nothing but answers.

What clients send goes on to the broker, which does it; what the broker answers is swallowed, and after a while the
connection breaks. So a client cannot know whether its record was appended or its offset committed: the case that
separates a send that is repeated with care from one that is lost or doubled.
"""

from __future__ import annotations

import asyncio
import contextlib

CHUNK = 65_536


class Proxy:
    """Listens on one port and hands on to another.

    Attributes:
        answers_lost: bytes that were swallowed.
        connections_cut: connections that were broken with answers lost.
    """

    def __init__(self, port: int, broker_port: int) -> None:
        self.port = port
        self.answers_lost = 0
        self.connections_cut = 0
        self._broker_port = broker_port
        self._loses_answers = False
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, bool] = {}  # to clients; whether an answer was lost on it
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        if self._serving:
            await asyncio.wait(self._serving, timeout=2)
        await asyncio.sleep(0.05)  # transports close a turn of the loop later

    async def lose_answers(self, seconds: float) -> None:
        """Swallow all answers for so long, then break the connections on which one was swallowed."""
        self._loses_answers = True
        try:
            await asyncio.sleep(seconds)
        finally:
            self._loses_answers = False
            for writer, lost in list(self._open.items()):
                if lost:
                    self.connections_cut += 1
                    writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", self._broker_port)
        except OSError:
            writer.transport.abort()
            return
        self._open[writer] = False
        if (serving := asyncio.current_task()) is not None:
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)
        tasks = [
            asyncio.ensure_future(self._requests(reader, broker_writer)),
            asyncio.ensure_future(self._answers(broker_reader, writer)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._open.pop(writer, None)
            for side in (writer, broker_writer):
                side.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                writer.write(data)
                await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if self._loses_answers or self._open.get(writer):
                    # A stream of which a part is missing cannot be gone on with: from here on nothing comes through.
                    self._open[writer] = True
                    self.answers_lost += len(data)
                    continue
                writer.write(data)
                await writer.drain()
