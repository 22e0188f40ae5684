"""``docs/coming-from.md``: its program runs, no row is missing, and what it names exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import choreo
from choreo.cli.app import run_command

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
ROWS = [f"P{n}" for n in range(1, 18)]
ROWS += ["S1", "S2", "S3", "S4", "S6", "S7", "S8", "S10", "S11", "S12", "S13", "S14", "S15", "S16", "S16b", "S17"]
ROWS += ["S18", "S19", "S20", "S22", "S23", "S24", "S25"]


def test_its_program_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n# order.py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "order.py").write_text(program, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "order.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout.splitlines() == [
        "completed: reserve_stock charge_card",
        "compensated: charge_card card_declined, 1 reservation stands",
    ], ran.stderr


def test_every_row_is_there_once_and_in_order() -> None:
    assert re.findall(r"^\| ([PS]\d+b?) \|", PAGE, re.MULTILINE) == ROWS


def test_what_it_imports_and_the_commands_it_names_exist() -> None:
    for name in set(re.findall(r"`(?:return |raise )?([A-Z][A-Za-z]+)\(", PAGE)) - {"Runner"}:
        assert name in choreo.__all__, name
    for command in set(re.findall(r"`choreo ([a-z-]+)", PAGE)):
        assert run_command([command, "--help"]) == 0, command


def test_every_link_leads_to_a_file() -> None:
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in target]
    assert links
    assert [target for target in links if not (ROOT / "docs" / target).exists()] == []
