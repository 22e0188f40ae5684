"""The order saga with an inbox: each service records its outcomes in a database file of its own.

The files are in the directory that ``CHOREO_BENCH_INBOX`` names.
"""

from __future__ import annotations

import os

from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.order_saga import SERVICES, bind, saga_of
from choreo import Service
from choreo.inbox import Inbox

DIRECTORY = os.environ.get("CHOREO_BENCH_INBOX", ".")

ORDER = saga_of("bench_inbox", 3)


def _service(index: int, name: str) -> Service:
    engine = create_async_engine(f"sqlite+aiosqlite:///{DIRECTORY}/inbox-{name}.db")
    service = Service(f"{ORDER.name}-{name}", inbox=Inbox(engine, create_tables=True))
    bind(service, ORDER, ORDER.steps[index].name, is_last=index == len(ORDER.steps) - 1)
    return service


inventory, payment, shipping = (_service(index, name) for index, name in enumerate(SERVICES))
