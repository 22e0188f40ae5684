"""Resources of Strimzi, the Kafka operator for Kubernetes: topics and users."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from choreo.access.grants import Grant, Principal
from choreo.broker.port import TopicSpec

API = "kafka.strimzi.io/v1"


def strimzi_users(named: Sequence[tuple[str, Principal]], cluster: str) -> str:
    """A ``KafkaUser`` with SCRAM for each user and principal."""
    return _documents(
        {
            "apiVersion": API,
            "kind": "KafkaUser",
            "metadata": _metadata(user, cluster),
            "spec": {
                "authentication": {"type": "scram-sha-512"},
                "authorization": {"type": "simple", "acls": [_acl(grant) for grant in principal.grants]},
            },
        }
        for user, principal in named
    )


def strimzi_topics(specs: Iterable[TopicSpec], cluster: str) -> str:
    """A ``KafkaTopic`` for each topic, with the settings that choreo verifies when it starts."""
    from choreo.broker.kafka.topics import config_of_new

    return _documents(
        {
            "apiVersion": API,
            "kind": "KafkaTopic",
            "metadata": _metadata(spec.name, cluster),
            "spec": {
                "topicName": spec.name,
                "partitions": spec.partitions,
                **({} if spec.replication_factor is None else {"replicas": spec.replication_factor}),
                "config": {name: _number(value) for name, value in config_of_new(spec).items()},
            },
        }
        for spec in specs
    )


def _metadata(name: str, cluster: str) -> dict[str, Any]:
    """With SCRAM the name of the resource is the user's name for Kafka as well."""
    return {"name": re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-."), "labels": {"strimzi.io/cluster": cluster}}


def _acl(grant: Grant) -> dict[str, Any]:
    return {
        "resource": {"type": grant.resource, "name": grant.name, "patternType": "literal"},
        "operations": list(grant.operations),
    }


def _number(value: str) -> int | str:
    return int(value) if value.removeprefix("-").isdigit() else value


def _documents(documents: Iterable[dict[str, Any]]) -> str:
    import yaml

    return str(yaml.safe_dump_all(documents, sort_keys=False, explicit_start=True))
