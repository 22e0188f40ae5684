"""The client for synchronous programs: the same calls, each returning when it is done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from choreo.client.client import WAIT_S_DEFAULT, Act, Client
from choreo.client.schedule import StartTime
from choreo.contract.saga import Saga
from choreo.core.status import SagaStatus
from choreo.errors import ConfigurationError
from choreo.messages.records import SagaCompleted

T = TypeVar("T")


class BlockingClient:
    """``Client`` for code without an event loop; it keeps one in a thread of its own. Safe to share between threads.

        with BlockingClient("kafka://localhost:9092") as client:
            outcome = client.run(ORDER, {"item": "kite", "amount": 30})

    Arguments and errors are those of ``Client``.
    """

    def __init__(self, broker: str, **options: Any) -> None:
        self._broker = broker
        self._options = options
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="choreo-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._call(self._enter())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the broker and end the thread. Closing twice is harmless."""
        if self._client is not None:
            self._call(self._client.close())
            self._client = None
        self._stop()

    def start(
        self,
        saga: Saga,
        input: object,  # noqa: A002 - the user's word
        *,
        id: str | None = None,  # noqa: A002 - the user's word
        at: StartTime | None = None,
        traceparent: str | None = None,
    ) -> str:
        """See ``Client.start``."""
        return self._call(self._open().start(saga, input, id=id, at=at, traceparent=traceparent))

    def run(
        self,
        saga: Saga,
        input: object,  # noqa: A002 - the user's word
        *,
        id: str | None = None,  # noqa: A002 - the user's word
        timeout_s: float | None = WAIT_S_DEFAULT,
        traceparent: str | None = None,
    ) -> SagaCompleted:
        """See ``Client.run``."""
        return self._call(self._open().run(saga, input, id=id, timeout_s=timeout_s, traceparent=traceparent))

    def wait(self, saga: Saga, saga_id: str, *, timeout_s: float | None = WAIT_S_DEFAULT) -> SagaCompleted:
        """See ``Client.wait``."""
        return self._call(self._open().wait(saga, saga_id, timeout_s=timeout_s))

    def status(self, saga: Saga, saga_id: str) -> SagaStatus:
        """See ``Client.status``."""
        return self._call(self._open().status(saga, saga_id))

    def cancel(self, saga: Saga, saga_id: str, *, reason: str = "", requested_by: str = "") -> None:
        """See ``Client.cancel``."""
        self._call(self._open().cancel(saga, saga_id, reason=reason, requested_by=requested_by))

    def signal(
        self,
        saga: Saga,
        saga_id: str,
        name: str,
        payload: object = None,
        *,
        id: str | None = None,  # noqa: A002 - the user's word
        reason: str = "",
        sent_by: str = "",
    ) -> None:
        """See ``Client.signal``."""
        self._call(self._open().signal(saga, saga_id, name, payload, id=id, reason=reason, sent_by=sent_by))

    def pause(self, saga: Saga, saga_id: str | None = None, *, operator: str, reason: str) -> None:
        """See ``Client.pause``."""
        self._call(self._open().pause(saga, saga_id, operator=operator, reason=reason))

    def resume(self, saga: Saga, saga_id: str | None = None, *, operator: str, reason: str) -> None:
        """See ``Client.resume``."""
        self._call(self._open().resume(saga, saga_id, operator=operator, reason=reason))

    def act(self, saga: Saga, saga_id: str, act: Act, step: str, *, operator: str, reason: str) -> None:
        """See ``Client.act``."""
        self._call(self._open().act(saga, saga_id, act, step, operator=operator, reason=reason))

    async def _enter(self) -> Client:
        client = Client(self._broker, **self._options)
        return await client.__aenter__()

    def _open(self) -> Client:
        if self._client is None:
            raise ConfigurationError("the client is not open; use it in a 'with' block")
        return self._client

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None, "calls are made between enter and close"
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def _stop(self) -> None:
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None
