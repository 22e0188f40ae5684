"""A deployment in which every part signs with a key of its own, as ``choreo keys init`` makes them."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from pathlib import Path

from choreo.access.signing import KEY, TRUST
from choreo.broker.port import Broker
from choreo.broker.signed import SignedBroker
from choreo.broker.signed.broker import Signer
from choreo.broker.signed.trust import Trust
from choreo.cli.app import run_command


class SignedDeployment:
    """The keys of these parts (``MODULE:NAME``), below a directory."""

    def __init__(self, directory: Path, *parts: str) -> None:
        self.directory = directory
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert run_command(["keys", "init", *parts, "--directory", str(directory)]) == 0, said.getvalue()

    @cache  # noqa: B019 - as many as there are owners
    def signer(self, owner: str) -> Signer:
        return Signer.read(self.directory / owner / KEY, f"{owner}-1")

    @property
    def trust_file(self) -> Path:
        return self.directory / "audit" / TRUST

    def over(self, broker: Broker, owner: str) -> Broker:
        """The broker as one of the parts has it."""
        return SignedBroker(broker, Trust.read(self.trust_file), self.signer(owner))

    def readable(self, broker: Broker) -> Broker:
        """The broker as an auditor has it, who has no key."""
        return SignedBroker(broker, Trust.read(self.trust_file), None)

    def environment(self, owner: str) -> dict[str, str]:
        """What a process of that part is told."""
        return {
            "CHOREO_SIGNING_KEY_FILE": str(self.directory / owner / KEY),
            "CHOREO_SIGNING_KEY_ID": f"{owner}-1",
            "CHOREO_TRUST_FILE": str(self.directory / owner / TRUST),
        }
