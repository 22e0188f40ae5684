"""Payloads that only who has the key can read, over any broker (extra ``security``).

What users put into a saga (inputs, effects, signals' payloads, the texts of failures) is encrypted on the way in and
decrypted on the way out, for each data subject with a key of its own: deleting the key erases. All else stays readable,
so that the saga-log, status, audit and proofs work without a key. ``keys`` keeps them, ``payload`` knows which parts of
a record are the users', ``broker`` does both on the way through.
"""

from __future__ import annotations

from choreo.broker.encrypted.broker import EncryptedBroker, encrypted_by_settings
from choreo.broker.encrypted.keys import DirectoryKeys, KeyStore

__all__ = ["DirectoryKeys", "EncryptedBroker", "KeyStore", "encrypted_by_settings"]
