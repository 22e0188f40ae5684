"""The warehouse: how much of each item is there, and for whom it was put aside.

Nothing here guards against a second delivery, or a compensation that comes first: that is the inbox's, whose row
commits together with what is done here.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import CheckConstraint, Column, Connection, Integer, MetaData, String, Table, create_engine, event, func
from sqlalchemy.pool import QueuePool

from choreo.inbox import Inbox

DELIVERED = {"teapot": 100_000, "kettle": 100_000, "unobtainium": 0}

metadata = MetaData()
stock = Table(
    "stock",
    metadata,
    Column("item", String, primary_key=True),
    Column("delivered", Integer, nullable=False),
    Column("on_hand", Integer, CheckConstraint("on_hand >= 0"), nullable=False),
)
reservations = Table(
    "reservations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("saga_id", String, nullable=False),
    Column("key", String, nullable=False, index=True),  # of the step that made it
    Column("item", String, nullable=False),
    Column("quantity", Integer, nullable=False),
    Column("state", String, CheckConstraint("state IN ('standing', 'undone')"), nullable=False, default="standing"),
    Column("created_at", String, nullable=False, server_default=func.current_timestamp()),
)


@event.listens_for(stock, "after_create")
def _take_delivery(_: Any, connection: Connection, **__: Any) -> None:
    rows = [{"item": item, "delivered": count, "on_hand": count} for item, count in DELIVERED.items()]
    connection.execute(stock.insert(), rows)


def _connect() -> sqlite3.Connection:
    path = Path(os.environ.get("INVENTORY_DATABASE", ".choreo/inventory.db"))
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    return connection


engine = create_engine("sqlite://", creator=_connect, poolclass=QueuePool)  # connects when the first order needs it
inbox = Inbox(engine, metadata=metadata, create_tables=True)
