"""Rights, written down: for people, as commands for ``kafka-acls.sh``, as resources for Strimzi, as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence

import msgspec

from choreo.access.grants import Principal
from choreo.access.strimzi import strimzi_users
from choreo.errors import ConfigurationError


def render(principals: Sequence[Principal], form: str, *, users: Mapping[str, str], cluster: str = "kafka") -> str:
    """The rights of these principals, ending in a newline.

    Args:
        form: one of ``FORMATS``.
        users: who a role is to the broker, as ``{"payment": "CN=payment,O=Example"}``; ``choreo-`` and the role itself
            if it is not there.
        cluster: of Strimzi, that is, the label ``strimzi.io/cluster`` of its resources.

    Raises:
        ConfigurationError: there is no such form, or ``users`` names a role that does not exist.
    """
    roles = [principal.role for principal in principals]
    if unknown := sorted(users.keys() - set(roles)):
        raise ConfigurationError(f"no such role: {', '.join(unknown)}; there are {', '.join(roles)}")
    if form not in FORMATS:
        raise ConfigurationError(f"no format {form!r}; there are {', '.join(FORMATS)}")
    named = [(users.get(principal.role, f"choreo-{principal.role}"), principal) for principal in principals]
    return FORMATS[form](named, cluster)


Named = Sequence[tuple[str, Principal]]


def _text(named: Named, cluster: str) -> str:
    del cluster
    lines: list[str] = []
    for user, principal in named:
        lines.append(f"{principal.role} (User:{user}): {principal.purpose}")
        width = max(len(grant.name) for grant in principal.grants)
        lines += [
            f"  {grant.resource:<5}  {grant.name:<{width}}  {', '.join(grant.operations)}" for grant in principal.grants
        ]
        lines.append("")
    return "\n".join(lines)


def _kafka_acls(named: Named, cluster: str) -> str:
    del cluster
    lines = ["# kafka-acls.sh with --bootstrap-server and, for the administrator, --command-config"]
    for user, principal in named:
        for grant in principal.grants:
            arguments = [
                *("kafka-acls.sh", "--bootstrap-server", "$BOOTSTRAP", "--command-config", "$ADMIN_CONFIG", "--add"),
                *("--allow-principal", shlex.quote(f"User:{user}")),
                *(part for operation in grant.operations for part in ("--operation", operation)),
                *(f"--{grant.resource}", shlex.quote(grant.name)),
            ]
            lines.append(" ".join(arguments))
    return "\n".join(lines) + "\n"


def _strimzi(named: Named, cluster: str) -> str:
    return strimzi_users(named, cluster)


def _json(named: Named, cluster: str) -> str:
    del cluster
    told = (
        {"principal": f"User:{user}", "role": principal.role, "grants": [grant._asdict() for grant in principal.grants]}
        for user, principal in named
    )
    return "".join(msgspec.json.encode(one).decode() + "\n" for one in told)


FORMATS: Mapping[str, Callable[[Named, str], str]] = {
    "text": _text,
    "kafka-acls": _kafka_acls,
    "strimzi": _strimzi,
    "json": _json,
}
