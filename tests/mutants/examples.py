"""Mutants of the core that no order of events shows, because the explored world does not err in their way.

Each patches one place, and goes with the example of ``tests/unit/core/test_rules.py`` that finds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import msgspec

from choreo.core import SagaState, evolve, messages, straight
from choreo.core.state import Decision, Note
from choreo.messages.records import OperatorActed, SagaStarted, StepCompensated
from tests.unit.core import test_rules as rules


def commands_believed() -> Any:
    """A command in the log is a decision, whether a prefix implies it or not (rule 1)."""

    def believe(state: SagaState, decision: Decision) -> bool:
        state.owed = tuple(owed for owed in state.owed if owed != decision)
        return True

    return patch.object(messages, "paid", believe)


@contextmanager
def rules_not_pinned() -> Iterator[None]:
    """A saga does not remember under which rules it was started (rule 2)."""
    started = evolve.saga_started

    def forgetful(contract: Any, state: SagaState, entry: Any, record: SagaStarted) -> Note | None:
        return started(contract, state, entry, msgspec.structs.replace(record, rules=9))

    with patch.dict(evolve.OF_SAGA, {SagaStarted: forgetful}), patch.dict(straight.WAYS, clear=True):
        yield


def retries_without_a_limit() -> Any:
    """A retry counts in whatever round the saga is (rule 9)."""

    def always(contract: Any, state: SagaState, entry: Any, record: StepCompensated, key: Any) -> Note | None:
        return evolve.step_compensated(contract, state, entry, msgspec.structs.replace(record, retry_limit=99), key)

    return patch.dict(evolve.OF_STEP, {StepCompensated: always})


def acts_on_any_generation() -> Any:
    """An operator's act counts for whatever is stuck, not for what the operator saw (rule 16)."""

    def act(contract: Any, state: SagaState, entry: Any, record: OperatorActed, key: Any) -> Note | None:
        generation = state.instance(key).generation
        return evolve.operator_acted(
            contract, state, entry, msgspec.structs.replace(record, generation=generation), key
        )

    return patch.dict(evolve.OF_STEP, {OperatorActed: act})


def decided_without_a_start() -> Any:
    """A saga whose start is not in the log is decided upon all the same (rule 21)."""
    return patch.object(evolve, "BEFORE_START", tuple({**evolve.OF_SAGA, **evolve.OF_STEP}))


def _at_its_limit() -> None:
    rules.test_rule_9_a_retry_is_honoured_while_its_limit_is_above_the_round(1, honoured=False)


EXAMPLES = (
    (retries_without_a_limit, "9", _at_its_limit),
    (commands_believed, "1", rules.test_rule_1_a_command_that_no_prefix_implies_changes_nothing),
    (rules_not_pinned, "2", rules.test_rule_2_a_start_pins_contract_and_rules),
    (
        acts_on_any_generation,
        "16",
        rules.test_rule_16_an_act_on_what_is_not_stuck_or_on_another_generation_is_recorded_and_changes_nothing,
    ),
    (
        decided_without_a_start,
        "21",
        rules.test_rule_21_a_saga_whose_start_is_not_in_the_log_gets_no_command_and_is_listed,
    ),
)
