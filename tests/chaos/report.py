"""A run's report for people: a section of Markdown, figures first."""

from __future__ import annotations

from tests.chaos.run import Report


def markdown(report: Report, command: str) -> str:
    """The section, with the command that gave the figures."""
    settings = report.settings
    inbox = "with" if all(report.inbox.values()) else "without"
    rest_s = max(0.0, report.ended_s - report.placed_s)
    faults = sum(report.faults.values())
    lines = [
        f"### {settings.sagas:,} sagas, {faults} faults, brokers: {settings.nodes}, seed {settings.seed}",
        "",
        f"`{command}`, {report.began}, {report.machine}; services {inbox} an inbox.",
        f"{report.took_s / 60:.0f} minutes in all: sagas and faults over {report.placed_s:.0f} s; the last saga ended",
        f"{rest_s:.0f} s after the last fault was mended.",
        "",
        "| fault | times | while sagas were on their way |",
        "| --- | ---: | ---: |",
    ]
    lines += [
        f"| {kind} | {count} | {report.faults_at_work.get(kind, 0)} |" for kind, count in sorted(report.faults.items())
    ]
    lines += [
        "",
        f"- Outcomes: {_listed(report.outcomes)}; {report.turned} other than planned (a fault may come between).",
        f"- Effects in the services' databases: {_listed(report.effects)}.",
        f"- Said again under faults: {report.steps_said_again} steps, {report.outcomes_said_again} outcomes.",
        f"- The topic's {report.replayed:,} records were appended once more at the end: the audit found the same.",
        f"- {report.answers_lost_bytes:,} bytes of answers were lost; {report.dead_letters} dead letters;",
        f"  {len(report.died)} times a process ended by itself (one that finds no broker for 10 s at its start does).",
        f"- Violations: {len(report.violations)}. {bound(report)}",
    ]
    if report.weaker:
        said = "undone out of order, which without an inbox is not promised; nothing was left standing"
        lines.append(f"- {len(report.weaker)} effects were {said}.")
    lines += [f"  - {problem}" for problem in report.violations[:20]]
    return "\n".join(lines) + "\n"


def bound(report: Report) -> str:
    """What a run without a violation allows to say, by the rule of three."""
    if report.violations:
        return "The run has failed."
    sagas = report.settings.sagas
    return f"None in {sagas:,} sagas: under these faults fewer than 1 in {sagas // 3:,} (95 %)."


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "none"
