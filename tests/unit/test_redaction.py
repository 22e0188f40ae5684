"""What users put into sagas, and secrets, show nowhere by accident: no log line, no repr, no metric, no dead letter."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from choreo import CompensationContext, Context, Inbox, Reject, Saga, SagaFailed, Step
from choreo.broker.encrypted import DirectoryKeys, EncryptedBroker
from choreo.broker.kafka.token import ClientCredentials
from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Broker, Message, TopicPartition
from choreo.broker.registry import ensure_saga_topics
from choreo.cli.settings import SETTINGS, InForce
from choreo.client import Client
from choreo.messages.examples import examples
from choreo.messages.records import Failure
from choreo.observe.events import OutcomeEvent
from choreo.observe.log import HIDDEN, private, set_up_logging
from choreo.observe.log_tracer import LogTracer
from choreo.observe.metrics import Metrics
from choreo.saga_log import SagaLog
from choreo.step import Options, Service, StepRuntime
from choreo.store.memory import MemoryStore
from choreo.web.access import Grant, Role, digest_of, new_token
from tests.web_world import application, running

MARK = "4929-1234-5678"
ORDER = Saga(
    "order",
    Step("reserve", compensation="release", compensation_retries=0),
    Step("charge", retries=1),
)


def service(inbox: Inbox) -> Service:
    payment = Service("payment", inbox=inbox, tracers=[LogTracer()])

    @payment.step(ORDER, "reserve")
    async def reserve(ctx: Context, connection: AsyncConnection) -> dict[str, Any]:
        await connection.execute(text("SELECT :card"), {"card": ctx.input["card"]})
        return {"card": ctx.input["card"]}

    @payment.compensation(ORDER, "reserve")
    async def release(ctx: CompensationContext, connection: AsyncConnection) -> None:
        if ctx.input["stuck"]:
            raise RuntimeError(f"cannot release {ctx.input['card']}")

    @payment.step(ORDER, "charge")
    async def charge(ctx: Context) -> str:
        if ctx.input["crash"]:
            raise RuntimeError(f"the bank says no to {ctx.input['card']}") from ValueError(ctx.input["card"])
        raise Reject(f"{ctx.input['card']} is declined", code="declined")

    @payment.on_outcome(ORDER)
    async def hook(event: OutcomeEvent) -> None:
        raise RuntimeError(f"the hook of {event.saga_id} cannot say {MARK}")

    return payment


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """All that is logged, at the lowest level."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    set_up_logging("DEBUG", "json", stream, hides_texts=True)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


async def all_of(broker: Broker, topic: str) -> list[Message]:
    tp = TopicPartition(topic, 0)
    reader = await broker.reader()
    reader.seek(tp, 0)
    found: list[Message] = []
    while reader.position(tp) < (await broker.offsets([tp]))[tp][1]:
        found += await reader.poll(timeout_s=0.05)
    await reader.close()
    return found


def reprs_with_mark() -> list[str]:
    """What an object of ours says of itself that has the mark in it: in a debugger, a log line, an error report.

    But for exceptions: they are there to tell who has called.
    """
    found = []
    for each in gc.get_objects():
        try:
            is_ours = type(each).__module__.startswith("choreo.")
        except Exception:  # noqa: BLE001 - some objects cannot be asked
            continue
        if is_ours and not isinstance(each, BaseException) and MARK in repr(each):
            found.append(repr(each)[:300])
    return found


async def test_a_card_s_number_shows_in_no_log_repr_metric_or_dead_letter(tmp_path: Path, logged: io.StringIO) -> None:
    log = await MemoryBroker.open("memory://redacted")
    ours = EncryptedBroker(log, DirectoryKeys(tmp_path / "keys"), "")
    await ensure_saga_topics(log, [ORDER], partitions=1)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/inbox.db")
    metrics = Metrics()
    runtimes = [
        StepRuntime(
            [service(Inbox(engine, create_tables=True))], ours, options=Options(poll_timeout_s=0.02), metrics=metrics
        ),
        SagaLog(log, MemoryStore(), [ORDER], metrics=metrics),
    ]
    tasks = [asyncio.create_task(runtime.run()) for runtime in runtimes]
    try:
        async with Client(ours) as client:
            for saga_id, crash in (("declined", False), ("crashed", True)):
                with pytest.raises(SagaFailed, match=MARK):  # who asked is told
                    await client.run(ORDER, {"card": MARK, "crash": crash, "stuck": False}, id=saga_id, timeout_s=30)
            await client.start(ORDER, {"card": MARK, "crash": True, "stuck": True}, id="stuck")
            producer = await log.producer()
            await producer.send(
                "choreo.order", key="bad", value=b'{"type":"saga_started","input":"%s"}' % MARK.encode()
            )
            async with asyncio.timeout(30):
                while (await client.status(ORDER, "stuck")).phase != "stuck" or not await all_of(
                    log, "choreo.order.dead-letters"
                ):
                    await asyncio.sleep(0.05)
            gone_wrong = reprs_with_mark()
            letters = await all_of(log, "choreo.order.dead-letters")
    finally:
        for runtime in runtimes:
            await runtime.stop()
        await asyncio.gather(*tasks)
        await engine.dispose()
    assert gone_wrong == []
    lines = logged.getvalue()
    assert "step_failed charge: declined: " in lines, "it is told what happened"
    assert HIDDEN in lines
    assert "in release" in lines or "in hook" in lines, "and where"
    assert [line for line in lines.splitlines() if MARK in line] == []
    assert MARK not in generate_latest(metrics.registry).decode()
    assert letters
    assert [header for letter in letters for header in letter.headers if MARK.encode() in header[1]] == []
    await log.close()


