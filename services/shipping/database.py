"""Parcels that were handed over, in the service's own database, where its inbox is too."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy import CheckConstraint, Column, Integer, MetaData, String, Table, create_engine, func
from sqlalchemy.pool import QueuePool

from choreo.inbox import Inbox

metadata = MetaData()
parcels = Table(
    "parcels",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("saga_id", String, nullable=False),
    Column("key", String, nullable=False, index=True),  # of the step that handed it over
    Column("state", String, CheckConstraint("state IN ('standing', 'undone')"), nullable=False, default="standing"),
    Column("created_at", String, nullable=False, server_default=func.current_timestamp()),
)


def database_path() -> Path:
    """Where the database is; the directory is made if it is missing."""
    path = Path(os.environ.get("SHIPPING_DATABASE", ".choreo/shipping.db"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _connect() -> sqlite3.Connection:
    connection = sqlite3.connect(database_path(), timeout=30, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    return connection


engine = create_engine("sqlite://", creator=_connect, poolclass=QueuePool)  # connects when the first order needs it
inbox = Inbox(engine, metadata=metadata, create_tables=True)
