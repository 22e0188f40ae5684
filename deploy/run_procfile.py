"""The processes of a Procfile on this machine: the one place that starts services outside of containers.

    python deploy/run_procfile.py                                    # all, until Ctrl-C, on the embedded broker
    python deploy/run_procfile.py --broker kafka://127.0.0.1:9092
    python deploy/run_procfile.py payment shipping                   # only these

A Procfile has a line ``name: command`` for each process. All get one environment (``order_environment``) and each a
``CHOREO_HTTP_PORT`` of its own. The demo and the end-to-end tests start their processes through ``Processes`` as well.
"""

# ruff: noqa: INP001 -- a script, started and imported by its path

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self

ROOT = Path(__file__).resolve().parent.parent
PROCFILE = ROOT / "Procfile"

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0  # above the 25 s that services give their handlers
PR_SET_PDEATHSIG = 1

# A process that has the kernel end it when its parent dies, then becomes the command. Done by the child itself after
# its start, not between fork and exec, where a parent that has threads may do next to nothing.
DIE_WITH_PARENT = f"""\
import ctypes, os, sys
ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {signal.SIGKILL:d})
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ProcessError(RuntimeError):
    """A process died or did not get ready; the message ends with the last lines of its log."""


def read_procfile(path: Path = PROCFILE) -> dict[str, list[str]]:
    """The commands by name, in the order of the file.

    Raises:
        ValueError: a line is not ``name: command``.
    """
    commands: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, command = line.partition(":")
        if not colon or not name.strip() or not command.strip():
            raise ValueError(f"{path}, line {number}: expected 'name: command', got {line!r}")
        commands[name.strip()] = shlex.split(command)
    return commands


def order_environment(directory: Path, broker: str | None = None) -> dict[str, str]:
    """What the order saga's processes are told: the broker, and a file in ``directory`` for whatever keeps state."""
    databases = ("inventory", "payment", "shipping", "notification")
    return {
        "CHOREO_BROKER": broker or f"sqlite:///{directory / 'broker.db'}",
        "CHOREO_STORE": f"sqlite:///{directory / 'saga-log.db'}",
        **{f"{name.upper()}_DATABASE": str(directory / f"{name}.db") for name in databases},
    }


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on at this moment, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def executable(command: Sequence[str]) -> list[str]:
    """The command with ``choreo`` made the one that belongs to this Python, installed or not."""
    if command[0] != "choreo":
        return list(command)
    installed = shutil.which("choreo", path=str(Path(sys.executable).parent))
    ours = [installed] if installed else [sys.executable, "-m", "choreo.cli"]
    return [*ours, *command[1:]]


