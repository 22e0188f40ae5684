"""The store's tables in PostgreSQL: numbered steps, taken by whoever comes first, one at a time.

All that the store has lies in a database schema of its own. Its table ``about`` says how many of the steps have been
taken; an instance that knows more of them takes the rest, and one that knows fewer is refused. A step that is released
is never changed: a change is a further step.

States are another matter. A partition says in which format its states were written, and one in another format is
folded again from the log by whoever gets it, so that two releases can run side by side while one replaces the other.
"""

from __future__ import annotations

from zlib import crc32

import asyncpg
import msgspec

from choreo.core import SagaState
from choreo.errors import ConfigurationError
from choreo.store.port import Row

STEPS: tuple[str, ...] = (
    # Text is compared by its bytes, as everywhere in choreo. The index for dropping is on a column of its own that is
    # empty while a saga runs, and rows leave some room on their pages: then most updates touch no index.
    """
    CREATE TABLE partitions (
        topic text COLLATE "C", number integer, next_offset bigint NOT NULL, mark text NOT NULL, format bigint NOT NULL,
        PRIMARY KEY (topic, number));
    CREATE TABLE sagas (
        topic text COLLATE "C", partition integer NOT NULL, saga text COLLATE "C" NOT NULL, saga_id text COLLATE "C",
        version bigint NOT NULL, phase text COLLATE "C" NOT NULL, round bigint NOT NULL, resting boolean NOT NULL,
        started_ms bigint NOT NULL, updated_ms bigint NOT NULL, finished_ms bigint NOT NULL, step text NOT NULL,
        code text NOT NULL, due_ms bigint NOT NULL, timer_ms bigint, blob bytea NOT NULL,
        rested_ms bigint GENERATED ALWAYS AS (CASE WHEN resting THEN updated_ms END) STORED,
        PRIMARY KEY (topic, saga_id)) WITH (fillfactor = 70);
    CREATE INDEX sagas_active ON sagas (topic, partition) WHERE NOT resting;
    CREATE INDEX sagas_resting ON sagas (rested_ms) WHERE rested_ms IS NOT NULL;
    CREATE INDEX sagas_listed ON sagas (saga, phase, started_ms);
    CREATE TABLE parked (
        topic text COLLATE "C", partition integer, record_offset bigint, saga_id text COLLATE "C" NOT NULL,
        timestamp_ms bigint NOT NULL, key bytea, value bytea NOT NULL, headers bytea NOT NULL,
        PRIMARY KEY (topic, partition, record_offset));
    CREATE INDEX parked_of ON parked (topic, partition, saga_id);
    """,
    # For lists and searches. What the first and the last are on does not change while a saga runs.
    """
    ALTER TABLE sagas
        ADD COLUMN message text COLLATE "C" NOT NULL DEFAULT '', ADD COLUMN busy text COLLATE "C" NOT NULL DEFAULT '';
    CREATE INDEX sagas_in_order ON sagas (started_ms, saga_id, saga);
    CREATE INDEX sagas_failed ON sagas (code, started_ms) WHERE code <> '';
    CREATE INDEX sagas_finished ON sagas (finished_ms) WHERE finished_ms > 0;
    """,
    # Pauses of all sagas of a type.
    """
    ALTER TABLE partitions ADD COLUMN type_pause text NOT NULL DEFAULT '';
    """,
    "ALTER TABLE sagas ADD COLUMN paused boolean NOT NULL DEFAULT false",
    # For reading a partition's sagas page by page. What they are on never changes, but for resting.
    """
    CREATE INDEX sagas_of ON sagas (topic, partition, saga_id);
    DROP INDEX sagas_active;
    CREATE INDEX sagas_active ON sagas (topic, partition, saga_id) WHERE NOT resting;
    """,
)

# Whatever changes the type in the blobs or the columns beside it gives another number, without anybody having to
# think of it.
FORMAT = crc32((repr(msgspec.inspect.type_info(SagaState)) + repr(Row.__struct_fields__)).encode())

_LOCK = 0x63_68_6F_72  # "chor"; with the schema's name it makes a key that is nobody else's


async def prepare(connection: asyncpg.Connection, schema: str) -> None:
    """Make the schema, or bring it up to date. Instances that start at the same time wait for each other.

    Raises:
        ConfigurationError: the schema is another program's, or a newer release's.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1, $2)", _LOCK, _signed(crc32(schema.encode())))
        taken = await _steps_taken(connection, schema)
        if taken > len(STEPS):
            raise ConfigurationError(
                f"the database schema {schema!r} has been brought to step {taken} by a newer release of choreo, this "
                f"one knows {len(STEPS)}; upgrade this instance, or give it another schema (?schema=…)"
            )
        for step in STEPS[taken:]:
            await connection.execute(step)
        if taken < len(STEPS):
            await connection.execute("UPDATE about SET steps_taken = $1", len(STEPS))


async def check(connection: asyncpg.Connection, schema: str) -> None:
    """See that the schema is as this release has it, without a change to anything.

    Raises:
        ConfigurationError: it is not.
    """
    there = await connection.fetchval("SELECT to_regclass($1)::text", f'"{schema}".about')
    taken = 0 if there is None else await connection.fetchval("SELECT steps_taken FROM about")
    if taken != len(STEPS):
        raise ConfigurationError(
            f"the database schema {schema!r} is no store of this release: it is at step {taken}, not {len(STEPS)}"
        )


async def _steps_taken(connection: asyncpg.Connection, schema: str) -> int:
    """How many; 0 if the schema is new. It is made then, and only then, for that takes a right that few roles have."""
    if not await connection.fetchval("SELECT true FROM pg_namespace WHERE nspname = $1", schema):
        await connection.execute(f'CREATE SCHEMA "{schema}"')
    tables = {
        row["relname"]
        for row in await connection.fetch(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
            schema,
        )
    }
    if not tables:
        await connection.execute("CREATE TABLE about (program text NOT NULL, steps_taken integer NOT NULL)")
        await connection.execute("INSERT INTO about VALUES ('choreo', 0)")
        return 0
    taken = await connection.fetchval("SELECT steps_taken FROM about") if "about" in tables else None
    if not isinstance(taken, int):
        raise ConfigurationError(
            f"the database schema {schema!r} has tables of another program; give the store one of its own (?schema=…)"
        )
    return taken


def _signed(number: int) -> int:
    return number - 2**32 if number >= 2**31 else number
