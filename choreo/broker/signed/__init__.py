"""Records that show who wrote them, over any broker (extra ``security``).

Inside one topic a broker cannot tell who may write which record. So each part signs what it writes (Ed25519), and
believes of others only what the owner of that kind of record has signed. ``envelope`` says what a signature covers,
``trust`` who may write what, ``broker`` does both on the way through.
"""

from __future__ import annotations

from choreo.broker.signed.broker import SignedBroker, signed_by_settings

__all__ = ["SignedBroker", "signed_by_settings"]
