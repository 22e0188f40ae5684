"""A ledger of effects, for tests: it refuses what a saga must never do to the world.

Handlers enter what they create and strike out what they undo. A handler may be called again for what it has done (a
retry, a redelivery, a crash in between), so a real one is idempotent by its key; the ledger is strict where such a
handler is (``create``, ``undo``) and forgiving where it is meant to be tolerated (``ensure``, ``forget``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from choreo.contract.saga import Saga
from choreo.step import CompensationContext, Context


class LedgerViolation(AssertionError):  # noqa: N818  # says what happened; that it is an error, its base says
    """An effect was created twice, undone twice, or created or undone out of order."""


@dataclass(frozen=True)
class Entry:
    """A line of the ledger.

    Attributes:
        act: what was done.
        key: the idempotency key of the step, in all acts.
    """

    act: Literal["created", "undone", "replaced"]
    saga_id: str
    step: str
    round: int
    key: str

    @property
    def start(self) -> str:
        """What the entry descends from: a saga id that is started with two inputs has two chains of effects."""
        return _start_of(self.key)


class Ledger:
    """Effects by saga and step, in the order in which they were made.

        ledger = Ledger(ORDER)

        @payment.step(ORDER, "charge_card")
        def charge(order: dict, ctx: Context) -> None:
            ledger.create(ctx)

        @payment.compensation(ORDER, "charge_card")
        def refund(ctx: CompensationContext) -> None:
            ledger.undo(ctx)

        …
        ledger.check()

    A violation is raised where it happens, which fails the handler; and because a saga swallows the failures of its
    handlers, it is kept for ``check`` too.

    Args:
        contracts: of the sagas whose effects are entered; they say what builds on what.
        steps: those whose handlers use the ledger; all by default.

    Attributes:
        entries: all lines.
        violations: what was refused, in words.
    """

    def __init__(self, *contracts: Saga, steps: Collection[str] | None = None) -> None:
        self._contracts = {(contract.name, contract.version): contract for contract in contracts}
        self._steps = None if steps is None else frozenset(steps)
        self.entries: list[Entry] = []
        self.violations: list[str] = []

    def create(self, ctx: Context) -> None:
        """The step's effect is made.

        Raises:
            LedgerViolation: it stands already, under this or another key, or something that it builds on does not.
        """
        key, contract = ctx.idempotency_key, self._contract(ctx)
        last = self._last(key, ctx.step)
        # What has no compensation stays when the saga goes back; the next round makes it anew, under another key.
        stays = contract[ctx.step].compensation is None
        if last is not None and last.act == "created" and not (stays and last.key != key):
            self._refuse(f"step {ctx.step!r} of saga {ctx.saga_id!r} has an effect already: {last.key}")
        missing = [
            step
            for step in contract.graph.ancestors[ctx.step]
            if (self._steps is None or step in self._steps)
            and not self._is_there(key, step)
            and contract[step].child is None  # its effects are its own saga's
            and (contract[step].when is None or step in ctx.effects)  # what was skipped has no effect
        ]
        if missing:
            self._refuse(
                f"step {ctx.step!r} of saga {ctx.saga_id!r} runs without what it builds on: {', '.join(missing)}"
            )
        self._enter("created", ctx, ctx.idempotency_key)

    def ensure(self, ctx: Context) -> bool:
        """As ``create``, but an effect under the same key may stand already. Returns whether it is new."""
        if self._stands(ctx.step, ctx.idempotency_key):
            return False
        self.create(ctx)
        return True

    def undo(self, ctx: CompensationContext) -> None:
        """The step's effect is undone.

        Raises:
            LedgerViolation: none stands under the step's key, or something that builds on it still does.
        """
        if not self.forget(ctx):
            self._refuse(f"step {ctx.step!r} of saga {ctx.saga_id!r} has no effect to undo: {ctx.step_key}")

    def forget(self, ctx: CompensationContext) -> bool:
        """As ``undo``, but there may be nothing to undo. Returns whether there was."""
        if not self._stands(ctx.step, ctx.step_key):
            return False
        contract = self._contract(ctx)
        after = [step for step in contract.graph.descendants[ctx.step] if contract[step].compensation is not None]
        if above := sorted(step for step in after if self._has_effect(ctx.step_key, step)):
            self._refuse(f"step {ctx.step!r} of saga {ctx.saga_id!r} is undone under what builds on it: {above[0]}")
        self._enter("undone", ctx, ctx.step_key)
        return True

    def undo_by_hand(self, saga_id: str, step: str) -> None:
        """Somebody undoes the step's effect outside of the saga, as before ``skip`` and ``resolve`` of an operator.

        Raises:
            LedgerViolation: none stands.
        """
        last = next((entry for entry in reversed(self.of(saga_id)) if entry.step == step), None)
        if last is None or last.act != "created":
            self._refuse(f"step {step!r} of saga {saga_id!r} has no effect to undo by hand")
        else:
            self.entries.append(Entry("undone", saga_id, step, last.round, last.key))

    def replace(self, ctx: CompensationContext) -> None:
        """The compensation answers ``Continue``: later steps may build on this one although it has no effect.

        Raises:
            LedgerViolation: its effect still stands.
        """
        if self._stands(ctx.step, ctx.step_key):
            self._refuse(f"step {ctx.step!r} of saga {ctx.saga_id!r} is replaced while its effect stands")
        self._enter("replaced", ctx, ctx.step_key)

    def standing(self, saga_id: str) -> list[str]:
        """The steps of the saga whose effects stand, in the order in which they were made."""
        standing: dict[tuple[str, str], None] = {}
        for entry in self.of(saga_id):
            if entry.act == "created":
                standing[entry.start, entry.step] = None
            else:
                standing.pop((entry.start, entry.step), None)
        return [step for _, step in standing]

    def of(self, saga_id: str) -> list[Entry]:
        """The lines of one saga."""
        return [entry for entry in self.entries if entry.saga_id == saga_id]

    def story(self, saga_id: str) -> str:
        """The saga's lines in short: ``+step`` made, ``-step`` undone, ``~step`` replaced."""
        signs = {"created": "+", "undone": "-", "replaced": "~"}
        return " ".join(f"{signs[entry.act]}{entry.step}" for entry in self.of(saga_id))

    def check(self) -> None:
        """Raise ``LedgerViolation`` if anything was ever refused; with all of it."""
        if self.violations:
            raise LedgerViolation("; ".join(self.violations))

    def _contract(self, ctx: Context | CompensationContext) -> Saga:
        try:
            return self._contracts[ctx.saga, ctx.version]
        except KeyError:
            held = ", ".join(f"{name} version {version}" for name, version in self._contracts) or "none"
            message = f"the ledger holds no contract {ctx.saga!r} version {ctx.version}; it holds {held}"
            raise LedgerViolation(message) from None

    def _is_there(self, key: str, step: str) -> bool:
        last = self._last(key, step)
        return last is not None and last.act != "undone"

    def _has_effect(self, key: str, step: str) -> bool:
        last = self._last(key, step)
        return last is not None and last.act == "created"

    def _stands(self, step: str, key: str) -> bool:
        last = self._last(key, step)
        return last is not None and (last.act, last.key) == ("created", key)

    def _last(self, key: str, step: str) -> Entry | None:
        """The last line about a step in the chain that the key belongs to."""
        start = _start_of(key)
        return next((entry for entry in reversed(self.entries) if (entry.step, entry.start) == (step, start)), None)

    def _enter(
        self, act: Literal["created", "undone", "replaced"], ctx: Context | CompensationContext, key: str
    ) -> None:
        self.entries.append(Entry(act, ctx.saga_id, ctx.step, ctx.round, key))

    def _refuse(self, violation: str) -> None:
        self.violations.append(violation)
        raise LedgerViolation(violation)


def _start_of(key: str) -> str:
    """The part of an idempotency key that all steps of a started saga share: it ends in ``/step/round``."""
    return key.rsplit("/", 2)[0]
