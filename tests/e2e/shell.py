"""Commands of a page, run as a person's shell would, with the project's interpreter first on the path."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


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
