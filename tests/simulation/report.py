"""What many runs have come to: the sums, as text for people and as JSON for pages that cite them."""

from __future__ import annotations

import json
import platform
import subprocess
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.simulation.faults import KINDS
from tests.simulation.world import Result


class Totals:
    """The sums over the runs that were added, in the order of their seeds.

    Attributes:
        counts: sagas, records, seconds of virtual time, and sagas by what was special about them.
        failing: what was wrong, by seed.
    """

    def __init__(self, sagas_each: int) -> None:
        self.sagas_each = sagas_each
        self.seeds = 0
        self.first = 0
        self.counts: Counter[str] = Counter()
        self.fired: Counter[str] = Counter()
        self.fired_in: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.weaker: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()
        self.paused: Counter[str] = Counter()
        self.children: Counter[str] = Counter()
        self.failing: dict[int, list[str]] = {}
        self._digest = sha256()

    def add(self, result: Result) -> None:
        if not self.seeds:
            self.first = result.seed
        self.seeds += 1
        self.counts.update(
            sagas=result.sagas,
            records=result.records,
            virtual_s=round(result.virtual_s),
            contended=result.contended,
            repeated=result.repeated,
            given_up=result.given_up,
        )
        self.fired += result.fired
        self.fired_in.update(kind for kind, times in result.fired.items() if times)
        self.outcomes += result.outcomes
        self.weaker += result.weaker
        self.cancelled += result.cancelled
        self.paused += result.paused
        self.children += result.children
        self._digest.update(result.digest.encode())
        if result.violations:
            self.failing[result.seed] = result.violations

    @property
    def never_fired(self) -> list[str]:
        return [kind for kind in KINDS if not self.fired[kind]]

    def text(self, took_s: float) -> str:
        """The sums, as lines."""
        counts, sagas = self.counts, self.counts["sagas"]
        lines = [
            f"{sagas} sagas: {_listed(self.outcomes)}; {counts['records']} records",
            f"sub-sagas beside them: {_listed(self.children)}",
            f"{counts['virtual_s'] / 3600:.1f} h of virtual time in {took_s:.0f} s ({sagas / took_s:.0f} sagas/s)",
            f"faults fired: {sum(self.fired.values())}; of each kind, and in how many runs:",
            *(f"  {kind:26} {self.fired[kind]:10} {self.fired_in[kind]:8}" for kind in KINDS),
            f"kinds that never fired: {', '.join(self.never_fired) or 'none'}",
            f"sagas in which a step completed in time after it was given up: {counts['given_up']}",
            f"steps cancelled because their saga had turned back, by effect: {_listed(self.cancelled)}",
            f"pauses, and triggers that were held: {_listed(self.paused)}",
            f"sagas under weaker promises: {counts['contended']} contended, {counts['repeated']} repeated",
            f"  needed for: {_listed(self.weaker)}",
            f"all courses together: {self._digest.hexdigest()[:16]}",
            f"violations: {len(self.failing)} of {self.seeds} seeds",
        ]
        if not self.failing and sagas:
            lines.append(
                f"so, with 95 % confidence, under these faults fewer than {3_000_000 / sagas:.3g} in a million sagas "
                "break a promise"
            )
        return "\n".join(lines)

    def save(self, path: Path, took_s: float) -> None:
        """Write all of it as JSON."""
        found: dict[str, Any] = {
            "commit": _commit(),
            "python": platform.python_version(),
            "seeds": {"first": self.first, "count": self.seeds, "sagas_each": self.sagas_each},
            "took_s": round(took_s, 1),
            "counts": dict(sorted(self.counts.items())),
            "outcomes": dict(sorted(self.outcomes.items())),
            "children": dict(sorted(self.children.items())),
            "faults": {kind: {"fired": self.fired[kind], "runs": self.fired_in[kind]} for kind in KINDS},
            "never_fired": self.never_fired,
            "cancelled": dict(sorted(self.cancelled.items())),
            "weaker_promises_needed": dict(sorted(self.weaker.items())),
            "digest": self._digest.hexdigest()[:16],
            "failing": {str(seed): violations for seed, violations in self.failing.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n")


def failure(result: Result, sagas: int) -> str:
    """What is wrong with a run, and how to see it again."""
    shown = "\n".join(f"  {violation[:600]}" for violation in result.violations[:5])
    return (
        f"seed {result.seed}: {len(result.violations)} violations\n{shown}\n"
        f"again: python -m tests.simulation --seed {result.seed} --sagas {sagas} --trace"
        f"{' --inbox' if result.inbox else ''}{' --pauses' if result.paused.total() else ''}"
    )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _commit() -> str:
    """The commit that was run; ``+`` where files differ from it, empty where there is no repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return described.stdout.strip()
