"""What ``choreo gen saga`` writes, by the commands of its own README, on the embedded broker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from choreo.cli.app import run_command
from tests.e2e.shell import run_in_shell

pytestmark = pytest.mark.e2e


def test_the_generated_readme_runs_as_it_stands(tmp_path: Path) -> None:
    assert run_command(["gen", "saga", "trip", "--steps", "book_flight,book_hotel", "--directory", str(tmp_path)]) == 0
    readme = (tmp_path / "trip" / "README.md").read_text(encoding="utf-8")
    script = "".join(re.findall(r"^```sh\n(.*?)^```", readme, re.DOTALL | re.MULTILINE))
    said = run_in_shell(script, tmp_path)
    assert "8 passed" in said, said
    assert "-> book_flight" in said, said
    assert re.search(r'^\w+ completed \{"number":1\}$', said, re.MULTILINE), said
    assert "step 'book_hotel' rejected (refused): the input says so; undone: book_flight" in said, said
    assert '"phase":"completed"' in said, said
    assert '"phase":"compensated"' in said, said
    assert sorted(path.name for path in (tmp_path / ".choreo" / "trip").iterdir()) == [
        "book_flight.db",
        "book_hotel.db",
    ]