def test_objects_that_hold_payloads_or_secrets_do_not_show_them() -> None:
    store = next(setting for setting in SETTINGS if setting.key == "store")
    for each in (
        Message("choreo.order", 0, 7, 1, b"o-1", MARK.encode(), (("reason", MARK.encode()),)),
        Failure(kind="crashed", message=MARK, traceback=MARK),
        ClientCredentials("https://id.example/token", "payment", MARK, "", None),
        InForce(store, f"postgresql://choreo:{MARK}@db/sagas", "environment", "CHOREO_STORE"),
        private(MARK),
    ):
        assert MARK not in repr(each)
        assert MARK not in f"{[each]!r}"
    for record in examples(ORDER).values():
        assert "1200" not in repr(record), "the example's input"


@contextmanager
def open_group() -> Iterator[None]:
    """What goes wrong in here comes out as a group."""
    try:
        yield
    except ValueError as error:
        raise ExceptionGroup(MARK, [error]) from None


@pytest.mark.parametrize(("hides", "is_shown"), [(True, False), (False, True)])
def test_texts_of_failures_are_hidden_where_that_is_wanted(hides: bool, is_shown: bool) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        set_up_logging("INFO", "console", stream, hides_texts=hides)
        logger = logging.getLogger("choreo.test")
        logger.warning("step %r: %s", "charge", private(MARK))
        try:
            with open_group():
                int(MARK)
        except ExceptionGroup as error:
            logger.exception("it failed: %s", error)  # noqa: TRY401 - as somebody might
        logger.warning("no such file: %s", FileNotFoundError(2, "No such file", "here"))
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert (MARK in stream.getvalue()) is is_shown
    assert "step 'charge'" in stream.getvalue()
    assert "ValueError" in stream.getvalue()
    assert "test_redaction.py" in stream.getvalue()
    assert "No such file" in stream.getvalue()


@pytest.mark.parametrize("library", ["sqlalchemy.engine.Engine", "aiosqlite", "aiokafka"])
def test_libraries_that_log_what_they_are_given_are_kept_quiet(library: str, logged: io.StringIO) -> None:
    logging.getLogger(library).debug("executing %s", MARK)
    logging.getLogger(library).info("executing %s", MARK)
    assert logged.getvalue() == ""


async def test_who_shows_no_token_sees_nothing_of_a_saga_on_any_page() -> None:
    token = new_token()
    async with running() as world:
        await world.start("s", stick=MARK, item=MARK)
        await world.until("s", "stuck")
        async with (
            application(world, Grant(Role.READ, "anna", digest_of(token))) as (app, _, _),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://choreo.example") as client,
        ):
            seen = 0
            for path in sorted(paths_of(app._app.routes)):
                if "stream" in path or "events" in path:
                    continue  # these do not end
                answer = await client.get(path)
                assert MARK not in answer.text, path
                assert "anna" not in answer.text, path
                seen += 1
            assert seen > 20
            shown = await client.get("/api/v1/sagas/order/s", headers={"authorization": f"Bearer {token}"})
            assert MARK in shown.text, "so the saga is there to be seen"


def paths_of(routes: Any, before: str = "") -> Iterator[str]:
    """All that can be asked for, about the saga ``order/s``."""
    for route in routes:
        path = before + getattr(route, "path", "")
        inner = getattr(route, "routes", None)
        if inner:
            yield from paths_of(inner, path)
        else:
            path = re.sub(r"\{saga(:\w+)?\}", "order", path)
            path = re.sub(r"\{saga_id(:\w+)?\}", "s", path)
            yield re.sub(r"\{\w+(:\w+)?\}", "1", path)
