"""``choreo keys``: signing keys, and the file that says whose word counts for what."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from choreo.cli.exits import Exit, complain

if TYPE_CHECKING:
    from choreo.step import Service


def new(
    key_id: Annotated[str, Parameter(help="The key's name, as payment-1; a rotated key gets another one.")],
    *,
    owner: Annotated[str, Parameter(help="Whose it is: a step service's name, client, operator, saga-log, bootstrap.")],
    out: Annotated[Path, Parameter(help="The file for the private key; it must not be there yet.")],
) -> int:
    """Make an Ed25519 key. The private half goes into a file that only we may read, the public half is printed.

    Example: choreo keys new payment-1 --owner payment --out payment.pem >> trust.toml
    """
    from choreo.access.signing import key_text, new_key

    sys.stdout.write(key_text(key_id, owner, new_key(out)))
    return 0


def trust(
    parts: Annotated[list[str], Parameter(help="MODULE:NAME of contracts and of step services, in any order.")],
) -> int:
    """Print who may write what, from the contracts and services themselves; the keys go into the same file.

    Example: choreo keys trust services.order:ORDER services.payment:service >> trust.toml
    """
    from choreo.access.signing import owners_text
    from choreo.cli.names import load_parts

    sagas, services = load_parts(parts)
    sys.stdout.write(owners_text(sagas, [_hosted(service) for service in services]))
    return 0


def init(
    parts: Annotated[list[str], Parameter(help="MODULE:NAME of contracts and of step services, in any order.")],
    *,
    directory: Annotated[Path, Parameter(help="Where to; each part gets a directory of its own below it.")],
    form: Annotated[
        Literal["files", "kubernetes"],
        Parameter(name="--format", help="Files alone, or Secret resources as well, for kubectl apply -f -."),
    ] = "files",
) -> int:
    """Make a key for each part of a deployment, and the trust file that all of them get. What is there stays.

    Each part is given its directory and no other: payment/key.pem and payment/trust.toml, and so on; audit has no key,
    since it only reads, and sealer's signs checkpoints. Run it again when a service or a step is added.

    Example: choreo keys init services.order:ORDER services.payment:service --directory keys
    """
    from choreo.access.signing import equip, secrets
    from choreo.cli.names import load_parts

    sagas, services = load_parts(parts)
    made = equip(directory, sagas, [_hosted(service) for service in services])
    sys.stdout.write(secrets(made) if form == "kubernetes" else "".join(f"{path}\n" for path in made.values()))
    return 0


def erase(
    subject: Annotated[str, Parameter(help="What stands in the inputs at the path to the data subject, as 4711.")],
    *,
    keys: Annotated[Path, Parameter(env_var="CHOREO_PAYLOAD_KEYS", help="The directory of keys.")],
    path: Annotated[
        str, Parameter(env_var="CHOREO_PAYLOAD_SUBJECT", help="The path in inputs to the data subject, as customer.id.")
    ],
) -> int:
    """Delete a data subject's key: what was encrypted with it can never be read again, by anyone.

    Sagas of the subject that are still on their way cannot be handled afterwards: look for them first. Processes that
    have the key in memory forget it within a minute.

    Example: choreo keys erase 4711 --keys /var/lib/choreo/keys --path customer.id
    """
    from choreo.broker.encrypted.broker import named_subject
    from choreo.broker.encrypted.keys import DirectoryKeys

    store = DirectoryKeys(keys)
    if not store.erase(store.id_of(named_subject(path, subject))):
        complain(f"there is no key for {path} = {subject} in {keys}")
        return Exit.NO
    return Exit.DONE


def _hosted(service: Service) -> tuple[str, list[tuple[str, str]]]:
    return service.name, [(saga, step) for saga, _, step in service.hosted()]
