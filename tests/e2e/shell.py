"""Commands as people run them: those of a page in a shell, those of a deployed system as its processes are run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy.run_procfile import executable

ROOT = Path(__file__).parents[2]


def run_deployed(command: list[str], environment: dict[str, str], *, status: int = 0) -> str:
    """All that a command of a deployed system says, which ends with that status."""
    done = subprocess.run(
        executable(command),
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_in_shell(script: str, directory: Path, *, timeout_s: float = 100) -> str:
    """All that the script prints, its complaints last. What it has started and not ended is ended."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complaints:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=directory,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "-p no:cacheprovider"},
            stdout=said,
            stderr=complaints,
            start_new_session=True,
        )
        late = ""
        try:
            shell.wait(timeout_s)
        except subprocess.TimeoutExpired:
            late = f"\n--- not done after {timeout_s:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        said.seek(0)
        complaints.seek(0)
        return f"{said.read()}\n--- standard error\n{complaints.read()}{late}"
