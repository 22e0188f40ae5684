"""``choreo acl``: the least that each part of a deployment must be allowed at the broker."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter


def acl(
    parts: Annotated[list[str], Parameter(help="MODULE:NAME of contracts and of step services, in any order.")],
    *,
    form: Annotated[
        Literal["text", "kafka-acls", "strimzi", "json"],
        Parameter(name="--format", help="For people, as commands, as KafkaUser resources, or for programs."),
    ] = "text",
    user: Annotated[
        list[str] | None,
        Parameter(help="ROLE=USER: who a role is to the broker, as payment=CN=payment; choreo-ROLE unless said."),
    ] = None,
    cluster: Annotated[str, Parameter(help="The Kafka cluster's name, for Strimzi.")] = "kafka",
) -> int:
    """Print the access rights of each part, from its contracts: the client, each step service, the saga-log, and so on.

    Example: choreo acl services.order:ORDER services.payment:service --format kafka-acls --user payment=CN=payment
    """
    from choreo.access import principals, render
    from choreo.cli.names import load_parts
    from choreo.errors import ConfigurationError
    from choreo.saga_log.runtime import GROUP

    sagas, held = load_parts(parts)
    services = [(service.name, service.group, [name for name, _ in service.contracts]) for service in held]
    users: dict[str, str] = {}
    for pair in user or ():
        role, equals, name = pair.partition("=")
        if not (role and equals and name):
            raise ConfigurationError(f"--user {pair!r} must be ROLE=USER, as in payment=CN=payment")
        users[role] = name
    sys.stdout.write(render(principals(sagas, services, GROUP), form, users=users, cluster=cluster))
    return 0
