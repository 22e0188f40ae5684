"""Signing checkpoints with Ed25519 (RFC 8032), by way of the package ``cryptography`` (extra ``security``)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from choreo.errors import ConfigurationError

KEY_HEX_DIGITS = 64


class Ed25519Signer:
    """Signs with a private key. ``public_key`` is the raw public key in hex."""

    def __init__(self, key: Any) -> None:
        self._key = key
        self.public_key: str = key.public_key().public_bytes_raw().hex()

    @classmethod
    def from_file(cls, path: str) -> Ed25519Signer:
        """The key in a PEM file (``openssl genpkey -algorithm ed25519``).

        Raises:
            ConfigurationError: there is no such file, it holds no such key, or the package is missing.
        """
        ed25519, serialization = _cryptography()
        try:
            key = serialization.load_pem_private_key(Path(path).read_bytes(), password=None)
        except OSError as error:
            raise ConfigurationError(f"the key {path} cannot be read: {error.strerror or error}") from error
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{path} is no private key in PEM without a password: {error}") from error
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise ConfigurationError(f"{path} holds a {type(key).__name__}; an Ed25519 key is needed")
        return cls(key)

    def sign(self, data: bytes) -> str:
        """The signature in hex."""
        signature: bytes = self._key.sign(data)
        return signature.hex()


def read_public_key(given: str) -> str:
    """A public key in hex, from that or from a PEM file.

    Raises:
        ConfigurationError: it is neither.
    """
    if len(given) == KEY_HEX_DIGITS and all(digit in "0123456789abcdef" for digit in given.lower()):
        return given.lower()
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_public_key(Path(given).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{given!r} is neither 64 hex digits nor a public key in a PEM file: {error}"
        ) from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigurationError(f"{given} holds a {type(key).__name__}; an Ed25519 key is needed")
    raw: bytes = key.public_bytes_raw()
    return raw.hex()


def is_signed_by(public_key: str, signature: str, data: bytes) -> bool:
    """Whether the signature is the key's. Raises ``ConfigurationError`` if the package is missing."""
    ed25519, _ = _cryptography()
    from cryptography.exceptions import InvalidSignature

    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _cryptography() -> tuple[ModuleType, ModuleType]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ConfigurationError(
            "signatures need the package cryptography, which is missing: pip install 'choreo-sagas[security]'"
        ) from error
    return ed25519, serialization
