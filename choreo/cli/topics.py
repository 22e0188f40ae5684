"""``choreo topics``: what a saga needs of the broker."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from choreo.cli.options import AsJson, BrokerUrl, Partitions, broker_url, write_json


def topics(
    parts: Annotated[list[str], Parameter(help="MODULE:NAME of contracts and of step services, in any order.")],
    *,
    create: Annotated[
        bool, Parameter(negative="", help="Create and verify topics, register contracts, announce services.")
    ] = False,
    broker: BrokerUrl = None,
    partitions: Partitions = None,
    retention: Annotated[str, Parameter(help="How long records are kept; longer than any saga may take.")] = "7d",
    replication: Annotated[int | None, Parameter(help="Copies of each partition; the cluster's default.")] = None,
    form: Annotated[
        Literal["text", "strimzi"],
        Parameter(name="--format", help="For people, or KafkaTopic resources of Strimzi."),
    ] = "text",
    cluster: Annotated[str, Parameter(help="The Kafka cluster's name, for Strimzi.")] = "kafka",
    as_json: AsJson = False,
) -> int:
    """List the topics of sagas, or create and verify them.

    Example: choreo topics services.order:ORDER --create --partitions 12 --replication 3 --broker kafka://localhost:9092
    """
    from choreo.broker.announcement import announcement
    from choreo.broker.registry import PARTITIONS_DEFAULT, announce, ensure_saga_topics, register
    from choreo.broker.topics import topic_specs
    from choreo.cli.names import load_parts
    from choreo.cli.process import run_async
    from choreo.contract.policy import duration_ms, duration_text
    from choreo.errors import ConfigurationError

    sagas, services = load_parts(parts)
    try:
        retention_ms = duration_ms(retention)
    except ValueError as error:
        raise ConfigurationError(f"--retention: {error}") from error
    if create:
        from choreo.broker import open_broker

        url = broker_url(broker)

        async def ensure() -> None:
            opened = await open_broker(url)
            try:
                await ensure_saga_topics(
                    opened,
                    sagas.values(),
                    partitions=partitions,
                    retention_ms=retention_ms,
                    replication_factor=replication,
                )
                registry = await register(opened, list(sagas.values()))
                words = [announcement(service.name, service.group, service.hosted()) for service in services]
                await announce(opened, registry, words)
            finally:
                await opened.close()

        run_async(ensure)
    specs = {
        spec.name: spec
        for saga in sagas.values()
        for spec in topic_specs(
            saga.name,
            partitions=partitions or PARTITIONS_DEFAULT,
            retention_ms=retention_ms,
            replication_factor=replication,
        )
    }
    if form == "strimzi":
        from choreo.access.strimzi import strimzi_topics

        sys.stdout.write(strimzi_topics(specs.values(), cluster))
        return 0
    for spec in specs.values():
        if as_json:
            write_json(spec)
        else:
            kept = "last record of each key" if spec.compacted else duration_text(spec.retention_ms or 0)
            print(f"{spec.name:<40} {spec.partitions:>4} partitions   keeps {kept}")  # noqa: T201 - the command's output
    return 0
