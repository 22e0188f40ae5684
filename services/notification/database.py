"""The outbox: mails to customers, in the order in which they go out.

A mail cannot be taken back. So a notice that is undone stays where it is, and an apology goes out after it. That each
goes out once, and no apology for a mail that was never sent, is the inbox's to see to, whose row commits with them.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy import CheckConstraint, Column, Integer, MetaData, String, Table, create_engine, func
from sqlalchemy.pool import QueuePool

from choreo.inbox import Inbox

metadata = MetaData()
notices = Table(
    "notices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("saga_id", String, nullable=False),
    Column("key", String, nullable=False, index=True),  # of the step that sent it
    Column("state", String, CheckConstraint("state IN ('standing', 'undone')"), nullable=False, default="standing"),
    Column("created_at", String, nullable=False, server_default=func.current_timestamp()),
)
mails = Table(
    "mails",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("saga_id", String, nullable=False),
    Column("email", String, nullable=False),
    Column("text", String, nullable=False),
    Column("sent_at", String, nullable=False, server_default=func.current_timestamp()),
)


def _connect() -> sqlite3.Connection:
    path = Path(os.environ.get("NOTIFICATION_DATABASE", ".choreo/notification.db"))
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    return connection


engine = create_engine("sqlite://", creator=_connect, poolclass=QueuePool)  # connects when the first order needs it
inbox = Inbox(engine, metadata=metadata, create_tables=True)
