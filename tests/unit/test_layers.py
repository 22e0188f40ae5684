"""Who may import whom: the contracts of ``pyproject.toml`` hold."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_import_contracts_hold() -> None:
    checked = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", "pyproject.toml"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert " 0 broken" in checked.stdout


def test_the_pure_layers_are_named_in_the_contracts() -> None:
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (pure,) = (contract for contract in configured if "pure" in contract["name"])
    assert {"choreo.contract", "choreo.messages", "choreo.core", "choreo.ids"} <= set(pure["source_modules"])
    assert {"asyncio", "time", "random", "socket", "os", "aiokafka"} <= set(pure["forbidden_modules"])
