"""The README, word for word: its program, its commands, on the embedded broker."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.e2e


def test_the_saga_in_thirty_lines_runs_by_the_commands_beside_it(tmp_path: Path) -> None:
    program = re.search(r"```python\n# shop.py\n(.*?)```", README, re.DOTALL)
    commands = re.search(r"```sh\n(export CHOREO_BROKER=.*?)```", README, re.DOTALL)
    assert program is not None
    assert commands is not None
    (tmp_path / "shop.py").write_text(program[1], encoding="utf-8")
    # The services run until the end of the script, as they would until the end of a person's shell.
    script = f"trap 'kill $(jobs -p); wait' EXIT\n{commands[1]}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = subprocess.Popen(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, complaints = shell.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):  # whatever the shell has started and not ended
            os.killpg(shell.pid, signal.SIGKILL)
    assert "dict_keys(['reserve_stock', 'charge_card'])" in said, complaints
    assert "rejected (card_declined): over the limit; undone: reserve_stock" in said
    assert '"phase":"completed"' in said
    assert '"phase":"compensated"' in said


def test_every_link_leads_to_a_file() -> None:
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert links
    assert [target for target in links if not (ROOT / target).exists()] == []
