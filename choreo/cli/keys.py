"""``choreo keys``: signing keys, and the file that says whose word counts for what."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from choreo.cli.exits import Exit, complain


def new(
    key_id: Annotated[str, Parameter(help="The key's name, as payment-1; a rotated key gets another one.")],
    *,
    owner: Annotated[str, Parameter(help="Whose it is: a step service's name, client, operator, saga-log, bootstrap.")],
    out: Annotated[Path, Parameter(help="The file for the private key; it must not be there yet.")],
) -> int:
    """Make an Ed25519 key. The private half goes into a file that only we may read, the public half is printed.

    Example: choreo keys new payment-1 --owner payment --out payment.pem >> trust.toml
    """
    from choreo.errors import ConfigurationError

    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    except ImportError as error:
        raise ConfigurationError("keys need the extra `security`: pip install 'choreo-sagas[security]'") from error
    from choreo.broker.signed.broker import Signer

    private = Ed25519PrivateKey.generate()
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    sys.stdout.write(f'[keys."{key_id}"]\nowner = "{owner}"\npublic = "{Signer(key_id, private).public}"\n\n')
    return 0


def trust(
    parts: Annotated[list[str], Parameter(help="MODULE:NAME of contracts and of step services, in any order.")],
) -> int:
    """Print who may write what, from the contracts and services themselves; the keys go into the same file.

    Example: choreo keys trust services.order:ORDER services.payment:service >> trust.toml
    """
    from choreo.cli.names import load_parts
    from choreo.errors import ConfigurationError

    sagas, services = load_parts(parts)
    owners: dict[str, dict[str, list[str]]] = {
        name: {step.name: [] for step in saga.steps} for name, saga in sorted(sagas.items())
    }
    for service in services:
        for saga, _, step in service.hosted():
            names = owners[saga].setdefault(step, [])
            if service.name not in names:
                names.append(service.name)
    lonely = [f"{saga}.{step}" for saga, steps in owners.items() for step, names in steps.items() if not names]
    if lonely:
        raise ConfigurationError(f"no service here runs {', '.join(lonely)}; name the services that do")
    lines = ['[contracts]\nregistrars = ["bootstrap"]\n']
    for saga, steps in owners.items():
        lines += [
            f"[sagas.{saga}]",
            'saga_log = ["saga-log"]',
            'clients = ["client", "operator", "saga-log"]',
            "",
            f"[sagas.{saga}.steps]",
            *(f"{step} = [{', '.join(_quoted(names))}]" for step, names in steps.items()),
            "",
        ]
    sys.stdout.write("\n".join(lines))
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


def _quoted(names: list[str]) -> list[str]:
    return [f'"{name}"' for name in names]
