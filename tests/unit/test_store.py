"""What every store promises the saga-log, and what the one in a file does when the file cannot be used."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from choreo.broker.port import Message, TopicPartition
from choreo.core import Entry, SagaState, fold, record_of
from choreo.errors import ConfigurationError, StoreConflict, StoreError
from choreo.messages.records import AnyRecord
from choreo.store import Activity, Advance, Checkpoint, Query, Row, Store, open_store
from choreo.store.postgres_link import address_of
from choreo.store.projection import is_resting, row_of, state_of
from choreo.store.query import place_of
from tests.unit.by_hand import LINE, T0, a_broker, a_pen

TP = TopicPartition("choreo.order", 0)
OTHER = TopicPartition("choreo.order", 1)


async def states_of(*names: str, ended: tuple[str, ...] = ()) -> list[SagaState]:
    """Folded states: of running sagas, and of some that ended compensated."""
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    for name in names:
        await pen.start(name)
        if name in ended:
            await pen.failed(name, "a")
    states: dict[str, SagaState] = {}

    def take(record: AnyRecord, offset: int) -> None:
        state = states.get(record.saga_id) or SagaState(record.saga_id)
        states[record.saga_id] = fold(LINE, state, Entry(record, offset, T0 + offset)).state

    records = await pen.records()
    for offset, record in enumerate(records):
        take(record, offset)
    for number, name in enumerate(ended):
        take(record_of(LINE, states[name], states[name].owed[0]), len(records) + number)
    return [states[name] for name in names]


def rows(states: list[SagaState], tp: TopicPartition = TP) -> list[Row]:
    return [row_of(LINE, state, tp) for state in states]


def message(offset: int, key: str, tp: TopicPartition = TP) -> Message:
    return Message(tp.topic, tp.partition, offset, T0, key.encode(), b"value", (("a", b"1"), ("b", b"\xff")))


class StoreSuite:
    """The promises of the port, for whatever ``store`` the module of a subclass has."""

    async def test_a_pause_of_the_type_is_kept_with_the_checkpoint(self, store: Store) -> None:
        await store.save([Advance(TP, None, Checkpoint(1, "a", '{"offset":0}'), [])])
        assert await store.checkpoint(TP) == Checkpoint(1, "a", '{"offset":0}')
        await store.save([Advance(TP, 1, Checkpoint(2, "b"), [])])
        assert await store.checkpoint(TP) == Checkpoint(2, "b", "")

    async def test_what_is_saved_is_found_again(self, store: Store) -> None:
        states = await states_of("s1", "s2", "s3", ended=("s3",))
        await store.save([Advance(TP, None, Checkpoint(3, "mark"), rows(states))])
        assert await store.checkpoint(TP) == Checkpoint(3, "mark", "")
        assert await store.load_active(TP) == states[:2]
        assert await store.load(TP, {"s1", "s3", "nobody"}) == {"s1": states[0], "s3": states[2]}
        assert await store.find("order", "s2") == states[1]
        assert await store.find("other", "s2") is None

    async def test_a_partition_of_which_nothing_is_stored_has_no_checkpoint(self, store: Store) -> None:
        assert await store.checkpoint(TP) is None
        assert list(await store.load_active(TP)) == []
        assert await store.load(TP, ["s"]) == {}

    async def test_a_later_state_replaces_the_earlier_one(self, store: Store) -> None:
        [running] = await states_of("s")
        [ended] = await states_of("s", ended=("s",))
        await store.save([Advance(TP, None, Checkpoint(1, ""), rows([running]))])
        await store.save([Advance(TP, 1, Checkpoint(2, ""), rows([ended]))])
        assert list(await store.load_active(TP)) == []
        assert await store.load(TP, ["s"]) == {"s": ended}

    @pytest.mark.parametrize("expected", [None, 4, 6])
    async def test_of_two_owners_only_one_moves_the_checkpoint(self, store: Store, expected: int | None) -> None:
        first, second = await states_of("s1", "s2")
        await store.save([Advance(TP, None, Checkpoint(5, "a"), rows([first]))])
        with pytest.raises(StoreConflict):
            await store.save([Advance(TP, expected, Checkpoint(9, "b"), rows([second]))])
        assert await store.checkpoint(TP) == Checkpoint(5, "a")
        assert await store.load(TP, ["s2"]) == {}

    async def test_an_expected_checkpoint_that_was_never_there_is_a_conflict(self, store: Store) -> None:
        with pytest.raises(StoreConflict):
            await store.save([Advance(TP, 4, Checkpoint(9, ""), [])])

    async def test_of_a_save_of_several_partitions_all_or_nothing_is_done(self, store: Store) -> None:
        first, second = await states_of("s1", "s2")
        await store.save([Advance(OTHER, None, Checkpoint(5, ""), [])])
        with pytest.raises(StoreConflict):
            await store.save(
                [
                    Advance(TP, None, Checkpoint(3, ""), rows([first])),
                    Advance(OTHER, 4, Checkpoint(6, ""), rows([second], OTHER)),
                ]
            )
        assert await store.checkpoint(TP) is None
        assert await store.load(TP, ["s1"]) == {}

    async def test_a_wiped_partition_is_empty_and_the_others_are_as_they_were(self, store: Store) -> None:
        first, second = await states_of("s1", "s2")
        await store.save(
            [
                Advance(TP, None, Checkpoint(3, ""), rows([first]), parked=[message(1, "p")]),
                Advance(OTHER, None, Checkpoint(6, ""), rows([second], OTHER)),
            ]
        )
        await store.wipe(TP)
        assert await store.checkpoint(TP) is None
        assert await store.load(TP, ["s1"]) == {}
        assert await store.parked_sagas(TP) == {}
        assert await store.checkpoint(OTHER) == Checkpoint(6, "")
        assert await store.load(OTHER, ["s2"]) == {"s2": second}

    async def test_parked_records_come_back_in_order_until_they_are_released(self, store: Store) -> None:
        first = [message(1, "s"), message(2, "t"), message(3, "s")]
        await store.save([Advance(TP, None, Checkpoint(4, ""), [], parked=first)])
        await store.save([Advance(TP, 4, Checkpoint(9, ""), [], parked=[message(8, "s")])])
        assert await store.parked_sagas(TP) == {"s": 3, "t": 1}
        assert list(await store.load_parked(TP, "s")) == [first[0], first[2], message(8, "s")]
        await store.save([Advance(TP, 9, Checkpoint(9, ""), [], released=["s"], parked=[message(8, "s")])])
        assert list(await store.load_parked(TP, "s")) == [message(8, "s")]
        assert await store.parked_sagas(OTHER) == {}

    async def test_resting_sagas_are_dropped_when_they_are_old(self, store: Store) -> None:
        states = await states_of("s1", "s2", "s3", ended=("s2", "s3"))
        await store.save([Advance(TP, None, Checkpoint(9, ""), rows(states))])
        assert await store.drop_resting(states[2].updated_ms) == 1
        assert await store.drop_resting(states[2].updated_ms) == 0
        assert set(await store.load(TP, ["s1", "s2", "s3"])) == {"s1", "s3"}
        assert await store.drop_resting(2**50) == 1, "an unfinished saga stays, however old"

    async def test_parked_records_are_dropped_when_the_log_has_dropped_them(self, store: Store) -> None:
        old, young = message(3, "s1"), msgspec.structs.replace(message(5, "s1"), timestamp_ms=T0 + 10)
        await store.save([Advance(TP, None, Checkpoint(9, ""), (), parked=(old, young, message(4, "s2")))])
        assert await store.drop_resting(T0 + 10) == 2
        assert await store.drop_resting(T0 + 10) == 0
        assert await store.parked_sagas(TP) == {"s1": 1}
        assert [each.offset for each in await store.load_parked(TP, "s1")] == [5]

    async def test_sagas_are_listed_by_name_phase_and_age(self, store: Store) -> None:
        states = await states_of("s1", "s2", "s3", ended=("s3",))
        await store.save([Advance(TP, None, Checkpoint(9, ""), rows(states))])

        async def ids(query: Query) -> list[str]:
            return [row.saga_id for row in await store.search(query)]

        assert await ids(Query()) == ["s1", "s2", "s3"]
        assert await ids(Query(limit=2)) == ["s1", "s2"]
        assert await ids(Query(saga="other")) == []
        assert await ids(Query(saga="order", phases=("compensated", "stuck"))) == ["s3"]
        assert await ids(Query(started_before_ms=states[1].started_ms)) == ["s1"]
        [row] = await store.search(Query(phases=("compensated",)))
        assert (row.blob, row.step, row.code, row.resting) == (b"", "a", "no", True)
        assert await store.counts() == {("order", "forward"): 2, ("order", "compensated"): 1}

    async def test_a_search_finds_by_where_a_saga_is_and_by_what_went_wrong(self, store: Store) -> None:
        made = rows(await states_of("s1", "s2", "s3", "s4", ended=("s3", "s4")))
        made[2] = msgspec.structs.replace(made[2], code="declined", message="The card 100% WAS_declined", step="c")
        made[3] = msgspec.structs.replace(made[3], code="", message="nul \N{REPLACEMENT CHARACTER} 'quoted' É")
        await store.save([Advance(TP, None, Checkpoint(9, ""), made)])

        async def ids(**wanted: object) -> list[str]:
            return [row.saga_id for row in await store.search(Query(**wanted))]  # type: ignore[arg-type]

        assert await ids(step="a") == ["s1", "s2", "s4"], "two run there, one has failed there"
        assert await ids(step="c") == ["s3"]
        assert await ids(step="%") == []
        assert await ids(code="declined") == ["s3"]
        assert await ids(code="") == ["s1", "s2", "s4"]
        assert await ids(text="100% was_D") == ["s3"]
        assert await ids(text="'QUOTED'") == ["s4"]
        assert await ids(text="é") == [], "only letters of ASCII are the same"
        assert await ids(text="s2") == ["s2"], "the beginning of an id"
        assert await ids(text="2") == []
        assert await ids(text="\0") == []
        assert await ids(version=made[0].version) == ["s1", "s2", "s3", "s4"]
        assert await ids(version=99) == []
        assert await ids(started_from_ms=made[2].started_ms) == ["s3", "s4"]
        assert await ids(updated_before_ms=made[2].updated_ms) == ["s1", "s2"]

    async def test_pages_of_a_list_have_every_saga_once_in_either_order(self, store: Store) -> None:
        made = [msgspec.structs.replace(row, started_ms=T0) for row in rows(await states_of(*"fbdace"))]
        await store.save([Advance(TP, None, Checkpoint(9, ""), made)])
        for newest_first in (False, True):
            found: list[str] = []
            query = Query(limit=4, newest_first=newest_first)
            while page := await store.search(query):
                found += [row.saga_id for row in page]
                query = query._replace(after=place_of(page[-1]))
            assert found == sorted("abcdef", reverse=newest_first)

    async def test_activity_counts_starts_and_outcomes_by_stretches_of_time(self, store: Store) -> None:
        made = rows(await states_of("s1", "s2", "s3", ended=("s3",)))
        for number, row in enumerate(made):
            made[number] = msgspec.structs.replace(row, started_ms=T0 + 1_000 * number)
        made[2] = msgspec.structs.replace(made[2], finished_ms=T0 + 60_500)
        await store.save([Advance(TP, None, Checkpoint(9, ""), made)])
        assert sorted(await store.activity(T0, 2_000)) == [
            Activity("order", "compensated", 30, 1),
            Activity("order", "started", 0, 2),
            Activity("order", "started", 1, 1),
        ]
        assert sorted(await store.activity(T0 + 2_001, 60_000)) == [Activity("order", "compensated", 0, 1)]

    async def test_sagas_come_in_pages_in_the_order_of_their_ids(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in ("memory", "sqlite", "postgres"):
            monkeypatch.setattr(f"choreo.store.{module}.PAGE", 2)
            monkeypatch.setattr(f"choreo.store.{module}.PAGE_OF_IDS", 2, raising=False)
        states = await states_of("c", "a", "e", "b", "d", ended=("b",))
        elsewhere = await states_of("ba", "f")
        await store.save(
            [
                Advance(TP, None, Checkpoint(9, ""), rows(states)),
                Advance(OTHER, None, Checkpoint(9, ""), rows(elsewhere, OTHER)),
            ]
        )
        active: list[str] = []
        while page := await store.load_active(TP, after=active[-1] if active else ""):
            assert len(page) <= 2
            active += [state.saga_id for state in page]
        assert active == ["a", "c", "d", "e"]
        known: list[str] = []
        while ids := await store.saga_ids(TP, after=known[-1] if known else ""):
            known += ids
        assert known == ["a", "b", "c", "d", "e"]

    async def test_more_sagas_than_a_statement_takes_values_are_loaded(self, store: Store) -> None:
        [state] = await states_of("s")
        many = []
        for number in range(1_200):
            copy = state.copy()
            copy.saga_id = f"s{number}"
            many.append(copy)
        await store.save([Advance(TP, None, Checkpoint(9, ""), rows(many))])
        assert len(await store.load(TP, [each.saga_id for each in many])) == 1_200


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/store.db")
    yield opened
    await opened.close()


class TestStoresOfOneMachine(StoreSuite):
    pass


async def test_a_state_survives_its_row() -> None:
    [state] = await states_of("s", ended=("s",))
    assert state_of(row_of(LINE, state, TP).blob) == state
    assert is_resting(state)


async def test_a_saga_without_its_start_rests_under_a_name_of_its_own() -> None:
    assert is_resting(SagaState("s"))
    assert row_of(LINE, SagaState("s"), TP).phase == "unstarted"
    assert row_of(LINE, SagaState("s", truncated=True), TP).phase == "truncated"


# The file.


async def test_what_was_saved_is_there_in_the_next_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    states = await states_of("s")
    store = await open_store(url)
    await store.save([Advance(TP, None, Checkpoint(1, "m"), rows(states))])
    await store.close()
    await store.close()
    again = await open_store(url)
    assert await again.checkpoint(TP) == Checkpoint(1, "m")
    assert await again.load_active(TP) == states
    await again.close()


async def test_two_processes_share_a_file_and_only_one_moves_a_checkpoint(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    one, other = await open_store(url), await open_store(url)
    await one.save([Advance(TP, None, Checkpoint(1, "one"), [])])
    with pytest.raises(StoreConflict):
        await other.save([Advance(TP, None, Checkpoint(2, "other"), [])])
    assert await other.checkpoint(TP) == Checkpoint(1, "one")
    await one.close()
    await other.close()


async def test_a_process_that_dies_in_a_save_leaves_the_state_before_it(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    states = await states_of("s")
    store = await open_store(f"sqlite:///{path}")
    await store.save([Advance(TP, None, Checkpoint(1, ""), rows(states))])
    # Another connection does what a save does, and is cut off before its end.
    dying = sqlite3.connect(path, isolation_level=None)
    dying.execute("BEGIN IMMEDIATE")
    dying.execute("UPDATE partitions SET offset = 99")
    dying.execute("DELETE FROM sagas")
    dying.close()
    assert await store.checkpoint(TP) == Checkpoint(1, "")
    assert await store.load_active(TP) == states
    await store.save([Advance(TP, 1, Checkpoint(2, ""), [])])
    await store.close()


async def test_a_row_that_cannot_be_written_leaves_the_checkpoint_where_it_was(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:///{tmp_path}/store.db")
    [row] = rows(await states_of("s"))
    impossible = msgspec.structs.replace(row, started_ms=2**80)
    with pytest.raises((StoreError, OverflowError)):
        await store.save([Advance(TP, None, Checkpoint(1, ""), [impossible])])
    assert await store.checkpoint(TP) is None
    await store.save([Advance(TP, None, Checkpoint(1, ""), [row])])
    await store.close()


@pytest.mark.parametrize("content", [b"this is no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 4_000])
async def test_a_damaged_file_is_put_aside_and_begun_anew(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(content)
    store = await open_store(f"sqlite:///{path}")
    assert await store.checkpoint(TP) is None
    assert (tmp_path / "store.db.aside").read_bytes() == content
    assert "rebuilt from the log" in caplog.text
    await store.close()


async def test_a_file_of_another_release_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "store.db"
    store = await open_store(f"sqlite:///{path}")
    await store.save([Advance(TP, None, Checkpoint(1, ""), [])])
    await store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    store = await open_store(f"sqlite:///{path}")
    assert await store.checkpoint(TP) is None
    assert "it has schema 7" in caplog.text
    await store.close()


async def test_a_state_that_cannot_be_read_makes_a_conflict_and_an_empty_store(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await open_store(f"sqlite:///{path}")
    await store.save([Advance(TP, None, Checkpoint(1, ""), rows(await states_of("s")))])
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE sagas SET blob = x'c1'")
    connection.close()
    with pytest.raises(StoreConflict, match="rebuilt from the log"):
        await store.load_active(TP)
    assert await store.checkpoint(TP) is None
    await store.close()


async def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "accounts.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE accounts (id)")
    connection.close()
    with pytest.raises(ConfigurationError, match="another program"):
        await open_store(f"sqlite:///{path}")
    assert not (tmp_path / "accounts.db.aside").exists()


@pytest.mark.parametrize(
    "url", ["sqlite://store.db", "sqlite:///", "postgres://host/db", "store.db", "sqlite:///x.db?mode=ro"]
)
async def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="store URL"):
        await open_store(url)


async def test_a_file_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        await open_store(f"sqlite:///{tmp_path}/nowhere/store.db")


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:///{tmp_path}/store.db")
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.checkpoint(TP)


# The URL of a database.


async def test_a_store_in_postgresql_without_its_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ConfigurationError, match=r"choreo-sagas\[postgres\]"):
        await open_store("postgresql://host/db")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://ann:s3cret@host", "names no database"),
        ("postgresql://ann:s3cret@host/db?schema=Robert'); DROP", "small letters"),
        ("postgresql://ann:s3cret@host/db?password=s3cret", "unknown option 'password'"),
        ("postgresql://ann:s3cret@host/db#s3cret", "unknown option '#'"),
        ("postgres://ann:s3cret@host/db", "no known scheme"),
        ("sqlite:///file.db?key=s3cret", "takes no options"),
        ("sqlite://ann:s3cret@[host/file.db", "names no file"),
        ("postgresql://ann:s3cret@[::1/db", r"ann@\[::1/db' cannot be read"),
        ("postgresql://ann:s3cret@host:five/db", "ann@host:five/db' cannot be read"),
    ],
)
async def test_a_url_that_is_refused_is_said_without_its_password(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        await open_store(url)
    assert "s3cret" not in str(caught.value)


def test_what_a_url_says_is_the_schema_and_what_the_driver_knows() -> None:
    address = address_of("postgresql://ann:s3cret@one:5432,two:5433/db?schema=sagas&sslmode=require")
    assert address.schema == "sagas"
    assert address.shown == "postgresql://ann@one:5432,two:5433/db?schema=sagas&sslmode=require"
    assert address.dsn == "postgresql://ann:s3cret@one:5432,two:5433/db?sslmode=require&application_name=choreo"
    assert "s3cret" not in f"{address} {address!r} {[address]}"
    assert address_of("postgresql://host/db").schema == "choreo"
