"""The tutorial, word for word: its files, its commands in their order, on the embedded broker and on Kafka."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.e2e.shell import run_in_shell

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "first-saga.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.e2e


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def run_the_page(directory: Path, broker: str = "") -> str:
    """All that the commands print, after the one that installs choreo; ports are others, lest they are taken."""
    for text in (*blocks("python"), *blocks("yaml")):
        (directory / text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
    install, *commands = blocks("sh")
    assert "pip install" in install
    script = "".join(commands)
    for written, port in zip(("8000", "8001", "8002"), free_ports(3), strict=True):
        script = script.replace(written, str(port))
    if broker:
        script = script.replace("sqlite:///lunch-log.db", f"'{broker}'")
    return run_in_shell(script, directory)


def without_hash(text: str) -> str:
    return re.sub(r"\[[0-9a-f]{12}\]", "[…]", text)


def check(said: str) -> None:
    assert "2 passed" in said, said
    assert 'table-1 completed "soufflé for 900 cents"' in said, said
    assert "step 'cook' rejected (not_on_the_menu): we have no unicorn; undone: take_payment" in said, said
    assert re.search(r"^saga lunch v1 table-3: forward", said, re.MULTILINE), said
    assert 'table-3 completed "soup for 500 cents"' in said, said
    assert 'choreo_sagas_finished_total{outcome="completed",saga="lunch"} 2.0' in said, said
    assert 'choreo_sagas_finished_total{outcome="compensated",saga="lunch"} 1.0' in said, said
    assert 'choreo_compensations_total{result="undone",saga="lunch",step="take_payment"} 1.0' in said, said
    assert re.search(r"^table-2  compensated   cook not_on_the_menu", said, re.MULTILINE), said
    assert "saga lunch v1 table-2: compensated" in said, said


def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    said = run_the_page(tmp_path)
    check(said)
    drawn = next(block for block in blocks("text") if block.startswith("saga lunch"))
    assert without_hash(drawn) in without_hash(said)


@pytest.mark.kafka
def test_the_tutorial_runs_over_kafka(tmp_path: Path, kafka_url: str) -> None:
    check(run_the_page(tmp_path, kafka_url))


def test_the_tutorial_scrapes_the_ports_that_it_opens() -> None:
    (config,) = map(yaml.safe_load, blocks("yaml"))
    scraped = {
        target.rpartition(":")[2]
        for job in config["scrape_configs"]
        for configured in job["static_configs"]
        for target in configured["targets"]
    }
    assert scraped == set(re.findall(r"--http-port (\d+)", PAGE))


@pytest.mark.parametrize("page", ["first-saga.md"])
def test_every_link_leads_to_a_file(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert links
    assert [target for target in links if not (ROOT / "docs" / target).exists()] == []
