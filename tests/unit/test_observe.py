"""What a process shows of itself: metrics, HTTP, and log output."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import generate_latest

from choreo.observe.http import HEAD_BYTES_MAX, HttpServer
from choreo.observe.log import about, about_from_here, escape, set_up_logging, trace_id_of
from choreo.observe.metrics import Metrics


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_metrics_follow_the_naming_conventions() -> None:
    rows = Metrics().table()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    for row in rows:
        assert re.fullmatch(r"choreo_[a-z_]+", row.name), row
        assert row.name.endswith("_total") == (row.kind == "counter"), row
        assert row.kind != "histogram" or row.name.endswith("_seconds"), row
        assert row.about[0].isupper(), row
        assert row.about.endswith("."), row


def test_no_label_can_grow_without_bound() -> None:
    allowed = {"saga", "step", "outcome", "phase", "result", "topic", "partition", "group", "reason", "source", "kind"}
    build = {"version", "python", "aiokafka", "loop"}
    for row in Metrics().table():
        assert set(row.labels) <= (build if row.name == "choreo_build_info" else allowed), row
        assert "partition" not in row.labels or row.name == "choreo_consumer_lag_records", row


def test_each_object_counts_on_its_own() -> None:
    one, other = Metrics(), Metrics()
    one.sagas_started.labels("order").inc()
    assert sample(one, "choreo_sagas_started_total", saga="order") == 1
    assert sample(other, "choreo_sagas_started_total", saga="order") is None


def test_outcomes_and_phases_of_a_contract_are_shown_from_the_start() -> None:
    metrics = Metrics()
    metrics.init_saga("order")
    for outcome in ("completed", "compensated"):
        assert sample(metrics, "choreo_sagas_finished_total", saga="order", outcome=outcome) == 0
    for phase in ("forward", "compensating", "stuck"):
        assert sample(metrics, "choreo_sagas_in_progress", saga="order", phase=phase) == 0


def test_the_lag_of_a_partition_is_dropped_when_it_is_given_up() -> None:
    metrics = Metrics()
    metrics.consumer_lag.labels("choreo.order", "1", "g").set(3)
    metrics.drop_partition("choreo.order", 1, "g")
    metrics.drop_partition("choreo.order", 1, "g")
    assert sample(metrics, "choreo_consumer_lag_records", topic="choreo.order", partition="1", group="g") is None


def test_build_and_process_are_shown() -> None:
    metrics = Metrics(with_process=True)
    metrics.show_build(loop="asyncio")
    text = generate_latest(metrics.registry).decode()
    assert re.search(r'choreo_build_info\{aiokafka="[^"]+",loop="asyncio",python="3[^"]+",version="[^"]+"\} 1.0', text)
    assert "python_info" in text


class Client:
    """One connection, and the answers that come over it."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection(self.server.host, self.server.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    async def send(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        return int(status.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def get(self, target: str, *more: str) -> tuple[int, dict[str, str], bytes]:
        lines = [f"GET {target} HTTP/1.1", "host: localhost", *more, "", ""]
        return await self.send("\r\n".join(lines).encode())

    async def is_closed(self) -> bool:
        return await self.reader.read() == b""


