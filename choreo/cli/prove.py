"""``choreo audit seal``, ``prove`` and ``check-proof``: history that can be shown to others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from choreo.cli.options import AsJson, BrokerUrl, SagaSpec, write_json
from choreo.errors import ConfigurationError

if TYPE_CHECKING:
    from choreo.audit import Checkpoint, Proof
    from choreo.broker import Broker


def seal(
    sagas: Annotated[list[str], Parameter(help="MODULE:NAME of contracts, or names of registered sagas.")],
    *,
    key: Annotated[
        str | None,
        Parameter(env_var="CHOREO_SEAL_KEY", help="PEM file of an Ed25519 private key, to sign the checkpoints with."),
    ] = None,
    broker: BrokerUrl = None,
    as_json: AsJson = False,
) -> int:
    """Publish Merkle roots over all that was appended since the last time, to choreo.SAGA.checkpoints.

    Run it now and then (cron), one at a time. Keep the hashes that it prints, or the signatures' public key, where
    those who could write to the log cannot: against them only that proves anything.

    Example: openssl genpkey -algorithm ed25519 -out seal.pem; choreo audit seal order --key seal.pem
    """
    from choreo.cli.audit import with_broker

    async def work(opened: Broker) -> list[Checkpoint]:
        from choreo.audit import seal as seal_log
        from choreo.audit.signing import Ed25519Signer
        from choreo.cli.bar import progress_bar
        from choreo.cli.names import find_saga

        signer = None if key is None else Ed25519Signer.from_file(key)
        made = []
        for name in dict.fromkeys([(await find_saga(opened, spec)).name for spec in sagas]):
            with progress_bar(f"sealing {name}") as move:
                made += await seal_log(opened, name, signer=signer, on_progress=move)
        return made

    made = with_broker(broker, work, signed=False, encrypted=False)
    for one in made:
        if as_json:
            write_json({"hash": one.hash, "checkpoint": one})
        else:
            signed = f"  signed by {one.public_key[:12]}…" if one.signature else ""
            print(f"{one.hash}  {one.topic}[{one.partition}] offsets {one.first} to {one.end}{signed}")  # noqa: T201
    print(f"{len(made)} checkpoints, {sum(one.records for one in made):,} records sealed", file=sys.stderr)  # noqa: T201
    return 0


def prove(
    saga: SagaSpec,
    saga_id: Annotated[str, Parameter(help="The id that start printed.")],
    *,
    output: Annotated[
        str | None, Parameter(name=["--output", "-o"], help="The file; standard output without it.")
    ] = None,
    broker: BrokerUrl = None,
) -> int:
    """Write a saga's records with a proof that they stand in the sealed log as they are, and that none is left out.

    Example: choreo audit prove order 0199a8c3 --output proof.json
    """
    from choreo.cli.audit import with_broker

    async def work(opened: Broker) -> Proof:
        from choreo.audit import prove as prove_saga
        from choreo.cli.names import find_saga

        return await prove_saga(opened, (await find_saga(opened, saga)).name, saga_id)

    proof = with_broker(broker, work, signed=False, encrypted=False)
    if output is None:
        write_json(proof)
        return 0
    try:
        Path(output).write_bytes(msgspec.json.encode(proof) + b"\n")
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror or error}") from error
    count = sum(len(segment.records) for segment in proof.segments)
    print(f"{count} records in {len(proof.segments)} segments, {len(proof.unsealed)} not sealed", file=sys.stderr)  # noqa: T201
    return 0


def check_proof(
    file: Annotated[str, Parameter(help="What choreo audit prove has written.")],
    *,
    public_key: Annotated[
        str | None, Parameter(help="Who must have signed the checkpoints: 64 hex digits, or a PEM file.")
    ] = None,
    checkpoint: Annotated[str | None, Parameter(help="The hash that the last checkpoint must have, in hex.")] = None,
    as_json: AsJson = False,
) -> int:
    """Check a proof; needs neither the broker nor the log.

    Exit code 1 if it does not hold. Without --public-key or --checkpoint it shows only that the file agrees with
    itself: then compare the hash that is printed with the one that was published.

    Example: choreo audit check-proof proof.json --public-key seal.pub
    """
    from choreo.audit import check_proof as check
    from choreo.audit import read_proof
    from choreo.audit.signing import read_public_key
    from choreo.cli.exits import Exit

    try:
        proof = read_proof(Path(file).read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror or error}") from error
    found = check(proof, public_key=read_public_key(public_key) if public_key else None, checkpoint=checkpoint)
    if as_json:
        write_json({"holds": found.holds, **msgspec.structs.asdict(found)})
        return Exit.DONE if found.holds else Exit.NO
    for problem in found.problems:
        print(problem)  # noqa: T201 - the command's output
    if found.holds:
        print(f"saga {found.saga_id}: {found.records} records, {', '.join(found.types)}")  # noqa: T201
        print(f"as sealed in {proof.topic}[{proof.partition}] offsets {found.first} to {found.end}")  # noqa: T201
        if not found.anchored:
            print(f"NOT ANCHORED: compare this with the hash that was published: {found.checkpoint}")  # noqa: T201
        if found.unsealed:
            print(f"{found.unsealed} later records are not sealed, and not in the file")  # noqa: T201
    return Exit.DONE if found.holds else Exit.NO
