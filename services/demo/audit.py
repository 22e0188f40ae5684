"""Holds the services' databases against the log: every saga one outcome, every effect standing or undone once.

It trusts nothing that the runtimes say of themselves: it reads the topic's records and the databases' rows, and knows
only the contract.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from choreo.messages.records import (
    Compensate,
    SagaCompensated,
    SagaCompleted,
    SagaStarted,
    StepCompensated,
    StepCompleted,
)
from services.demo.log import History
from services.order import ORDER

EFFECTS = {
    "reserve_stock": ("inventory", "reservations"),
    "charge_card": ("payment", "charges"),
    "book_carrier": ("shipping", "bookings"),
    "issue_invoice": ("payment", "invoices"),
    "notify_customer": ("notification", "notices"),
    "hand_over": ("shipping", "parcels"),
}
"""Where each step's effects are: which database, which table."""


class Row(NamedTuple):
    """An effect in a service's database. ``state`` is ``standing``, ``undone`` or ``barred`` (a tombstone)."""

    step: str
    saga_id: str
    key: str
    state: str


@dataclass
class Databases:
    """What the services have written.

    Attributes:
        stock: item → (delivered, on hand).
        reserved: item → pieces in standing reservations.
        mails: saga → mails sent.
    """

    rows: list[Row]
    stock: dict[str, tuple[int, int]]
    reserved: dict[str, int]
    mails: dict[str, int]


@dataclass
class Findings:
    """What the audit saw; it is passed if there are no ``problems``."""

    problems: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    effects: Counter[str] = field(default_factory=Counter)
    records: int = 0
    outcomes_repeated: int = 0
    steps_run_again: int = 0

    @property
    def counts(self) -> str:
        return (
            f"{sum(self.outcomes.values())} sagas: {_listed(self.outcomes)}; effects: {_listed(self.effects)}; "
            f"{self.records} records; said again: {self.steps_run_again} steps, {self.outcomes_repeated} outcomes"
        )

    def __str__(self) -> str:
        """A line of counts, and a line for each problem."""
        return "\n".join([self.counts, *(f"PROBLEM {problem}" for problem in self.problems)])


def read_databases(directory: Path) -> Databases:
    """All rows of the four services' databases in ``directory``. One that a service has not made yet is empty."""
    rows: list[Row] = []
    stock: dict[str, tuple[int, int]] = {}
    reserved: dict[str, int] = {}
    mails: dict[str, int] = {}
    for name in sorted({database for database, _ in EFFECTS.values()}):
        file = directory / f"{name}.db"
        if not file.exists():
            continue
        with closing(sqlite3.connect(file, timeout=30)) as db:
            there = {table for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for step, (database, table) in EFFECTS.items():
                if database == name and table in there:
                    found = db.execute(f"SELECT saga_id, key, state FROM {table} ORDER BY id")  # noqa: S608 -- of ours
                    rows += [Row(step, *row) for row in found]
            if name == "inventory" and "stock" in there:
                stock = {item: (delivered, on_hand) for item, delivered, on_hand in db.execute("SELECT * FROM stock")}
                standing = "SELECT item, sum(quantity) FROM reservations WHERE state = 'standing' GROUP BY item"
                reserved = dict(db.execute(standing))
            if name == "notification" and "mails" in there:
                mails = dict(db.execute("SELECT saga_id, count(*) FROM mails GROUP BY saga_id"))
    return Databases(rows, stock, reserved, mails)


def audit(
    histories: Mapping[str, History], databases: Databases, *, saga_ids: Collection[str] | None = None
) -> Findings:
    """Hold one against the other. ``saga_ids`` limits it to some sagas of a log that has others, too."""
    findings = Findings()
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in databases.rows:
        rows[row.saga_id].append(row)
    if saga_ids is None:
        saga_ids = histories.keys() | rows.keys()
    for saga_id in sorted(saga_ids):
        history = histories.get(saga_id, [])
        findings.records += len(history)
        findings.effects.update(row.state for row in rows[saga_id])
        problems = _audit_saga(history, rows[saga_id], databases.mails.get(saga_id, 0), findings)
        findings.problems += [f"{saga_id}: {problem}" for problem in problems]
    for item, (delivered, on_hand) in databases.stock.items():
        missing = delivered - on_hand - databases.reserved.get(item, 0)
        if missing:
            findings.problems.append(f"stock of {item}: {missing} pieces are neither on hand nor reserved")
    return findings


def _audit_saga(history: History, rows: list[Row], mails: int, findings: Findings) -> list[str]:
    records = [line.record for line in history]
    if not any(isinstance(record, SagaStarted) for record in records):
        return ["effects, but no start in the log"] if rows else ["no start in the log"]
    outcomes = [record for record in records if isinstance(record, SagaCompleted | SagaCompensated)]
    if not outcomes:
        return [f"no outcome; its last record is {type(records[-1]).__name__}"]
    outcome = outcomes[0]
    findings.outcomes["completed" if isinstance(outcome, SagaCompleted) else "compensated"] += 1
    findings.outcomes_repeated += len(outcomes) - 1
    problems = []
    if any(other != outcome for other in outcomes):
        problems.append("two different outcomes")
    runs = defaultdict(set)
    for record in records:
        if isinstance(record, StepCompleted):
            runs[record.step].add(record.run)
    findings.steps_run_again += sum(len(run_ids) - 1 for run_ids in runs.values())
    by_step: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_step[row.step].append(row)
    for step in EFFECTS:
        states = [row.state for row in by_step[step]]
        problems += _audit_effect(step, states, completed=isinstance(outcome, SagaCompleted), returned=step in runs)
    if isinstance(outcome, SagaCompensated):
        problems += _audit_order(history)
    notices = [row.state for row in by_step["notify_customer"]]
    due = notices.count("standing") + 2 * notices.count("undone")
    if mails != due:
        problems.append(f"{mails} mails were sent, a notice and an apology for each undone one make {due}")
    return problems


def _audit_effect(step: str, states: list[str], *, completed: bool, returned: bool) -> list[str]:
    if completed:
        return [] if states == ["standing"] else [f"completed, but the effects of {step} are {states or 'missing'}"]
    if "standing" in states:
        return [f"compensated, but an effect of {step} is standing"]
    if states.count("undone") > 1:
        return [f"{states.count('undone')} effects of {step} were undone, one was made"]
    if returned and "undone" not in states:
        return [f"{step} returned an effect, but its database has {states or 'none'}"]
    return []


def _audit_order(history: History) -> list[str]:
    """Reverse order: an effect is asked to be undone after all effects that built on it were.

    What is asked after the outcome is a repair: a service that died in the middle of a step cannot vouch that it left
    nothing behind, and says so when it is back. Then there must be nothing to undo any more.
    """
    asked: dict[str, int] = {}
    undone: dict[str, int] = {}
    waiting: set[str] = set()
    problems = []
    has_outcome = False
    for position, (_, _, record) in enumerate(history):
        match record:
            case Compensate(step=step):
                asked.setdefault(step, position)
                if not has_outcome:
                    waiting.add(step)
            case StepCompensated(step=step):
                waiting.discard(step)
                if record.undone:
                    undone.setdefault(step, position)
            case SagaCompensated():
                has_outcome = True
                problems += [f"compensated, but {step} has not answered" for step in sorted(waiting)]
                waiting.clear()
    return problems + [
        f"{step} was compensated before {later}, which built on it"
        for step in undone
        for later in ORDER.graph.descendants[step]
        if undone.get(later, -1) > asked.get(step, -1)
    ]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