class Processes:
    """Starts, watches, kills and stops processes. None outlives the block, nor this process.

    Output goes to ``logs/NAME.log``; without ``logs`` to standard output, each line behind the process's name.
    Start processes from the main thread: on Linux the kernel ends them when the thread that started them ends.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        environment: Mapping[str, str],
        *,
        ports: Mapping[str, int],
        logs: Path | None = None,
    ) -> None:
        self.commands = dict(commands)
        self.ports = dict(ports)
        self.environment = {**os.environ, **environment}
        self._logs = logs
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._printers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *names: str) -> None:
        """Start these, or all."""
        for name in names or self.commands:
            self._running[name] = self._spawn(name)

    def await_ready(self, *names: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until ``/readyz`` of these, or of all that run, says yes.

        Raises:
            ProcessError: one of them died, or does not get ready in time.
        """
        deadline = time.monotonic() + timeout_s
        for name in names or tuple(self._running):
            reason = ""
            while reason := self.not_ready_because(name):
                self.check(name)
                if time.monotonic() > deadline:
                    raise ProcessError(f"{name} is not ready after {timeout_s:g} s: {reason}{self.tail(name)}")
                time.sleep(0.02)

    def not_ready_because(self, name: str) -> str:
        """Why a process is not ready; empty if it is."""
        try:
            status, body = self.get(name, "/readyz")
        except OSError as error:
            return str(error) or type(error).__name__
        return "" if status == http.client.OK else body

    def get(self, name: str, path: str) -> tuple[int, str]:
        """A request to the process's HTTP port: status and body. Raises ``OSError`` if nothing answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except http.client.HTTPException as error:
            raise OSError(f"no valid answer: {error!r}") from error
        finally:
            connection.close()

    def check(self, *names: str) -> None:
        """Raise ``ProcessError`` if one of these, or of all that should run, has died."""
        for name in names or tuple(self._running):
            status = self._running[name].poll()
            if status is not None:
                how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
                raise ProcessError(f"{name} {how}{self.tail(name)}")

    def kill(self, name: str) -> None:
        """SIGKILL: the process gets no chance to finish anything. ``start`` brings it back."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def alive(self, name: str) -> bool:
        """Whether a process that was started, and not killed or stopped, still runs."""
        return name in self._running and self._running[name].poll() is None

    def stop(self, *names: str) -> None:
        """Ask these, or all, to end (SIGTERM), wait, and end by force who does not."""
        running = {name: self._running.pop(name) for name in names or tuple(self._running)}
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        try:
            for process in running.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:  # a second Ctrl-C ends the waiting, and nobody is left behind
            for process in running.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()
            for printer in self._printers:
                printer.join(timeout=1)

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def log_file(self, name: str) -> Path | None:
        return None if self._logs is None else self._logs / f"{name}.log"

    def tail(self, name: str, lines: int = 15) -> str:
        """The end of a process's log, each line indented on a line of its own; empty where there is no file."""
        file = self.log_file(name)
        if file is None or not file.exists():
            return ""
        last = file.read_text(errors="replace").splitlines()[-lines:]
        return "".join(f"\n    {line}" for line in [f"the end of {file}:", *last])

    def _spawn(self, name: str) -> subprocess.Popen[str]:
        environment = {
            **self.environment,
            "CHOREO_HTTP_PORT": str(self.ports[name]),
            "PYTHONUNBUFFERED": "1",
        }
        with contextlib.ExitStack() as stack:
            output: int | IO[str] = subprocess.PIPE
            if (file := self.log_file(name)) is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(file.open("a"))
            process = subprocess.Popen(
                [*_die_with_parent(), *executable(self.commands[name])],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is for us; we then end the others in our own order
            )
        if process.stdout is not None:
            printer = threading.Thread(target=self._print, args=(name, process), daemon=True, name=f"print/{name}")
            printer.start()
            self._printers.append(printer)
        return process

    def _print(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None, "started with a pipe"
        width = max(map(len, self.commands))
        for line in process.stdout:
            print(f"{name:<{width}} | {line.rstrip()}", flush=True)


def _die_with_parent() -> list[str]:
    """What stands before a command so that it does not outlive this process; nothing where only Linux can do it."""
    if sys.platform != "linux":
        return []
    return [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid())]


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP do what Ctrl-C does, so that ``with`` blocks are left in order."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status: 0 after Ctrl-C, 1 when a process ended by itself."""
    parser = argparse.ArgumentParser(prog="run_procfile.py", description="Run the processes of the Procfile.")
    parser.add_argument("names", nargs="*", help="which (default: all)")
    parser.add_argument("--broker", help="broker URL (default: the embedded broker in the directory)")
    parser.add_argument("--directory", type=Path, default=ROOT / ".choreo", help="for databases (default: .choreo)")
    parser.add_argument("--port", type=int, default=8101, help="/metrics of the first one, counted up (default: 8101)")
    options = parser.parse_args(arguments)
    commands = read_procfile()
    if unknown := set(options.names) - set(commands):
        parser.error(f"no {', '.join(sorted(unknown))} in the Procfile; it has {', '.join(commands)}")
    options.directory.mkdir(parents=True, exist_ok=True)
    ports = {name: options.port + index for index, name in enumerate(commands)}
    environment = order_environment(options.directory, options.broker or os.environ.get("CHOREO_BROKER"))
    with ended_by_signals(), Processes(commands, environment, ports=ports) as processes:
        try:
            processes.start(*options.names)
            for name in options.names or commands:
                print(f"{name}: process {processes.pid(name)}, http://127.0.0.1:{ports[name]}/metrics", flush=True)
            while True:
                processes.check()
                time.sleep(0.2)
        except KeyboardInterrupt:
            return 0
        except ProcessError as error:
            print(f"run_procfile: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
