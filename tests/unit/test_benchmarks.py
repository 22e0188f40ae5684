"""The benchmark's own parts: what it makes up is a history that sagas can have, and what it finds is shown."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import long_log
from benchmarks.growth import RECORDS, TOPIC, History, Run, replay
from benchmarks.load import Load, apply
from benchmarks.render import BEGIN, END, render
from benchmarks.report import Report, read
from benchmarks.service import measure
from choreo.broker.memory import MemoryBroker
from choreo.broker.port import TopicPartition


async def test_made_up_sagas_finish_and_are_counted(tmp_path: Path) -> None:
    report = Report(tmp_path / "results.jsonl", quick=True)
    await replay(report, tmp_path, [40])
    (result,) = read(report.path)
    assert result["records"] == 40 * RECORDS
    assert result["per_second"] > 0


async def test_a_long_log_is_read_to_its_end_as_often_as_a_replay_asks(tmp_path: Path) -> None:
    report = Report(tmp_path / "results.jsonl", quick=True)
    await long_log.measure(report, 1_900)
    (result,) = read(report.path)
    assert (result["records"], result["sagas"]) == (2_000, 400)
    reader = await long_log.LongLog(await MemoryBroker.open("memory://read-again"), 600).reader()
    tp = TopicPartition(TOPIC, 0)
    for _ in range(2):
        reader.seek(tp, 250)
        messages = [message for _ in range(2) for message in await reader.poll(timeout_s=0.1)]
        assert [message.offset for message in messages] == list(range(200, 600))
        assert {len(message.key or b"") for message in messages} == {32}


async def test_the_saga_log_by_itself_folds_what_is_made_up(tmp_path: Path) -> None:
    run = Run(tmp_path, 2)
    costs = await run.feed((40, RECORDS, True), (40, 2, False), (40, RECORDS, True))
    assert len(costs) == 2
    assert min(costs) > 0


async def test_a_service_by_itself_answers_what_is_for_it() -> None:
    handled, dropped = await measure(40)
    assert handled > 0
    assert dropped > 0


def test_waves_are_side_by_side_and_in_order_for_each_saga() -> None:
    waves = list(History(3).waves(50))
    assert [len(wave) for wave in waves] == [40] * RECORDS + [10] * RECORDS
    offsets = [(message.partition, message.offset) for wave in waves for message in wave]
    assert len(set(offsets)) == 50 * RECORDS


async def test_a_rate_is_kept_and_looked_at_twice() -> None:
    looks: list[None] = []

    async def nothing() -> None:
        """Ends at once."""

    measured = await apply(Load(50, "a second"), nothing, seconds=0.2, warmup_s=0.05, look=lambda: looks.append(None))
    assert len(looks) == 2
    assert 1 <= len(measured.latencies_ms) <= 13


def test_results_are_written_between_the_marks(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    found = [
        {"benchmark": "growth: partitions", "number": 1, "cpu_us_each": 300.0},
        {"benchmark": "growth: partitions", "number": 4, "cpu_us_each": 310.5},
        {"benchmark": "service by itself", "cpu_us_handled": 80.5, "cpu_us_dropped": 2.5},
        {"section": "Kafka", "error": "no broker"},
    ]
    results.write_text("".join(json.dumps(result) + "\n" for result in found))
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    render(results, tmp_path)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "| growth: partitions | 4 | 310.5 |" in text
    assert "takes 80.5 µs of CPU for a record that is for it, and 2.5 µs" in text
    assert "**Kafka failed**: no broker" in text
    assert (tmp_path / "performance" / "partitions-cpu.svg").read_text().startswith("<?xml")
