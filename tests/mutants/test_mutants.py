"""Tests that find nothing prove nothing: production code is broken on purpose, and has to be found out.

Those that take longer are left to ``make mutants``; the switches of the core have tests of their own beside them.
"""

from __future__ import annotations

import pytest

from tests.mutants.registry import Mutant, mutants

ALL = list(mutants())
HERE = [mutant for mutant in ALL if mutant.fast and mutant.suite != "exploration"]


@pytest.mark.parametrize("mutant", HERE, ids=lambda mutant: mutant.name)
def test_a_mutant_is_found_out(mutant: Mutant) -> None:
    found = mutant.hunt()

    assert found.how, f"{mutant.what}: nobody notices in {found.where}"
    assert found.sound, f"the unbroken build fails at {found.where} too: {found.how}"


def test_every_rule_that_is_explored_has_a_mutant() -> None:
    assert {str(rule) for rule in range(1, 18)} <= {mutant.rule for mutant in ALL}


def test_names_tell_mutants_apart() -> None:
    assert len({mutant.name for mutant in ALL}) == len(ALL) >= 40
