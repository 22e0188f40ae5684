"""From a saga-log and its broker and store to a server: what ``choreo saga-log --http-port`` opens."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from choreo.broker.port import Broker
from choreo.client import Client
from choreo.clock import Clock, SystemClock
from choreo.observe.affairs import Affairs
from choreo.observe.metrics import Metrics
from choreo.store import Store
from choreo.web.access import Access, Grant, is_loopback
from choreo.web.app import make_app
from choreo.web.bulk import Bulks
from choreo.web.desk import Desk
from choreo.web.server import WebServer

logger = logging.getLogger("choreo.web")


@asynccontextmanager
async def serve_saga_log(
    broker: Broker,
    store: Store,
    sagas: Sequence[str],
    *,
    metrics: Metrics,
    not_ready_because: Callable[[], str | None],
    grants: tuple[Grant, ...] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    store_url: str | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[WebServer]:
    """Serve while the block runs.

    Args:
        sagas: names of the sagas that are looked after.
        grants: who may ask; without any, this machine alone.
        store_url: of the store, for the doctor; ``None`` where it keeps nothing to look into.

    Raises:
        OSError: the address cannot be had.
    """
    clock = clock or SystemClock()
    async with Client(broker, source="http-api", clock=clock) as client:
        desk = Desk(
            broker,
            store,
            client,
            sagas,
            metrics=metrics,
            clock=clock,
            not_ready_because=not_ready_because,
            store_url=store_url,
        )
        bulks = Bulks(desk)
        app = make_app(desk, bulks, Access(grants), Affairs(metrics, not_ready_because), clock)
        async with WebServer(app, desk, bulks, host=host, port=port) as server:
            _say(server, grants)
            yield server


def _say(server: WebServer, grants: tuple[Grant, ...]) -> None:
    shown = f"[{server.host}]" if ":" in server.host else server.host
    logger.info("dashboard at http://%s:%s, API under /api/v1", shown, server.port)
    if grants:
        names = ", ".join(f"{grant.name} ({grant.role.name.lower()})" for grant in grants)
        logger.info("bearer tokens are known of: %s", names)
    elif is_loopback(server.host):
        logger.info("no tokens are configured: every user of this machine may see and steer the sagas")
    else:
        logger.warning(
            "no tokens are configured: the API and the dashboard answer to this machine alone, although %s is open to "
            "others (metrics and health are for all). Give tokens by --http-tokens or CHOREO_HTTP_TOKENS",
            server.host,
        )
