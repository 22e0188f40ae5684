"""A process's own affairs over HTTP, whatever the server: ``/metrics``, ``/healthz``, ``/readyz``.

- ``/metrics``: Prometheus text, or OpenMetrics, with exemplars, if the scraper asks for it.
- ``/healthz``: 200 as long as the event loop turns. Never coupled to Kafka: an outage must not restart every pod.
- ``/readyz``: 200, or 503 with ``{"ready": false, "reason": …}``.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

import msgspec
from prometheus_client.exposition import choose_encoder

from choreo.observe.metrics import Metrics

JSON_TYPE = "application/json"

Response = tuple[HTTPStatus, bytes, str]
"""Status, body, content type."""


class Affairs:
    """Answers for one process.

    Args:
        metrics: what ``/metrics`` writes out.
        not_ready_because: why the process cannot do its work now; ``None`` if it can.
    """

    paths = ("/metrics", "/healthz", "/readyz")

    def __init__(self, metrics: Metrics, not_ready_because: Callable[[], str | None]) -> None:
        self._metrics = metrics
        self._not_ready_because = not_ready_because

    def answer(self, path: str, accept: str) -> Response | None:
        """The answer to a GET; ``None`` if the path is none of these."""
        match path:
            case "/metrics":
                encoder, content_type = choose_encoder(accept)
                return HTTPStatus.OK, encoder(self._metrics.registry), content_type
            case "/healthz":
                return HTTPStatus.OK, b'{"alive":true}', JSON_TYPE
            case "/readyz":
                reason = self._not_ready_because()
                if reason is None:
                    return HTTPStatus.OK, b'{"ready":true}', JSON_TYPE
                body = msgspec.json.encode({"ready": False, "reason": reason})
                return HTTPStatus.SERVICE_UNAVAILABLE, body, JSON_TYPE
        return None
