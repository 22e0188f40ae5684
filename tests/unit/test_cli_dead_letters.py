"""``choreo dead-letters``: what an operator sees, and what is done only when it is meant."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from choreo.broker import open_broker
from choreo.broker.port import Headers, TopicPartition
from choreo.broker.registry import register
from choreo.broker.topics import saga_topic, topic_specs
from choreo.cli.app import run_command
from choreo.cli.dead_letters import escaped
from choreo.cli.exits import Exit
from choreo.saga_log import SagaLog
from choreo.store.memory import MemoryStore
from tests.unit.by_hand import LINE

HOSTILE = "\x1b[2J\u202egood"
LETTERS = TopicPartition("choreo.order.dead-letters", 0)
MSGPACK: Headers = (("content-type", b"application/msgpack"),)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A log in which a saga-log has refused three records."""
    url = f"sqlite:///{tmp_path}/log.db"
    asyncio.run(_refuse_some(url))
    return url


async def _refuse_some(url: str) -> None:
    broker = await open_broker(url)
    await broker.ensure_topics(topic_specs("order", partitions=1, retention_ms=None))
    await register(broker, [LINE])
    producer = await broker.producer()
    topic = saga_topic("order")
    await producer.send(
        topic, key="s-1", value=b"\x00\x1b[31mred\xff" + bytes(5_000), headers=(("x", HOSTILE.encode()),)
    )
    await producer.send(topic, key="s-2", value=b'{"type":"nothing","\\u001b[2J":"x"}')
    await producer.send(topic, key="s-3", value=b"\x81\xa1a\x01", headers=MSGPACK)
    log = SagaLog(broker, MemoryStore(), [LINE], poll_timeout_s=0.01)
    running = asyncio.create_task(log.run())
    async with asyncio.timeout(10):
        while (await broker.offsets([LETTERS]))[LETTERS][1] < 3:
            await asyncio.sleep(0.01)
    await log.stop()
    await running
    await broker.close()


def said(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_list_tells_what_was_refused_and_why(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["dead-letters", "list", "--broker", url, "--json"]) == Exit.DONE
    found = said(capsys)
    assert [(each["saga"], each["id"], each["saga_id"]) for each in found] == [
        ("order", "0/0", "s-1"),
        ("order", "0/1", "s-2"),
        ("order", "0/2", "s-3"),
    ]
    assert {each["source"] for each in found} == {"/choreo/saga-log"}
    assert run_command(["dead-letters", "list", "order", "--saga-id", "s-2", "--since", "1h", "-b", url]) == Exit.DONE
    shown = capsys.readouterr()
    assert "order 0/1" in shown.out
    assert len(shown.out.splitlines()) == 1
    assert shown.err == "choreo: 1 dead letter(s)\n"


def test_show_lets_no_byte_reach_the_terminal_as_an_order(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for letter in ("0/0", "0/1"):
        assert run_command(["dead-letters", "show", "order", letter, "--broker", url]) == Exit.DONE
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert all(line.isprintable() for line in out.splitlines())
    assert run_command(["dead-letters", "show", "order", "0/0", "--broker", url]) == Exit.DONE
    out = capsys.readouterr().out
    assert "  x: \\x1b[2J\\u202egood" in out
    assert "00 1b 5b 33 31 6d 72 65 64 ff" in out
    assert "914 bytes more" in out


def test_show_decodes_what_can_be_decoded(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["dead-letters", "show", "order", "0/2", "--broker", url]) == Exit.DONE
    assert '"a": 1' in capsys.readouterr().out
    assert run_command(["dead-letters", "show", "order", "0/2", "--broker", url, "--json"]) == Exit.DONE
    [found] = said(capsys)
    assert found["decoded"] == {"a": 1}
    assert base64.b64decode(found["letter"]["value"]) == b"\x81\xa1a\x01"


def test_a_redrive_without_yes_does_nothing(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["dead-letters", "redrive", "order", "--all", "--why", "w", "--broker", url]
    assert run_command(command) == Exit.DONE
    shown = capsys.readouterr()
    assert shown.out.count("write it back") == 3
    assert "nothing was done" in shown.err
    assert run_command(["dead-letters", "list", "--broker", url, "--json"]) == Exit.DONE
    assert all(each["redriven"] == [] for each in said(capsys))


def test_a_redrive_writes_back_once_and_again_only_when_told(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["dead-letters", "redrive", "order", "0/1", "--why", "w", "--operator", "ann", "--broker", url, "--json"]
    assert run_command([*command, "--yes"]) == Exit.DONE
    assert said(capsys) == [{"saga": "order", "id": "0/1", "saga_id": "s-2", "written_to": "0/3"}]
    assert run_command([*command, "--yes"]) == Exit.NO
    [refused] = said(capsys)
    assert "written back before, by ann (w), to 0/3" in refused["refused"]
    assert run_command([*command, "--yes", "--again"]) == Exit.DONE


@pytest.mark.parametrize(
    ("command", "code", "complaint"),
    [
        (["show", "order", "7/7"], Exit.NOT_FOUND, "has no dead letter 7/7"),
        (["redrive", "order", "--why", "w"], Exit.CONFIGURATION, "say which dead letters"),
        (["list", "tea"], Exit.BROKER, "choreo.tea.dead-letters"),
        (["list", "--since", "yesterday"], Exit.CONFIGURATION, "neither like 2h"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    url: str, command: list[str], code: Exit, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["dead-letters", *command, "--broker", url]) == code
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a\rb", "a\nb", "\x9b31m", "\u2066x\u2069", "\ud800", "\x00"])
def test_escaping_leaves_nothing_that_a_terminal_obeys(text: str) -> None:
    assert escaped(text).isprintable()
    assert escaped("plain ä 日本") == "plain ä 日本"
