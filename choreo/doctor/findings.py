"""What an examination found: each finding with what to do about it."""

from __future__ import annotations

from typing import Literal

import msgspec

Check = Literal[
    "topic_missing",
    "topic_partitions",
    "topic_timestamps",
    "topic_compaction",
    "topic_retention",
    "topic_record_size",
    "topic_replication",
    "contract_missing",
    "contract_differs",
    "contract_unreadable",
    "step_without_service",
    "step_with_two_services",
    "group_without_members",
    "group_partitions",
    "group_behind",
    "version_unserved",
    "store_unreachable",
    "store_of_another_log",
    "store_behind",
    "clock_skew",
    "not_examined",
]
"""What a finding is about. Programs branch on this; texts may change."""

Level = Literal["error", "warning", "note"]
"""``error``: sagas are or will be lost, stuck or undone late. ``warning``: they may be. ``note``: for the record."""

_ORDER = ("error", "warning", "note")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it has to be.

    Attributes:
        subject: a topic, a group, a step as ``order@2/charge_card``, a contract, a store, a clock.
        text: what is wrong and what it leads to.
        fix: what to do, a command where there is one.
    """

    check: Check
    level: Level
    subject: str
    text: str
    fix: str


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of an examination.

    Attributes:
        sagas: the names that were examined.
        checks: how many single checks were made.
        findings: errors first.
    """

    now_ms: int
    sagas: tuple[str, ...]
    checks: int
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """No error was found."""
        return not any(finding.level == "error" for finding in self.findings)


class Notes:
    """Findings as they are made, and how many checks there were."""

    def __init__(self) -> None:
        self.checks = 0
        self._findings: list[Finding] = []

    def check(self, check: Check, subject: str, problem: str | None, fix: str, *, level: Level = "error") -> bool:
        """Count a check, and note the problem if there is one. True if all is well."""
        self.checks += 1
        if problem is not None:
            self._findings.append(Finding(check=check, level=level, subject=subject, text=problem, fix=fix))
        return problem is None

    def diagnosis(self, *, now_ms: int, sagas: tuple[str, ...]) -> Diagnosis:
        """All of it, the worst first."""
        findings = sorted(self._findings, key=lambda one: _ORDER.index(one.level))
        return Diagnosis(now_ms=now_ms, sagas=sagas, checks=self.checks, findings=tuple(findings))
