"""What a command tells beside what it asks for."""

from __future__ import annotations

from tests.unit.core.spec import bare, compensate, completed, failed, given, saga, step, undone

CHAIN = saga(step("a"), bare("b"), step("c"), step("d"), step("e"))


def test_a_compensate_names_what_remains_to_be_undone_after_it_deepest_first() -> None:
    history = given(CHAIN, completed("a"), completed("b"), completed("c"), completed("d"), failed("e"))
    history.then(compensate("d"))
    assert history.sends(compensate("d")).remaining == ("c", "a"), "what has no compensation is left out"
    history = history.when(undone("d")).then(compensate("c"))
    assert history.sends(compensate("c")).remaining == ("a",)
    history = history.when(undone("c")).then(compensate("a"))
    assert history.sends(compensate("a")).remaining == ()
