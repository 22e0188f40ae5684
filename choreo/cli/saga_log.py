"""``choreo saga-log``: the one consumer with memory."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from choreo.cli.options import (
    BrokerUrl,
    HttpHost,
    HttpPort,
    LogFormat,
    LogLevel,
    LogTexts,
    Partitions,
    broker_url,
    hides_texts,
)


def saga_log(
    contracts: Annotated[list[str], Parameter(help="MODULE:NAME of each contract, as in services.order:ORDER.")],
    *,
    broker: BrokerUrl = None,
    store: Annotated[
        str,
        Parameter(
            env_var="CHOREO_STORE",
            help="Where states are kept between runs: sqlite:///file, postgresql://user@host:5432/database for several "
            "instances, or memory:// to rebuild from the log each time.",
        ),
    ] = "memory://",
    http_host: HttpHost = "127.0.0.1",
    http_port: HttpPort = None,
    http_tokens: Annotated[
        str | None,
        Parameter(
            env_var="CHOREO_HTTP_TOKENS",
            help="Who may use the API and the dashboard: a file with a line for each token, made by choreo http-token, "
            "or such lines between commas. Without it only this machine may.",
        ),
    ] = None,
    partitions: Partitions = None,
    tracer: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            help="MODULE:NAME of an object that is told of sagas: saga_started, compensating, saga_completed, "
            "saga_compensated, saga_stuck, as far as it has these methods. May be given several times.",
        ),
    ] = None,
    log_level: LogLevel = "info",
    log_format: LogFormat = "console",
    log_texts: LogTexts = None,
) -> int:
    """Fold the log of these sagas and decide: compensations, joins, time-outs, outcomes.

    Several instances share the partitions. The store is a checkpoint: delete it and it is rebuilt from the log. With
    --http-port it serves the dashboard, the API under /api/v1, and /metrics, /healthz and /readyz.

    Example: choreo saga-log services.order:ORDER --broker kafka://localhost:9092 --store sqlite:///saga-log.db
    """
    from choreo.broker import open_broker
    from choreo.broker.registry import ensure_saga_topics
    from choreo.cli.names import load, load_object
    from choreo.cli.process import run_async, work_until_signal
    from choreo.contract import Saga
    from choreo.contract.saga import with_children
    from choreo.observe.log import set_up_logging
    from choreo.observe.metrics import Metrics
    from choreo.saga_log import SagaLog
    from choreo.store import open_store

    set_up_logging(log_level, log_format, hides_texts=hides_texts(log_texts))
    sagas = with_children(load(spec, Saga) for spec in contracts)
    tracers = [load_object(spec) for spec in tracer or ()]
    url = broker_url(broker)

    async def work() -> None:
        opened = await open_broker(url)
        try:
            await ensure_saga_topics(opened, sagas, partitions=partitions)
            states = await open_store(store)
            try:
                metrics = Metrics(with_process=True)
                runtime = SagaLog(opened, states, sagas, metrics=metrics, tracers=tracers)
                server = None
                if http_port is not None:
                    from choreo.web import serve_saga_log
                    from choreo.web.access import read_grants

                    server = serve_saga_log(
                        opened,
                        states,
                        [saga.name for saga in sagas],
                        metrics=metrics,
                        not_ready_because=runtime.not_ready_because,
                        grants=read_grants(http_tokens),
                        host=http_host,
                        port=http_port,
                        store_url=None if store.startswith("memory:") else store,
                    )
                await work_until_signal(runtime, metrics, server, f"{http_host}:{http_port}")
            finally:
                await states.close()
        finally:
            await opened.close()

    run_async(work)
    return 0
