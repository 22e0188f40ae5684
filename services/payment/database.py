"""The ledger: what was charged to whom, and the invoices.

Rows are never deleted: a refund is a fact beside the charge, and a voided invoice keeps its number. Nothing here
guards against a second delivery, or a compensation that comes first: that is the inbox's, whose row commits together
with what is done here.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy import CheckConstraint, Column, Connection, Integer, MetaData, String, Table, create_engine, func
from sqlalchemy.pool import QueuePool

from choreo.inbox import Inbox

metadata = MetaData()


def _ledger(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("id", Integer, primary_key=True),
        Column("saga_id", String, nullable=False),
        Column("key", String, nullable=False, index=True),  # of the step that made it
        Column("amount_cents", Integer, nullable=False),
        Column("state", String, CheckConstraint("state IN ('standing', 'undone')"), nullable=False, default="standing"),
        Column("created_at", String, nullable=False, server_default=func.current_timestamp()),
    )


charges, invoices = _ledger("charges"), _ledger("invoices")


def enter(connection: Connection, table: Table, saga_id: str, key: str, amount_cents: int) -> int:
    """Enter an amount, and give the entry's number."""
    entered = table.insert().values(saga_id=saga_id, key=key, amount_cents=amount_cents).returning(table.c.id)
    return int(connection.execute(entered).scalar_one())


def reverse(connection: Connection, table: Table, key: str) -> None:
    """Reverse an entry."""
    connection.execute(table.update().where(table.c.key == key).values(state="undone"))


def _connect() -> sqlite3.Connection:
    path = Path(os.environ.get("PAYMENT_DATABASE", ".choreo/payment.db"))
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    return connection


engine = create_engine("sqlite://", creator=_connect, poolclass=QueuePool)  # connects when the first order needs it
inbox = Inbox(engine, metadata=metadata, create_tables=True)
