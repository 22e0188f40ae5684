"""Small promises about the tree itself."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "choreo").rglob("*.py"))
LINES_MAX = 500
OPEN_QUESTIONS = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}
TEXTS = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".cfg", ".ini", ".sh", ".html", ".css", ".sql", ".txt"}
NOT_OURS = {"__pycache__", "node_modules", "vendor", "build", "dist"}
UPSTREAM = re.compile(r"CHANGELOG\.md|docs/adr/.*\.md")


def written_files() -> Iterator[Path]:
    """The texts of the project, without what tools leave behind and what others wrote."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in NOT_OURS]
        for path in map(Path(folder).joinpath, names):
            if path.suffix in TEXTS or path.name in {"Makefile", "Dockerfile"}:
                yield path


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_no_module_is_longer_than_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_MAX


def test_every_module_is_named_after_its_concept() -> None:
    parts = {part for path in MODULES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not parts & OPEN_QUESTIONS


def test_nothing_is_left_to_do_in_comments() -> None:
    marks = re.compile("|".join(rf"\b{first}{last}\b" for first, last in (("TO", "DO"), ("FIX", "ME"), ("XX", "X"))))
    assert [
        f"{named(path)}:{number}"
        for path in written_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ] == []


def test_no_file_needs_an_issue_tracker_to_be_understood() -> None:
    # Colours such as #123456 and anchors such as (#4-limits) are no references to issues.
    reference = re.compile(r"(?<![\w&(/#\"'])#\d{1,5}\b(?![\w-])")
    assert [
        f"{named(path)}:{number}: {line.strip()}"
        for path in written_files()
        if not UPSTREAM.fullmatch(named(path))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if reference.search(line)
    ] == []
