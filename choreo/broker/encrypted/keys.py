"""Keys of data subjects: one file each, made when it is first needed, gone when the subject is to be forgotten."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from choreo.errors import ConfigurationError

KEY_BYTES = 32
CACHED_MAX = 10_000
CACHED_S = 60.0


class KeyStore(Protocol):
    """Where keys are kept. A key's id says nothing of whom it is for."""

    def id_of(self, subject: str) -> str:
        """The id of a subject's key, whether it exists or not."""
        ...

    def find(self, key_id: str) -> bytes | None:
        """The key, 32 bytes; ``None`` if there is none, or none any more."""
        ...

    def find_or_make(self, key_id: str) -> bytes:
        """The key, made now if there is none."""
        ...

    def erase(self, key_id: str) -> bool:
        """Delete the key; whether there was one."""
        ...


class DirectoryKeys:
    """A directory that all who may read payloads share: a mounted volume, a file system of a vault.

    A key that was deleted is known for at most ``CACHED_S`` seconds more.

    Args:
        directory: of the keys; made if it is missing.

    Raises:
        ConfigurationError: it cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._cached: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"the directory of keys {directory} cannot be made: {error.strerror}") from error

    def id_of(self, subject: str) -> str:
        return hashlib.sha256(b"choreo-subject-v1\0" + subject.encode()).hexdigest()[:32]

    def find(self, key_id: str) -> bytes | None:
        now = time.monotonic()
        if key_id in self._cached and self._cached[key_id][0] > now:
            return self._cached[key_id][1]
        self._cached.pop(key_id, None)
        try:
            key = self._path(key_id).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"the key {self._path(key_id)} cannot be read: {error.strerror}") from error
        if len(key) != KEY_BYTES:
            raise ConfigurationError(f"the key {self._path(key_id)} has {len(key)} bytes instead of {KEY_BYTES}")
        self._cached[key_id] = (now + CACHED_S, key)
        if len(self._cached) > CACHED_MAX:
            self._cached.popitem(last=False)
        return key

    def find_or_make(self, key_id: str) -> bytes:
        key = self.find(key_id)
        if key is not None:
            return key
        # Written aside and linked, so that nobody reads half a key and the first of two makers wins.
        aside = self._path(f".{key_id}-{secrets.token_hex(8)}")
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(aside, self._path(key_id))
            except FileExistsError:
                pass  # somebody else was quicker; his counts
            finally:
                aside.unlink()
        except OSError as error:
            raise ConfigurationError(f"no key can be made in {self._directory}: {error.strerror}") from error
        made = self.find(key_id)
        if made is None:
            raise ConfigurationError(f"the key {self._path(key_id)} was deleted while it was made")
        return made

    def erase(self, key_id: str) -> bool:
        self._cached.pop(key_id, None)
        try:
            self._path(key_id).unlink()
        except FileNotFoundError:
            return False
        return True

    def _path(self, key_id: str) -> Path:
        return self._directory / key_id