class Served:
    """A server with a switch for readiness."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.reason: str | None = "no partitions yet"

    def server(self) -> HttpServer:
        return HttpServer(self.metrics, not_ready_because=lambda: self.reason)


async def test_metrics_are_served_as_text_and_as_open_metrics_if_asked() -> None:
    served = Served()
    served.metrics.init_saga("order")
    async with served.server() as server, Client(server) as client:
        status, headers, body = await client.get("/metrics")
        assert (status, headers["content-type"][:10]) == (200, "text/plain")
        assert b'choreo_sagas_started_total{saga="order"} 0.0' in body
        _, headers, body = await client.get("/metrics", "accept: application/openmetrics-text; version=1.0.0")
        assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert body.endswith(b"# EOF\n")


async def test_health_is_the_loop_and_readiness_says_why_not() -> None:
    served = Served()
    async with served.server() as server, Client(server) as client:
        assert server.host == "127.0.0.1"
        assert (await client.get("/healthz"))[0] == 200
        status, _, body = await client.get("/readyz")
        assert (status, json.loads(body)) == (503, {"ready": False, "reason": "no partitions yet"})
        served.reason = None
        status, _, body = await client.get("/readyz?verbose")
        assert (status, json.loads(body)) == (200, {"ready": True})
        assert (await client.get("/elsewhere"))[0] == 404


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"POST /metrics HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello", 405),
        (b"GET /metrics HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello", 400),
        (b"GET /metrics HTTP/2.0\r\n\r\n", 400),
        (b"GET metrics HTTP/1.1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nname : value\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nlong: " + b"x" * HEAD_BYTES_MAX * 2 + b"\r\n\r\n", 431),
    ],
)
async def test_requests_that_are_no_plain_get_are_refused(request_bytes: bytes, expected: int) -> None:
    async with Served().server() as server, Client(server) as client:
        status, headers, _ = await client.send(request_bytes)
        assert status == expected
        if expected == 405:
            assert headers["allow"] == "GET"


async def test_a_connection_is_kept_or_closed_as_the_client_wants() -> None:
    async with Served().server() as server:
        async with Client(server) as client:
            assert (await client.get("/healthz"))[1]["connection"] == "keep-alive"
            assert (await client.get("/healthz", "connection: close"))[1]["connection"] == "close"
            assert await client.is_closed()
        async with Client(server) as client:
            await client.send(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert await client.is_closed()


async def test_a_slow_client_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.observe.http.READ_TIMEOUT_S", 0.05)
    async with Served().server() as server, Client(server) as client:
        client.writer.write(b"GET /healthz HT")
        assert await client.is_closed()


async def test_connections_beyond_the_limit_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.observe.http.CONNECTIONS_MAX", 1)
    async with Served().server() as server, Client(server) as first:
        await first.get("/healthz")
        async with Client(server) as second:
            assert await second.is_closed()
        assert (await first.get("/healthz"))[0] == 200


async def test_closing_the_server_drops_what_is_connected_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    server = Served().server()
    await server.start()
    async with Client(server) as client:
        await client.get("/healthz")
        await server.close()
        await server.close()
        assert await client.is_closed()
    assert asyncio.all_tasks() == before


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield io.StringIO()
    root.setLevel(level)
    root.handlers[:] = handlers


def raised(message: str) -> ValueError:
    """An exception with a traceback."""
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int(message)
    caught.value.args = (message,)
    return caught.value


def lines_of(output: io.StringIO) -> list[str]:
    return output.getvalue().splitlines()


def test_console_lines_have_time_level_name_message_and_fields(output: io.StringIO) -> None:
    set_up_logging("info", stream=output)
    logging.getLogger("choreo.step").info(
        "charged %s", "10", extra={"saga_id": "s-1", "step": "charge_card", "other": 1}
    )
    (line,) = lines_of(output)
    expected = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO choreo.step: charged 10 saga_id=s-1 step=charge_card"
    assert re.fullmatch(expected, line)


def test_json_lines_are_objects_with_fields_and_the_traceback(output: io.StringIO) -> None:
    set_up_logging("DEBUG", "json", stream=output)
    error = raised("first\nsecond \x1b[31m")
    logging.getLogger("choreo").error("failed", exc_info=error, extra={"offset": 7, "trace_id": "0af7"})
    (line,) = lines_of(output)
    said: dict[str, Any] = json.loads(line)
    assert (said["level"], said["logger"], said["message"]) == ("ERROR", "choreo", "failed")
    assert (said["offset"], said["trace_id"]) == (7, "0af7")
    assert said["exception"][0] == "Traceback (most recent call last):"
    assert said["exception"][-1] == r"second \x1b[31m"


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_nobody_can_forge_a_line_or_reach_the_terminal(log_format: Any, output: io.StringIO) -> None:
    set_up_logging("INFO", log_format, stream=output)
    hostile = "a\n2026-11-22T00:00:00.000Z INFO choreo: all is well\x1b[2J\x9b2J\u202e\u2028\x00"
    logging.getLogger("choreo").error(hostile, exc_info=raised(hostile), extra={"saga_id": hostile})
    text = output.getvalue()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)
    forged = [line for line in lines_of(output) if line.startswith("2026-11-22T00:00:00.000Z")]
    assert forged == []


async def test_a_task_names_once_what_all_its_lines_are_about(output: io.StringIO) -> None:
    set_up_logging("INFO", stream=output)
    logger = logging.getLogger("choreo")

    async def work(saga_id: str) -> None:
        with about(saga_id=saga_id):
            await asyncio.sleep(0)
            with about(step="charge_card"):
                logger.info("inner")
            logger.info("outer", extra={"saga_id": "another"})
        about_from_here(step="refund_card")
        logger.info("behind")

    await asyncio.gather(work("s-1"), work("s-2"))
    logger.info("neither")
    assert [line.partition(": ")[2] for line in lines_of(output)] == [
        "inner saga_id=s-1 step=charge_card",
        "outer saga_id=another",
        "behind step=refund_card",
        "inner saga_id=s-2 step=charge_card",
        "outer saga_id=another",
        "behind step=refund_card",
        "neither",
    ]


def test_setting_up_replaces_earlier_handlers_and_refuses_unknown_levels(output: io.StringIO) -> None:
    set_up_logging("INFO", stream=io.StringIO())
    set_up_logging("WARNING", stream=output)
    logging.getLogger("choreo").warning("once")
    assert len(lines_of(output)) == 1
    with pytest.raises(ValueError, match="LOUD"):
        set_up_logging("loud")


def test_texts_are_escaped_and_trace_ids_are_found() -> None:
    assert escape("plain ü 漢") == "plain ü 漢"
    assert escape("a\r\n\x85") == r"a\r\n\x85"
    assert trace_id_of(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") == "0af7651916cd43dd8448eb211c80319c"
    assert trace_id_of(b"nonsense") is None
    assert trace_id_of(None) is None
