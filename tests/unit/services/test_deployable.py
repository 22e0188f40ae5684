"""Each service is deployable alone: it knows the contract, choreo and itself, and no other service."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from services.order import ORDER

ROOT = Path(__file__).parents[3]
SERVICES = ("inventory", "payment", "shipping", "notification")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_no_other_service(service: str) -> None:
    imported = set()
    for source in (ROOT / "services" / service).glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module or "")
            elif isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
    ours = {name.split(".")[1] for name in imported if name.startswith("services.")}
    assert ours <= {"order", service}


@pytest.mark.parametrize("service", SERVICES)
def test_importing_a_service_touches_nothing(service: str, tmp_path: Path) -> None:
    probe = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import services.{service}"
    subprocess.run([sys.executable, "-B", "-c", probe], cwd=tmp_path, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_every_step_of_the_contract_is_hosted_by_exactly_one_service() -> None:
    from services import inventory, notification, payment, shipping

    hosted = [
        step for module in (inventory, payment, shipping, notification) for (_, _, step) in module.service.hosted()
    ]
    assert sorted(hosted) == sorted(step.name for step in ORDER.steps)
