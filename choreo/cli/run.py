"""``choreo run``: one process that hosts one or more step services."""

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
    ShutdownTimeout,
    broker_url,
    hides_texts,
)


def run(
    services: Annotated[list[str], Parameter(help="MODULE:NAME of a Service, as in services.payment:service.")],
    *,
    broker: BrokerUrl = None,
    http_host: HttpHost = "127.0.0.1",
    http_port: HttpPort = None,
    concurrency: Annotated[
        int, Parameter(env_var="CHOREO_CONCURRENCY", help="Handlers running side by side, for each partition.")
    ] = 64,
    partitions: Partitions = None,
    shutdown_timeout: ShutdownTimeout = 25.0,
    log_level: LogLevel = "info",
    log_format: LogFormat = "console",
    log_texts: LogTexts = None,
) -> int:
    """Run step services until SIGTERM.

    Start it as often as you like: processes with the same service share its work.

    Example: choreo run services.payment:service --broker kafka://localhost:9092 --http-port 8001
    """
    from choreo.broker import open_broker
    from choreo.broker.registry import ensure_saga_topics
    from choreo.cli.names import load
    from choreo.cli.process import run_async, work_until_signal
    from choreo.observe.http import HttpServer
    from choreo.observe.log import set_up_logging
    from choreo.observe.metrics import Metrics
    from choreo.step import Options, Service, StepRuntime

    set_up_logging(log_level, log_format, hides_texts=hides_texts(log_texts))
    hosted = [load(spec, Service) for spec in services]
    url = broker_url(broker)

    async def work() -> None:
        opened = await open_broker(url)
        try:
            sagas = {key: saga for service in hosted for key, saga in service.contracts.items()}.values()
            await ensure_saga_topics(opened, sagas, partitions=partitions)
            metrics = Metrics(with_process=True)
            options = Options(concurrency=concurrency, shutdown_timeout_s=shutdown_timeout)
            runtime = StepRuntime(hosted, opened, metrics=metrics, options=options)
            server = None
            if http_port is not None:
                server = HttpServer(
                    metrics, not_ready_because=runtime.not_ready_because, host=http_host, port=http_port
                )
            await work_until_signal(runtime, metrics, server, f"{http_host}:{http_port}")
        finally:
            await opened.close()

    run_async(work)
    return 0
