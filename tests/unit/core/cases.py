"""Which small sagas are explored, and what may happen to each: a test run's worth, and many times that."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from choreo.contract.policy import CompensateOnFailure, RecoverFrom
from choreo.contract.saga import Saga
from tests.unit.core.folding import LINEAR, PARALLEL, PARALLEL_CHAIN, Only, contract_of
from tests.unit.core.world import Budget, Habits

GRAPHS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "a-b-c": LINEAR,
    "a-[b,c]-d": PARALLEL,
    "a-[b,c-e]-d": PARALLEL_CHAIN,
}

INBOX = Habits()

FORGETFUL = Habits(pause=False)

NO_INBOX = Habits(inbox=False, replicas=False)
"""Without an inbox the order is only promised where no two replicas take the same trigger at once."""


class Case(NamedTuple):
    """A small saga, what may happen to it, and how its workers behave."""

    graph: str
    budget: Budget
    habits: Habits = INBOX
    bare: tuple[str, ...] = ()
    policy: CompensateOnFailure = "if_unknown"
    recover_from: tuple[RecoverFrom, ...] | None = ("crashed", "timed_out")
    pivots: tuple[str, ...] = ()
    awaiting: tuple[str, ...] = ()
    scheduled: bool = False
    paused: bool = False
    only: Mapping[str, Only] = MappingProxyType({})
    cancelled: tuple[str, ...] = ()

    @property
    def contract(self) -> Saga:
        return contract_of(
            GRAPHS[self.graph],
            bare=self.bare,
            policy=self.policy,
            recover_from=self.recover_from,
            pivots=self.pivots,
            awaiting=self.awaiting,
            only=self.only,
            cancelled=self.cancelled,
        )

    def __str__(self) -> str:
        parts = [self.graph, *(f"{name}={count}" for name, count in self.budget._asdict().items() if count)]
        if not self.habits.inbox:
            parts.append("no inbox")
        if self.policy != "if_unknown":
            parts.append(f"compensate_on_failure={self.policy}")
        if self.recover_from != ("crashed", "timed_out"):
            parts.append(f"recover_from={self.recover_from and ','.join(self.recover_from)}")
        for what, steps in (
            ("pivot", self.pivots),
            ("waits for a signal", self.awaiting),
            ("cancelled with a sibling", self.cancelled),
        ):
            parts += [f"{what}: {', '.join(steps)}"] if steps else []
        if self.scheduled:
            parts.append("scheduled")
        if self.paused:
            parts.append("paused before its start")
        if not self.habits.pause:
            parts.append("workers know of no pause")
        parts += [f"{step} only if {condition}" for step, condition in self.only.items()]
        if self.bare:
            parts.append(f"without compensation: {', '.join(self.bare)}")
        return " ".join(parts)


CASES = (
    Case("a-b-c", Budget(crash=1, failure=1, timeout=1)),
    Case("a-b-c", Budget(crash=2, failure=1)),
    Case("a-b-c", Budget(failure=1, timeout=1, cancel=2, retry=1)),
    Case("a-b-c", Budget(failure=2, retry=2, continues=2)),
    Case("a-b-c", Budget(failure=2, timeout=1, continues=2), recover_from=("rejected",)),
    Case("a-b-c", Budget(failure=2, timeout=1, continues=2), policy="always", recover_from=None),
    Case("a-b-c", Budget(failure=2, retry=1, undo_failure=1, act=1)),
    Case("a-b-c", Budget(crash=1, failure=1, undo_failure=1, act=1)),
    Case("a-b-c", Budget(failure=1, retry=1, takeover=1)),
    Case("a-b-c", Budget(failure=1, second_start=1, cancel=1)),
    Case("a-b-c", Budget(cancel=1, settle=2, undo_failure=1)),
    Case("a-b-c", Budget(failure=1, timeout=1, cancel=1, settle=1)),
    Case("a-b-c", Budget(crash=1, cancel=1, settle=1)),
    Case("a-b-c", Budget(cancel=1, settle=1, undo_failure=1, act=1)),
    Case("a-b-c", Budget(cancel=1, settle=1, takeover=1)),
    Case("a-b-c", Budget(crash=1, cancel=1, settle=1), bare=("a", "b")),
    Case("a-[b,c-e]-d", Budget(failure=1, settle=2)),
    Case("a-[b,c-e]-d", Budget(failure=1, settle=1, retry=1)),
    Case("a-b-c", Budget(crash=1, cancel=1, settle=1), NO_INBOX),
    Case("a-[b,c]-d", Budget(failure=1, timeout=1, cancel=1)),
    Case("a-[b,c]-d", Budget(failure=2, retry=1, continues=2)),
    Case("a-[b,c]-d", Budget(failure=2, continues=2), recover_from=("rejected", "crashed", "timed_out")),
    Case("a-[b,c]-d", Budget(failure=1, undo_failure=1, act=1)),
    Case("a-[b,c]-d", Budget(failure=1, timeout=1, retry=1), policy="always"),
    Case("a-[b,c]-d", Budget(crash=1, failure=1), bare=("b",)),
    Case("a-[b,c-e]-d", Budget(failure=1, timeout=1, continues=1)),
    Case("a-[b,c-e]-d", Budget(failure=2, retry=1)),
    Case("a-b-c", Budget(failure=2, timeout=1, cancel=2), pivots=("b",), bare=("b",)),
    Case("a-b-c", Budget(failure=3, cancel=1, act=1, undo_failure=1), pivots=("b",), bare=("b",)),
    Case("a-b-c", Budget(failure=2, cancel=1, retry=1, continues=1), pivots=("b",)),
    Case("a-b-c", Budget(crash=1, failure=1, cancel=1), pivots=("b",)),
    Case("a-b-c", Budget(failure=3, act=1), pivots=("a", "c"), bare=("a", "b", "c")),
    Case("a-b-c", Budget(failure=1, timeout=1, takeover=1), pivots=("b",), bare=("b",)),
    Case("a-b-c", Budget(failure=1, cancel=1, takeover=1), pivots=("b",), bare=("b",)),
    Case("a-b-c", Budget(failure=1, cancel=1, second_start=1), pivots=("b",), bare=("b",)),
    Case("a-[b,c]-d", Budget(failure=2, timeout=1, cancel=1), pivots=("a",), bare=("a",)),
    Case("a-[b,c]-d", Budget(failure=2, cancel=1, retry=1), pivots=("d",), bare=("d",)),
    Case("a-[b,c-e]-d", Budget(failure=3, continues=1), pivots=("a",)),
    Case("a-b-c", Budget(failure=2, retry=2, cancel=1), only={"b": Only("a", "a1")}),
    Case("a-b-c", Budget(failure=2, retry=2, undo_failure=1), only={"b": Only("a", "a1", equal=False)}),
    Case("a-b-c", Budget(crash=1, failure=1, timeout=1), only={"b": Only("a", "a1", equal=False)}),
    Case("a-b-c", Budget(failure=2, continues=1, retry=1), only={"b": Only("a", "substitute", equal=False)}),
    Case(
        "a-b-c", Budget(failure=1, cancel=1, takeover=1), only={"b": Only("a", "a2"), "c": Only("b", "b1", equal=False)}
    ),
    Case("a-b-c", Budget(crash=1, failure=1, second_start=1, cancel=1), only={"a": Only("", 1), "c": Only("", 2)}),
    Case("a-[b,c]-d", Budget(failure=2, retry=2), only={"b": Only("a", "a1")}),
    Case("a-[b,c]-d", Budget(crash=1, failure=1), only={"b": Only("a", "a1", equal=False)}),
    Case("a-[b,c-e]-d", Budget(failure=1, timeout=1, retry=1), only={"c": Only("a", "a2"), "d": Only("c", "c2")}),
    Case("a-b-c", Budget(failure=2, cancel=1, act=1), pivots=("a",), bare=("a", "b"), only={"b": Only("a", "a1")}),
    Case("a-b-c", Budget(crash=1, failure=1, retry=1), NO_INBOX, only={"b": Only("a", "a1")}),
    Case("a-b-c", Budget(crash=1, failure=1, cancel=1), NO_INBOX, pivots=("b",)),
    Case("a-b-c", Budget(crash=1, failure=1, timeout=1), NO_INBOX),
    Case("a-b-c", Budget(crash=2, failure=1), NO_INBOX),
    Case("a-[b,c]-d", Budget(crash=1, failure=1), NO_INBOX),
    Case("a-b-c", Budget(crash=1, failure=1), awaiting=("b",)),
    Case("a-b-c", Budget(failure=2, retry=1, signal=1), awaiting=("b", "c"), only={"b": Only("a", "a2")}),
    Case("a-b-c", Budget(failure=1, cancel=1, retry=1, signal=1), awaiting=("a", "c")),
    Case("a-b-c", Budget(failure=1, continues=1, signal=1), awaiting=("b",), policy="always"),
    Case("a-b-c", Budget(takeover=1, signal=1), awaiting=("b",)),
    Case("a-b-c", Budget(failure=1, timeout=1, continues=1), awaiting=("b",)),
    Case("a-b-c", Budget(failure=1, cancel=1, second_start=1), awaiting=("a",)),
    Case("a-[b,c]-d", Budget(failure=1, retry=1, cancel=1), awaiting=("b", "d")),
    Case("a-[b,c]-d", Budget(failure=2, act=1), awaiting=("a", "b"), pivots=("a",), bare=("b",)),
    Case("a-b-c", Budget(failure=1, cancel=1, second_start=1), scheduled=True),
    Case("a-b-c", Budget(cancel=1, takeover=1), scheduled=True),
    Case("a-[b,c]-d", Budget(crash=1, failure=1), awaiting=("d",), scheduled=True),
    Case("a-b-c", Budget(pause=1, failure=1, cancel=1, retry=1)),
    Case("a-b-c", Budget(pause=1, failure=1, cancel=1, retry=1), FORGETFUL),
    Case("a-b-c", Budget(pause=1, crash=1, failure=1)),
    Case("a-b-c", Budget(pause=1, crash=1, cancel=1), FORGETFUL),
    Case("a-b-c", Budget(pause=1, timeout=1, cancel=1, undo_failure=1), FORGETFUL),
    Case("a-b-c", Budget(pause=1, takeover=1, failure=1)),
    Case("a-b-c", Budget(pause=1, failure=1, cancel=1, act=1), pivots=("b",), bare=("b",)),
    Case("a-b-c", Budget(pause=1, second_start=1), FORGETFUL),
    Case("a-b-c", Budget(second_start=1, cancel=1), paused=True),
    Case("a-b-c", Budget(failure=1, cancel=1), FORGETFUL, paused=True),
    Case("a-b-c", Budget(pause=1, cancel=1, signal=1), scheduled=True, awaiting=("b",)),
    Case("a-[b,c-e]-d", Budget(pause=1, failure=1, continues=1)),
    Case("a-[b,c-e]-d", Budget(pause=1, failure=1, continues=1), FORGETFUL),
    Case("a-[b,c]-d", Budget(pause=1, crash=1, failure=1), NO_INBOX),
    Case("a-[b,c]-d", Budget(failure=1, timeout=1, cancel=1), cancelled=("b", "c")),
    Case("a-[b,c]-d", Budget(crash=1, failure=1), cancelled=("b", "c"), recover_from=None),
    Case("a-[b,c]-d", Budget(failure=2, retry=1, continues=2), cancelled=("b", "c")),
    Case("a-[b,c]-d", Budget(failure=1, undo_failure=1, act=1), cancelled=("c",), policy="always", recover_from=()),
    Case("a-[b,c]-d", Budget(failure=1, takeover=1), cancelled=("b", "c"), recover_from=None),
    Case("a-[b,c]-d", Budget(failure=1, retry=1, signal=1), cancelled=("b", "c"), awaiting=("c",)),
    Case("a-[b,c]-d", Budget(crash=1, failure=1), NO_INBOX, cancelled=("b", "c"), recover_from=None),
    Case("a-[b,c]-d", Budget(failure=2, cancel=1), cancelled=("b", "c"), pivots=("d",), bare=("d",)),
    Case("a-[b,c-e]-d", Budget(failure=1, settle=1), cancelled=("b", "c", "e"), recover_from=None),
    Case("a-[b,c-e]-d", Budget(failure=1, retry=1), cancelled=("b", "e"), recover_from=None),
    Case("a-[b,c-e]-d", Budget(failure=1, pause=1), cancelled=("c", "e"), recover_from=None),
    Case("a-[b,c-e]-d", Budget(failure=1, pause=1, cancel=1), FORGETFUL, cancelled=("c", "e"), recover_from=None),
)

LARGE = (
    Case("a-b-c", Budget(crash=1, failure=1, timeout=1, takeover=1)),
    Case("a-b-c", Budget(crash=2, failure=1, takeover=1)),
    Case("a-b-c", Budget(crash=2, failure=2, timeout=1)),
    Case("a-b-c", Budget(failure=1, timeout=1, cancel=1, retry=1, continues=1, takeover=1, undo_failure=1)),
    Case("a-b-c", Budget(crash=1, failure=1, cancel=1, retry=1, takeover=1, undo_failure=1)),
    Case("a-b-c", Budget(crash=1, failure=1, takeover=1, undo_failure=1, second_start=1)),
    Case("a-b-c", Budget(crash=1, failure=1, timeout=1, retry=1, undo_failure=1, act=1)),
    Case("a-[b,c]-d", Budget(failure=1, timeout=1, cancel=1, retry=1, continues=1, takeover=1)),
    Case("a-[b,c]-d", Budget(failure=2, timeout=1, retry=1, continues=1, undo_failure=1)),
    Case("a-[b,c]-d", Budget(crash=1, failure=1, timeout=1, takeover=1)),
    Case("a-[b,c]-d", Budget(failure=1, cancel=1, takeover=1, second_start=1)),
    Case("a-[b,c]-d", Budget(crash=1, failure=2, retry=1, continues=2)),
    Case("a-[b,c]-d", Budget(crash=1, failure=1, timeout=1), policy="always"),
    Case("a-[b,c]-d", Budget(crash=1, failure=2, timeout=1), bare=("b",)),
    Case("a-[b,c-e]-d", Budget(crash=1, failure=1, timeout=1)),
    Case("a-[b,c-e]-d", Budget(failure=1, timeout=1, cancel=1, continues=1)),
    Case("a-[b,c-e]-d", Budget(failure=2, retry=1, continues=1, undo_failure=1)),
    Case("a-[b,c-e]-d", Budget(failure=2, timeout=1, retry=2, continues=1)),
    Case("a-b-c", Budget(crash=1, failure=2, timeout=1, cancel=1, takeover=1), pivots=("b",), bare=("b",)),
    Case("a-[b,c]-d", Budget(failure=3, cancel=1, continues=1, undo_failure=1, act=1), pivots=("a",)),
    Case("a-[b,c]-d", Budget(crash=1, failure=2, cancel=1), pivots=("a",)),
    Case("a-[b,c-e]-d", Budget(failure=3, cancel=1, retry=1, act=1), pivots=("a", "d")),
    Case("a-[b,c-e]-d", Budget(failure=2, cancel=1, takeover=1, second_start=1), pivots=("a",), bare=("a",)),
    Case("a-[b,c]-d", Budget(crash=1, failure=2, retry=1), NO_INBOX, pivots=("a",)),
    Case("a-b-c", Budget(crash=1, failure=2, retry=2, takeover=1), only={"b": Only("a", "a1")}),
    Case("a-b-c", Budget(crash=1, failure=2, timeout=1, retry=2), only={"b": Only("a", "a2", equal=False)}),
    Case("a-[b,c]-d", Budget(failure=2, timeout=1, retry=1, continues=1), only={"b": Only("a", "a1", equal=False)}),
    Case("a-[b,c-e]-d", Budget(crash=1, failure=2, retry=2), only={"c": Only("a", "a2"), "e": Only("c", "c2")}),
    Case("a-[b,c]-d", Budget(crash=1, failure=2, retry=2), NO_INBOX, only={"b": Only("a", "a2")}),
    Case("a-b-c", Budget(crash=1, failure=1, timeout=1, takeover=1), NO_INBOX),
    Case("a-b-c", Budget(crash=1, failure=1, timeout=1, retry=1, undo_failure=1), NO_INBOX),
    Case("a-[b,c]-d", Budget(crash=1, failure=1, timeout=1), NO_INBOX),
    Case("a-b-c", Budget(failure=1, continues=1, takeover=1, signal=1), awaiting=("b",), policy="always"),
    Case("a-b-c", Budget(crash=1, failure=1, cancel=1, retry=1, signal=1), awaiting=("a", "c")),
    Case("a-[b,c]-d", Budget(crash=1, failure=1, timeout=1, cancel=1), awaiting=("b", "d")),
    Case("a-b-c", Budget(failure=1, cancel=1, takeover=1, second_start=1), scheduled=True),
    Case("a-[b,c]-d", Budget(crash=1, failure=2, retry=1), cancelled=("b", "c"), recover_from=None),
    Case("a-[b,c-e]-d", Budget(crash=1, failure=1, cancel=1), cancelled=("b", "c", "e"), recover_from=None),
    Case("a-[b,c-e]-d", Budget(crash=1, failure=1), NO_INBOX, cancelled=("b", "c", "e"), recover_from=None),
)
