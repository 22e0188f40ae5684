"""The store compared with the log: an honest one agrees, and whatever somebody changed in it is found."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from choreo.broker import open_broker
from choreo.broker.memory import MemoryBroker
from choreo.broker.registry import Registry, ensure_saga_topics, register
from choreo.cli.app import run_command
from choreo.cli.exits import Exit
from choreo.client import Client
from choreo.contract import Saga, Step
from choreo.core import SagaState
from choreo.errors import ConfigurationError
from choreo.saga_log.check import Checked, check
from choreo.store import open_store
from choreo.store.inspection import open_inspection
from choreo.store.projection import encoded, state_of
from tests.unit.by_hand import LINE, T0, FakeClock, Pen, a_broker, a_pen
from tests.unit.test_saga_log import folded_to_the_end, parked, quiet, running, serve, until

LONG_AGO = 0


class Kept:
    """A log in memory and its store in a file, which can be tampered with."""

    def __init__(self, path: Path, broker: MemoryBroker, pen: Pen) -> None:
        self.path, self.broker, self.pen = path, broker, pen

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    async def folded(self, do: Callable[[Any], Awaitable[Any]], **options: Any) -> None:
        store = await open_store(self.url)
        async with running(self.broker, LINE, store=store, **options) as log:
            await do(log)
        await store.close()

    def tamper(self, statement: str, *values: Any) -> None:
        with sqlite3.connect(self.path) as connection:
            connection.execute(statement, values)
        connection.close()

    def tamper_state(self, saga_id: str, **changes: Any) -> None:
        with sqlite3.connect(self.path) as connection:
            [blob] = connection.execute("SELECT blob FROM sagas WHERE saga_id = ?", (saga_id,)).fetchone()
            changed = encoded(msgspec.structs.replace(state_of(blob), **changes))
            connection.execute("UPDATE sagas SET blob = ? WHERE saga_id = ?", (changed, saga_id))
        connection.close()

    async def checked(self, *, dropped_before_ms: int = LONG_AGO) -> Checked:
        inspection = await open_inspection(self.url)
        try:
            return await check(
                self.broker, inspection, "order", registry=Registry(self.broker), dropped_before_ms=dropped_before_ms
            )
        finally:
            await inspection.close()


@pytest.fixture
async def kept(tmp_path: Path) -> Kept:
    """A saga that completed, one that was compensated, and one that runs."""
    broker = await a_broker(LINE, partitions=2)
    made = Kept(tmp_path / "store.db", broker, await a_pen(broker, LINE))

    async def work(log: Any) -> None:
        await made.pen.whole_line("good")
        await made.pen.start("bad")
        await made.pen.completed("bad", "a")
        await made.pen.failed("bad", "b")
        await made.pen.start("running")
        await made.pen.completed("running", "a")
        await serve(made.pen, log)
        await made.pen.raw("good", b"?")
        await until(lambda: folded_to_the_end(log, broker))

    await made.folded(work)
    return made


def found(checked: Checked) -> list[tuple[str, str]]:
    return [(each.saga_id, each.field) for each in checked.differences]


async def test_a_store_that_a_saga_log_has_written_agrees(kept: Kept) -> None:
    checked = await kept.checked()
    assert (checked.agrees, checked.differences, checked.truncated, checked.dropped) == (True, [], [], 0)
    assert sum(each.sagas for each in checked.partitions) == 3


async def test_a_store_with_paused_sagas_agrees_and_a_pause_that_was_lost_is_found(kept: Kept) -> None:
    async def work(log: Any) -> None:
        async with Client(kept.broker) as client:
            await client.pause(LINE, operator="ada", reason="moving house")
            await client.pause(LINE, "running", operator="ada", reason="asking")
        await kept.pen.start("held")
        await until(lambda: log.states().get("held", SagaState("")).is_paused)
        await until(lambda: log.states()["running"].pause is not None)

    await kept.folded(work)
    checked = await kept.checked()
    assert (checked.agrees, checked.differences) == (True, [])
    kept.tamper("UPDATE partitions SET type_pause = ''")
    assert set(found(await kept.checked())) == {("", "checkpoint.type_pause")}


async def test_a_store_that_lags_agrees_as_far_as_it_goes(kept: Kept) -> None:
    await kept.pen.completed("running", "b")
    await kept.pen.start("new")
    checked = await kept.checked()
    assert checked.agrees
    assert sum(each.end - (each.offset or 0) for each in checked.partitions) == 2


async def test_a_column_that_was_changed_is_found(kept: Kept) -> None:
    kept.tamper("UPDATE sagas SET phase = 'completed', step = '' WHERE saga_id = 'bad'")
    checked = await kept.checked()
    assert not checked.agrees
    assert found(checked) == [("bad", "phase"), ("bad", "step")]
    assert (checked.differences[0].stored, checked.differences[0].folded) == ("completed", "compensated")


async def test_a_state_that_was_changed_is_found_by_field(kept: Kept) -> None:
    kept.tamper_state("running", round=7, standing={"a": 7})
    assert found(await kept.checked()) == [("running", "state.round"), ("running", "state.standing[a]")]


async def test_a_saga_that_was_deleted_or_made_up_is_found(kept: Kept) -> None:
    kept.tamper("UPDATE sagas SET saga_id = 'other' WHERE saga_id = 'running'")
    assert sorted(found(await kept.checked())) == [("other", "saga"), ("running", "saga")]


async def test_bytes_that_are_no_state_are_found_and_left_where_they_are(kept: Kept) -> None:
    kept.tamper("UPDATE sagas SET blob = x'c1' WHERE saga_id = 'good'")
    for _ in range(2):
        assert found(await kept.checked()) == [("good", "blob")]


async def test_a_checkpoint_that_was_moved_is_found(kept: Kept) -> None:
    kept.tamper("UPDATE partitions SET offset = offset + 1000")
    assert found(await kept.checked()) == [("", "checkpoint")] * 2


async def test_a_store_of_another_log_is_found_and_not_compared_further(kept: Kept) -> None:
    kept.tamper("UPDATE partitions SET mark = 'x'")
    assert found(await kept.checked()) == [("", "checkpoint.mark")] * 2


async def test_sagas_without_a_checkpoint_are_found(kept: Kept) -> None:
    kept.tamper("DELETE FROM partitions")
    assert found(await kept.checked()) == [("", "checkpoint")] * 2


async def test_an_old_saga_that_rests_may_have_left_the_store(kept: Kept) -> None:
    kept.tamper("DELETE FROM sagas")
    checked = await kept.checked(dropped_before_ms=2**50)
    assert checked.dropped == 2
    assert found(checked) == [("running", "saga")], "an unfinished one may not"


async def test_what_waits_for_a_contract_is_not_in_the_fold(tmp_path: Path) -> None:
    broker = await a_broker(LINE)
    later = Saga("order", Step("a", compensation="undo_a"), version=2)
    kept = Kept(tmp_path / "store.db", broker, await a_pen(broker, LINE))
    await (await a_pen(broker, later)).whole_line("s")
    store = await open_store(kept.url)
    async with running(broker, LINE, store=store):
        await until(lambda: parked(store, kept_tp(), 2))
    await store.close()
    unheld = await kept.checked()
    assert unheld.agrees
    await register(broker, [later])  # known by now, and not yet to the saga-log
    assert (await kept.checked()).agrees
    await kept.folded(lambda log: until(lambda: "s" in log.states()))
    assert (await kept.checked()).agrees


def kept_tp() -> Any:
    from choreo.broker.port import TopicPartition

    return TopicPartition("choreo.order", 0)


async def test_sagas_whose_start_the_log_has_lost_are_listed(tmp_path: Path) -> None:
    clock = FakeClock()
    broker = await a_broker(LINE, now_ms=clock.now_ms)
    kept = Kept(tmp_path / "store.db", broker, await a_pen(broker, LINE))

    async def work(log: Any) -> None:
        await kept.pen.whole_line("settled")
        await kept.pen.start("running")
        await quiet(kept.pen, log)
        for step in ("a", "b"):
            clock.ms += 4 * 86_400_000
            await kept.pen.completed("running", step)
            await quiet(kept.pen, log)

    await kept.folded(work, retention_ms=2**45, clock=FakeClock(T0))
    checked = await kept.checked()
    assert {(each.saga_id, each.resting) for each in checked.truncated} == {("settled", True), ("running", False)}
    assert checked.differences == []
    assert not checked.agrees, "of the one that runs only the store knows the start"
    kept.tamper("DELETE FROM sagas WHERE saga_id = 'running'")
    assert [saga_id for saga_id, _ in found(await kept.checked())] == ["running"]


# The command.


def fill(broker_url: str, store_url: str) -> None:
    """A log in a file and its store, with a saga that completed."""

    async def work() -> None:
        broker = await open_broker(broker_url)
        await ensure_saga_topics(broker, [LINE], partitions=2)
        await register(broker, [LINE])
        pen = Pen(broker, await broker.producer(), LINE)  # type: ignore[arg-type]
        await pen.whole_line("s")
        store = await open_store(store_url)
        async with running(broker, LINE, store=store) as log:
            await until(lambda: "s" in log.states() and log.states()["s"].finished_ms > 0)
        await store.close()
        await pen.producer.close()
        await broker.close()

    asyncio.run(work())


def on_disk(tmp_path: Path) -> list[str]:
    broker_url, store_url = f"sqlite:///{tmp_path}/log.db", f"sqlite:///{tmp_path}/store.db"
    fill(broker_url, store_url)
    return ["--broker", broker_url, "--store", store_url]


def test_the_command_says_that_a_store_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = on_disk(tmp_path)
    assert run_command(["check-store", "order", *where]) == Exit.DONE
    said = capsys.readouterr()
    assert "order: agrees; 1 sagas" in said.err
    assert said.out == ""
    assert run_command(["check-store", "tests.unit.by_hand:LINE", "--json", *where]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["agrees"] is True


def test_the_command_lists_what_was_tampered_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = on_disk(tmp_path)
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE sagas SET phase = 'stuck'")
    connection.close()
    assert run_command(["check-store", "order", *where]) == Exit.NO
    said = capsys.readouterr()
    assert "s  phase: the store has stuck, the log says completed" in said.out
    assert "order: DIFFERS" in said.err
    assert run_command(["check-store", "order", "--json", *where]) == Exit.NO
    document = json.loads(capsys.readouterr().out)
    assert [(each["saga_id"], each["field"]) for each in document["differences"]] == [("s", "phase")]


@pytest.mark.parametrize(
    ("store", "why"),
    [
        ("memory://", "no store that can be looked into"),
        ("sqlite:////nowhere/at-all.db", "cannot be opened"),
        ("postgres://ann:s3cret@host/db", "postgres://ann@host/db"),
    ],
)
async def test_a_store_that_cannot_be_looked_into_is_refused(store: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        await open_inspection(store)
    assert "s3cret" not in str(caught.value)


async def test_looking_into_a_file_makes_none_and_moves_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        await open_inspection(f"sqlite:///{tmp_path}/none.db")
    (tmp_path / "broken.db").write_bytes(b"no database" * 500)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        await open_inspection(f"sqlite:///{tmp_path}/broken.db")
    with sqlite3.connect(tmp_path / "theirs.db") as connection:
        connection.execute("CREATE TABLE accounts (id)")
    connection.close()
    with pytest.raises(ConfigurationError, match="another program"):
        await open_inspection(f"sqlite:///{tmp_path}/theirs.db")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["broken.db", "theirs.db"]


def test_no_store_is_a_configuration_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["check-store", "order", "--broker", f"sqlite:///{tmp_path}/log.db"]) == Exit.CONFIGURATION
    assert "no store given" in capsys.readouterr().err
