"""Writes docs/metrics.md from the table of metrics: ``python -m deploy.metrics_page``."""

# ruff: noqa: INP001 -- run as a module
from __future__ import annotations

from pathlib import Path
from typing import get_args

from choreo.observe import metrics
from choreo.observe.metrics import MetricRow, Metrics

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"

HEAD = """# Metrics

Every process serves them at `/metrics` when it has a port (`--http-port`): Prometheus text, or OpenMetrics with
exemplars if the scraper asks for that. This page is written from the table in `choreo/observe/metrics.py` by
`make metrics-page`.

- Labels are closed sets: names of sagas, steps, topics and groups, and the words below. A saga's id is never one.
- Series that are known beforehand are there from the start, at zero, so that the first count is not missed by a rate.
- Counters of the saga-log count a record once over all its instances and restarts (around a crash a batch may count
  twice); gauges are as the partitions of this instance are now, so sum them over instances.
- `choreo_saga_duration_seconds`, `choreo_step_duration_seconds`, `choreo_compensation_duration_seconds` and
  `choreo_sagas_finished_total` carry the trace id of one saga as an exemplar, where sagas are traced.
- `deploy/prometheus/alerts.yml` has the alerts, `deploy/grafana` a dashboard; both name these metrics and no others.

Beside these, each process shows Python's own (`process_*`, `python_*`).
"""

PARTS = {"saga-log": "Of the saga-log", "services": "Of the step services", "all": "Of both"}

WORDS = {
    "`outcome`": metrics.Outcome,
    "`phase`": metrics.Phase,
    "`result` of `choreo_step_events_total`": metrics.StepResult,
    "`result` of attempts": metrics.AttemptResult,
    "`result` of `choreo_compensations_total`": metrics.CompensationResult,
    "`result` of `choreo_messages_produced_total`": metrics.SendResult,
    "`reason` of `choreo_dead_letters_total`": metrics.DeadLetterReason,
    "`source`": metrics.ReplaySource,
    "`kind`": metrics.ObserverKind,
}


def page() -> str:
    """The page as it has to be."""
    rows = Metrics().table()
    parts = [HEAD]
    for part, title in PARTS.items():
        lines = "\n".join(_line(row) for row in rows if row.of == part)
        parts.append(
            f"## {title}\n\n| metric | kind | unit | labels | what it is |\n| --- | --- | --- | --- | --- |\n{lines}\n"
        )
    buckets = "\n".join(
        f"- `{row.name}`: {', '.join(f'{bound:g}' for bound in row.buckets)}" for row in rows if row.buckets
    )
    words = "\n".join(f"- {name}: {', '.join(f'`{word}`' for word in get_args(kind))}" for name, kind in WORDS.items())
    parts += [f"## Buckets\n\nUpper bounds, in seconds.\n\n{buckets}\n", f"## Words in labels\n\n{words}\n"]
    return "\n".join(parts)


def _line(row: MetricRow) -> str:
    labels = ", ".join(f"`{label}`" for label in row.labels) or "-"
    return f"| `{row.name}` | {row.kind} | {row.unit or '-'} | {labels} | {row.about} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
