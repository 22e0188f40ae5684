"""Processes of a benchmark: started, waited for, ended, their CPU time and memory read from the operating system."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


class Usage(msgspec.Struct, frozen=True):
    """What a process has used so far.

    Attributes:
        cpu_s: user and system time.
        rss_mib: resident memory now.
    """

    cpu_s: float
    rss_mib: float


def usage_of(pid: int) -> Usage:
    """Read from ``/proc``; zeros where there is no such thing."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        pages = int((PROC / str(pid) / "statm").read_text().split()[1])
    except OSError:
        return Usage(0.0, 0.0)
    return Usage((int(fields[11]) + int(fields[12])) / TICKS, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def usage_of_tree(pid: int) -> Usage:
    """Of a process and its living descendants together."""
    used = usage_of(pid)
    try:
        children = (PROC / str(pid) / "task" / str(pid) / "children").read_text().split()
    except OSError:
        children = []
    for child in children:
        more = usage_of_tree(int(child))
        used = Usage(used.cpu_s + more.cpu_s, used.rss_mib + more.rss_mib)
    return used


class Processes:
    """Child processes by name; all are ended with the block."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, env: dict[str, str] | None = None) -> None:
        """Start a Python module or script under this interpreter."""
        log = (self._logs / f"{name}.log").open("wb")
        with log:
            self._children[name] = subprocess.Popen(
                [sys.executable, *command], stdout=log, stderr=log, env={**os.environ, **(env or {})}
            )

    def usage(self) -> dict[str, Usage]:
        """By name of the process."""
        return {name: usage_of(child.pid) for name, child in self._children.items()}

    def check(self) -> None:
        """Raise ``RuntimeError`` with the end of its log if a process has died."""
        for name, child in self._children.items():
            if child.poll() is not None:
                tail = (self._logs / f"{name}.log").read_text(errors="replace")[-2_000:]
                raise RuntimeError(f"{name} ended with {child.returncode}:\n{tail}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        for child in self._children.values():
            try:
                child.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
