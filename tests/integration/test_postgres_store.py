"""The store in PostgreSQL: what every store promises, and what only a server can do to one."""

from __future__ import annotations

import asyncio
import logging
import traceback
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec
import pytest

from choreo.errors import ConfigurationError, StoreConflict, StoreError, StoreUnavailable
from choreo.store import Advance, Checkpoint, Store, open_store, postgres, postgres_link, postgres_schema
from choreo.store.postgres_link import address_of
from tests.unit.test_store import OTHER, TP, StoreSuite, message, rows, states_of

pytestmark = pytest.mark.postgres


@dataclass
class Database:
    """A schema of one test's own."""

    url: str
    server: str
    schema: str

    async def run(self, statement: str, *values: Any) -> Any:
        """Do what an administrator could do."""
        connection = await asyncpg.connect(self.server, server_settings={"search_path": self.schema})
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    schema = f"t_{uuid.uuid4().hex[:12]}"
    yield (made := Database(f"{postgres_url}?schema={schema}", postgres_url, schema))
    await made.run(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    opened = await open_store(database.url)
    yield opened
    await opened.close()


class TestPostgres(StoreSuite):
    pass


async def both(database: Database) -> tuple[Store, Store]:
    return await open_store(database.url), await open_store(database.url)


# One moves the checkpoint.


async def test_of_two_instances_that_save_at_once_one_is_told_that_it_was_not_first(database: Database) -> None:
    one, other = await both(database)
    first, second = await states_of("s1", "s2")
    done = await asyncio.gather(
        one.save([Advance(TP, None, Checkpoint(1, "one"), rows([first]))]),
        other.save([Advance(TP, None, Checkpoint(2, "other"), rows([second]))]),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in done) == ["NoneType", "StoreConflict"]
    checkpoint = await one.checkpoint(TP)
    assert checkpoint is not None
    saved = await one.load(TP, ["s1", "s2"])
    assert saved == ({"s1": first} if checkpoint.mark == "one" else {"s2": second}), "the winner's, and nothing else"
    await one.close()
    await other.close()


async def test_a_deposed_instance_waits_for_the_new_owners_save_and_overwrites_nothing(database: Database) -> None:
    deposed, owner = await both(database)
    [running], [ended] = await states_of("s"), await states_of("s", ended=("s",))
    await deposed.save([Advance(TP, None, Checkpoint(1, "a"), rows([running]))])
    # The new owner is in the middle of its save when the deposed instance wakes up with what it still has.
    connection = await asyncpg.connect(database.server, server_settings={"search_path": database.schema})
    under_way = connection.transaction()
    await under_way.start()
    await connection.execute("UPDATE partitions SET next_offset = 2, mark = 'b'")
    late = asyncio.create_task(deposed.save([Advance(TP, 1, Checkpoint(3, "c"), rows([ended]))]))
    await asyncio.sleep(0.1)
    assert not late.done()
    await under_way.commit()
    with pytest.raises(StoreConflict):
        await late
    assert await owner.checkpoint(TP) == Checkpoint(2, "b")
    assert await owner.load(TP, ["s"]) == {"s": running}
    for each in (deposed, owner, connection):
        await each.close()


async def test_an_instance_whose_partition_was_wiped_does_not_take_its_sagas_for_new_ones(database: Database) -> None:
    one, other = await both(database)
    states = await states_of("s")
    await one.save([Advance(TP, None, Checkpoint(1, ""), rows(states))])
    await other.wipe(TP)
    with pytest.raises(StoreConflict, match="wiped"):
        await one.load(TP, ["s"])
    assert await one.checkpoint(TP) is None
    assert await one.load(TP, ["s"]) == {}
    await one.close()
    await other.close()


async def test_saves_of_the_same_partitions_in_another_order_end_one_way_or_the_other(database: Database) -> None:
    one, other = await both(database)
    await one.save([Advance(tp, None, Checkpoint(1, ""), []) for tp in (TP, OTHER)])
    for offset in range(1, 30):
        done = await asyncio.gather(
            one.save([Advance(tp, offset, Checkpoint(offset + 1, "one"), []) for tp in (TP, OTHER)]),
            other.save([Advance(tp, offset, Checkpoint(offset + 1, "other"), []) for tp in (OTHER, TP)]),
            return_exceptions=True,
        )
        assert sum(each is None for each in done) == 1
        assert all(each is None or isinstance(each, StoreError) for each in done)
        assert await one.checkpoint(TP) == await one.checkpoint(OTHER)
    await one.close()
    await other.close()


async def test_dropping_waits_for_no_save_and_no_save_waits_long_for_dropping(database: Database) -> None:
    one, other = await both(database)
    states = await states_of(*(f"s{n}" for n in range(40)), ended=tuple(f"s{n}" for n in range(40)))
    await one.save([Advance(TP, None, Checkpoint(1, ""), rows(states))])

    async def save() -> None:
        for offset in range(1, 20):
            await one.save([Advance(TP, offset, Checkpoint(offset + 1, ""), rows(states[::-1]))])

    async def drop() -> None:
        for _ in range(40):
            await other.drop_resting(2**50)

    async with asyncio.timeout(10):
        await asyncio.gather(save(), drop())
    await one.close()
    await other.close()


# The schema.


async def test_instances_that_start_at_the_same_time_make_one_schema(database: Database) -> None:
    stores = await asyncio.gather(*(open_store(database.url) for _ in range(6)))
    assert [await store.counts() for store in stores] == [{}] * 6
    assert [row["steps_taken"] for row in await database.run("SELECT * FROM about")] == [len(postgres_schema.STEPS)]
    for store in stores:
        await store.close()


async def test_a_later_release_takes_the_steps_that_are_missing_and_keeps_what_is_there(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = await states_of("s")
    older = await open_store(database.url)
    await older.save([Advance(TP, None, Checkpoint(1, "m"), rows(states))])
    step = "ALTER TABLE sagas ADD COLUMN owner text NOT NULL DEFAULT ''; CREATE INDEX sagas_owner ON sagas (owner)"
    monkeypatch.setattr(postgres_schema, "STEPS", (*postgres_schema.STEPS, step))
    newer = await asyncio.gather(*(open_store(database.url) for _ in range(3)))
    assert await newer[0].checkpoint(TP) == Checkpoint(1, "m")
    assert await newer[1].load_active(TP) == states
    assert (await database.run("SELECT owner FROM sagas"))[0]["owner"] == ""
    await older.save([Advance(TP, 1, Checkpoint(2, "n"), rows(states))])  # until it is replaced, it goes on
    assert await newer[2].checkpoint(TP) == Checkpoint(2, "n")
    for store in (older, *newer):
        await store.close()


async def test_a_schema_of_a_newer_release_is_refused(database: Database) -> None:
    await (await open_store(database.url)).close()
    await database.run("UPDATE about SET steps_taken = 99")
    with pytest.raises(ConfigurationError, match=r"step 99 by a newer release.*upgrade this instance"):
        await open_store(database.url)


async def test_a_step_that_fails_leaves_the_schema_as_it_was(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await open_store(database.url)).close()
    with monkeypatch.context() as patched:
        patched.setattr(postgres_schema, "STEPS", (*postgres_schema.STEPS, "DROP TABLE sagas; SELECT * FROM nowhere"))
        with pytest.raises(StoreError, match="nowhere"):
            await open_store(database.url)
    again = await open_store(database.url)
    assert await again.counts() == {}
    await again.close()


async def test_a_schema_of_another_program_is_left_alone(database: Database) -> None:
    await database.run(f"CREATE SCHEMA {database.schema}")
    await database.run("CREATE TABLE sagas (id integer)")
    with pytest.raises(ConfigurationError, match="another program"):
        await open_store(database.url)
    assert [row["relname"] for row in await database.run(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = $1::regnamespace", database.schema
    )] == ["sagas"]  # fmt: skip


async def test_a_role_that_may_make_no_schema_uses_the_one_that_was_made_for_it(database: Database) -> None:
    role, password = f"r_{uuid.uuid4().hex[:8]}", "s3cret-role"
    await database.run(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
    address = database.url.replace(database.url.split("//")[1].split("@")[0], f"{role}:{password}")
    try:
        with pytest.raises(ConfigurationError, match="permission denied"):
            await open_store(address)
        await database.run(f"CREATE SCHEMA {database.schema} AUTHORIZATION {role}")
        store = await open_store(address)
        await store.save([Advance(TP, None, Checkpoint(1, ""), [])])
        await store.close()
    finally:
        await database.run(f"DROP SCHEMA {database.schema} CASCADE")
        await database.run(f"DROP ROLE {role}")


async def test_a_schema_that_is_dropped_under_us_is_made_again_and_is_a_conflict(
    database: Database, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.save([Advance(TP, None, Checkpoint(1, ""), rows(await states_of("s")))])
    await database.run(f"DROP SCHEMA {database.schema} CASCADE")
    with pytest.raises(StoreConflict, match="filled from the log"):
        await store.save([Advance(TP, 1, Checkpoint(2, ""), [])])
    assert await store.checkpoint(TP) is None
    assert "lost its tables" in caplog.text
    await store.save([Advance(TP, None, Checkpoint(2, ""), [])])


# What is in it.


async def test_what_another_release_has_written_is_begun_anew_partition_by_partition(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = await states_of("s")
    await store.save([Advance(TP, None, Checkpoint(1, ""), rows(states), parked=[message(0, "p")])])
    monkeypatch.setattr(postgres, "FORMAT", 7)
    newer = await open_store(database.url)
    await newer.save([Advance(OTHER, None, Checkpoint(1, ""), [])])
    assert await newer.find("order", "s") is None
    assert await newer.checkpoint(TP) is None
    assert await newer.load(TP, ["s"]) == {}
    assert await newer.parked_sagas(TP) == {}
    assert await newer.checkpoint(OTHER) == Checkpoint(1, "")
    await newer.save([Advance(TP, None, Checkpoint(1, ""), [])])
    monkeypatch.undo()
    with pytest.raises(StoreConflict):  # at the same offset by chance, but what is there is not its own
        await store.save([Advance(TP, 1, Checkpoint(2, ""), rows(states))])
    await newer.close()


async def test_a_state_that_cannot_be_read_begins_its_partition_anew_and_no_other(
    database: Database, store: Store
) -> None:
    first, second = await states_of("s1", "s2")
    await store.save([Advance(TP, None, Checkpoint(1, ""), rows([first]))])
    await store.save([Advance(OTHER, None, Checkpoint(1, ""), rows([second], OTHER))])
    await database.run("UPDATE sagas SET blob = '\\xc1' WHERE saga_id = 's1'")
    with pytest.raises(StoreConflict, match="rebuilt from the log"):
        await store.load_active(TP)
    assert await store.checkpoint(TP) is None
    assert await store.load_active(OTHER) == [second]


async def test_text_that_postgresql_does_not_take_stops_nothing(store: Store) -> None:
    [row] = rows(await states_of("s", ended=("s",)))
    await store.save([Advance(TP, None, Checkpoint(1, ""), [msgspec.structs.replace(row, code="no\0way")])])
    assert list(await store.load(TP, ["s", "\0", "a\0b"])) == ["s"]


async def test_a_value_that_cannot_be_written_leaves_all_as_it_was(store: Store) -> None:
    [row] = rows(await states_of("s"))
    with pytest.raises(StoreError) as caught:
        await store.save([Advance(TP, None, Checkpoint(1, ""), [msgspec.structs.replace(row, started_ms=2**80)])])
    assert not caught.value.retriable
    assert await store.checkpoint(TP) is None
    await store.save([Advance(TP, None, Checkpoint(1, ""), [row])])


# The connection.


CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'choreo'"


async def test_a_connection_that_was_cut_while_nobody_used_it_is_made_again(database: Database, store: Store) -> None:
    await store.save([Advance(TP, None, Checkpoint(1, ""), [])])
    await database.run(CUT)
    await asyncio.sleep(0.05)
    assert await store.checkpoint(TP) == Checkpoint(1, "")


async def test_a_save_that_is_cut_off_is_tried_again_by_whoever_asked_for_it(database: Database, store: Store) -> None:
    await store.save([Advance(TP, None, Checkpoint(1, ""), [])])
    connection = await asyncpg.connect(database.server, server_settings={"search_path": database.schema})
    holding = connection.transaction()
    await holding.start()
    await connection.execute("SELECT * FROM partitions FOR UPDATE")
    saving = asyncio.create_task(store.save([Advance(TP, 1, Checkpoint(2, ""), [])]))
    await asyncio.sleep(0.1)
    await database.run(CUT)
    with pytest.raises(StoreUnavailable) as caught:
        await saving
    assert caught.value.retriable
    await holding.rollback()
    await connection.close()
    await store.save([Advance(TP, 1, Checkpoint(2, ""), [])])


async def test_a_server_that_hangs_is_given_up(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_link, "CALL_TIMEOUT_S", 0.3)
    impatient = await open_store(database.url)
    await impatient.save([Advance(TP, None, Checkpoint(1, ""), [])])
    connection = await asyncpg.connect(database.server, server_settings={"search_path": database.schema})
    holding = connection.transaction()
    await holding.start()
    await connection.execute("SELECT * FROM partitions FOR UPDATE")
    with pytest.raises(StoreUnavailable):
        await impatient.save([Advance(TP, 1, Checkpoint(2, ""), [])])
    await holding.rollback()
    await connection.close()
    await impatient.save([Advance(TP, 1, Checkpoint(2, ""), [])])
    await impatient.close()


async def test_a_call_that_is_cancelled_leaves_nothing_half_done(store: Store) -> None:
    states = await states_of(*(f"s{n}" for n in range(50)))
    saving = asyncio.create_task(store.save([Advance(TP, None, Checkpoint(1, ""), rows(states))]))
    await asyncio.sleep(0.001)
    saving.cancel()
    await asyncio.wait((saving,))
    saved = await store.checkpoint(TP) is not None
    assert len(await store.load_active(TP)) == (50 if saved else 0)


async def test_no_server_is_said_at_once_and_not_asked_again_with_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreUnavailable, match=r"postgresql://ann@127.0.0.1:1/db is away"):
        await open_store("postgresql://ann:s3cret@127.0.0.1:1/db")
    link = postgres_link.Link(address_of("postgresql://127.0.0.1:1/db"))
    tried = 0
    connect = asyncpg.connect

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal tried
        tried += 1
        return await connect(*args, **kwargs)

    monkeypatch.setattr(asyncpg, "connect", counted)
    for _ in range(10):
        with pytest.raises(StoreUnavailable):
            await link.call(lambda connection: connection.fetchval("SELECT 1"))
    assert tried == 1


async def test_a_wrong_password_is_the_deployments_fault(database: Database) -> None:
    wrong = database.url.replace(address_of(database.url).dsn.split(":")[2].split("@")[0], "wr0ng-one")
    with pytest.raises(ConfigurationError, match="password authentication failed"):
        await open_store(wrong)


async def test_no_password_is_in_any_line_that_is_logged_or_raised(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    password = database.server.split(":")[2].split("@")[0]
    store = await open_store(database.url)
    said = [repr(store), repr(address_of(database.url)), str(address_of(database.url))]
    await database.run(f"DROP SCHEMA {database.schema} CASCADE")
    for doing in (lambda: store.save([Advance(TP, None, Checkpoint(1, ""), [])]), store.close, store.counts):
        try:
            await doing()
        except StoreError as error:
            said += traceback.format_exception(error)
    for url in (
        database.url.replace("127.0.0.1", "127.0.0.1:1,127.0.0.1"),
        database.url + "&pasword=" + password,
        database.url.replace("postgresql:", "postgres:"),
        database.url.replace("/postgres?", "/nowhere?"),
        database.url.replace("schema=", "schema=X"),
    ):
        try:
            await (await open_store(url)).close()
        except (StoreError, ConfigurationError) as error:
            said += traceback.format_exception(error)
    assert len(said) > 10
    assert password not in "".join(said)
    assert password not in caplog.text


async def test_a_closed_store_says_so(store: Store) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.checkpoint(TP)
