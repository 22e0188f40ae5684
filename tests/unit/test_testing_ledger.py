"""The ledger of effects: what a saga must never do to the world is refused, and remembered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from choreo.contract import Saga, Step, when
from choreo.errors import SagaFailed
from choreo.step import CompensationContext, Context, NothingToUndo, Reject, Service
from choreo.testing import Ledger, LedgerViolation, Runner

LINE = Saga("line", Step("a", "undo_a"), Step("b", "undo_b"), Step("c"))


def at(step: str, *, saga_round: int = 1, saga_id: str = "s", start: str = "0", saga: str = "line", **more: Any) -> Any:
    """A context of a step or of its compensation, as far as a ledger looks at it."""
    key = f"{saga_id}/{start}/{step}/{saga_round}"
    return SimpleNamespace(
        saga=saga, version=1, saga_id=saga_id, step=step, round=saga_round, idempotency_key=key, step_key=key, **more
    )


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(LINE)


def test_it_tells_what_was_done_and_what_stands(ledger: Ledger) -> None:
    ledger.create(at("a"))
    ledger.create(at("b"))
    ledger.undo(at("b"))
    assert ledger.story("s") == "+a +b -b"
    assert ledger.standing("s") == ["a"]
    assert ledger.standing("another") == []
    ledger.check()


def test_an_effect_created_twice_is_refused(ledger: Ledger) -> None:
    ledger.create(at("a"))
    with pytest.raises(LedgerViolation, match="step 'a' of saga 's' has an effect already"):
        ledger.create(at("a"))


def test_an_effect_of_the_next_round_is_refused_while_that_of_the_last_one_stands(ledger: Ledger) -> None:
    ledger.create(at("a"))
    with pytest.raises(LedgerViolation, match="has an effect already: s/0/a/1"):
        ledger.create(at("a", saga_round=2))


def test_a_step_without_compensation_may_leave_an_effect_in_each_round(ledger: Ledger) -> None:
    for saga_round in (1, 2):
        ledger.create(at("a", saga_round=saga_round))
        ledger.create(at("b", saga_round=saga_round))
        ledger.create(at("c", saga_round=saga_round))
        ledger.undo(at("b", saga_round=saga_round))
        ledger.undo(at("a", saga_round=saga_round))
    with pytest.raises(LedgerViolation, match="runs without what it builds on: a, b"):
        ledger.create(at("c", saga_round=3))


def test_an_effect_undone_twice_is_refused(ledger: Ledger) -> None:
    ledger.create(at("a"))
    ledger.undo(at("a"))
    with pytest.raises(LedgerViolation, match="step 'a' of saga 's' has no effect to undo"):
        ledger.undo(at("a"))


def test_an_effect_undone_under_what_builds_on_it_is_refused(ledger: Ledger) -> None:
    ledger.create(at("a"))
    ledger.create(at("b"))
    with pytest.raises(LedgerViolation, match="step 'a' of saga 's' is undone under what builds on it: b"):
        ledger.undo(at("a"))


def test_an_effect_without_what_it_builds_on_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerViolation, match="step 'b' of saga 's' runs without what it builds on: a"):
        ledger.create(at("b"))


def test_steps_that_do_not_use_the_ledger_can_be_left_out() -> None:
    ledger = Ledger(LINE, steps=("b", "c"))
    ledger.create(at("b"))
    ledger.check()


def test_a_redelivered_step_and_a_repeated_compensation_can_be_tolerated(ledger: Ledger) -> None:
    assert ledger.ensure(at("a"))
    assert not ledger.ensure(at("a"))
    assert ledger.forget(at("a"))
    assert not ledger.forget(at("a"))
    assert ledger.story("s") == "+a -a"
    ledger.ensure(at("a"))
    with pytest.raises(LedgerViolation):
        ledger.ensure(at("a", saga_round=2))


def test_later_steps_may_build_on_a_substitute(ledger: Ledger) -> None:
    ledger.create(at("a"))
    ledger.replace(at("b"))
    ledger.create(at("c"))
    assert ledger.story("s") == "+a ~b +c"
    assert ledger.standing("s") == ["a", "c"]


def test_a_substitute_beside_its_effect_is_refused(ledger: Ledger) -> None:
    ledger.create(at("a"))
    ledger.create(at("b"))
    with pytest.raises(LedgerViolation, match="replaced while its effect stands"):
        ledger.replace(at("b"))


def test_an_operator_may_undo_by_hand_what_stands(ledger: Ledger) -> None:
    ledger.create(at("a"))
    ledger.undo_by_hand("s", "a")
    assert ledger.standing("s") == []
    with pytest.raises(LedgerViolation, match="no effect to undo by hand"):
        ledger.undo_by_hand("s", "a")


def test_the_chains_of_two_starts_under_one_id_are_told_apart(ledger: Ledger) -> None:
    ledger.create(at("a", start="0"))
    ledger.create(at("a", start="1"))
    ledger.undo(at("a", start="1"))
    assert ledger.standing("s") == ["a"]


def test_a_saga_that_it_does_not_know_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerViolation, match=r"holds no contract 'other' version 1; it holds line version 1"):
        ledger.create(at("a", saga="other"))


def test_what_was_refused_is_told_again_at_the_end(ledger: Ledger) -> None:
    ledger.check()
    for _ in range(2):
        with pytest.raises(LedgerViolation):
            ledger.undo(at("a"))
    with pytest.raises(LedgerViolation, match=r"no effect to undo.*; .*no effect to undo"):
        ledger.check()


async def test_a_handler_that_is_not_idempotent_is_found_in_a_run() -> None:
    ledger, service = Ledger(LINE), Service("line")

    @service.step(LINE, "a")
    def a(ctx: Context) -> None:
        ledger.create(ctx)

    @service.step(LINE, "b")
    def b(ctx: Context) -> None:
        ledger.create(ctx)

    @service.step(LINE, "c")
    def c() -> None:
        raise Reject("no")

    @service.compensation(LINE, "a")
    def undo_a(ctx: CompensationContext) -> None:
        ledger.undo(ctx)

    @service.compensation(LINE, "b")
    def undo_b(ctx: CompensationContext) -> None:
        ledger.undo(ctx)
        if ctx.attempt == 1:
            raise ConnectionError("the answer was lost")

    async with Runner(service) as runner:
        await runner.start(LINE, {}, id="s")
        while not ledger.violations:
            assert len(runner.history("s")) < 20
            await runner.clock.sleep(1)
    with pytest.raises(LedgerViolation, match="step 'b' of saga 's' has no effect to undo"):
        ledger.check()


async def test_idempotent_handlers_pass() -> None:
    ledger, service = Ledger(LINE), Service("line")

    def undo(ctx: CompensationContext) -> NothingToUndo | None:
        return None if ledger.forget(ctx) else NothingToUndo()

    for step in ("a", "b"):
        service.step(LINE, step)(ledger.ensure)
        service.compensation(LINE, step)(undo)

    @service.step(LINE, "c")
    def c() -> None:
        raise Reject("no")

    async with Runner(service) as runner:
        with pytest.raises(SagaFailed):
            await runner.run(LINE, {}, id="s")
    ledger.check()
    assert ledger.story("s") == "+a +b -b -a"


def test_what_a_step_builds_on_may_be_missing_if_it_was_skipped() -> None:
    ledger = Ledger(Saga("line", Step("a"), Step("b", when=when.input("x")), Step("c")))
    ledger.create(at("a"))
    ledger.create(at("c", effects={}))
    with pytest.raises(LedgerViolation, match="runs without what it builds on: a, b"):
        ledger.create(at("c", saga_id="t", effects={"b": 1}))
