"""Every order of events, crashes, duplicates, takeovers and acts in small sagas, with the production core."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest

from choreo.contract.saga import Saga
from choreo.core import Entry, SagaState, fold
from tests.unit.core.cases import CASES, Case
from tests.unit.core.explore import Explorer
from tests.unit.core.folding import Event, Folding, normal
from tests.unit.core.switches import SWITCHES, Switch
from tests.unit.core.world import Habits

SECONDS_MAX = 120


def entries(contract: Saga, history: Iterable[Event]) -> list[Entry]:
    """The history as a log, each record as it was when it was appended."""
    folding = Folding(contract)
    number, log = folding.first, []
    for offset, event in enumerate(history):
        log.append(folding.entry(folding.states[number], event, offset))
        number = folding.fold(number, event).state
    return log


def folded(contract: Saga, log: Iterable[Entry]) -> SagaState:
    state = SagaState(saga_id="s")
    for entry in log:
        state = fold(contract, state, entry).state
    return state


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_order_of_events_breaks_a_saga(case: Case) -> None:
    explorer = Explorer(case)
    seen = explorer.run(seconds_max=SECONDS_MAX)
    print(f"{seen.states:,} states of the world, {seen.sagas:,} of the saga, {len(seen.ends)} histories folded again")
    assert seen.complete
    assert seen.states > 500, "too few to mean anything: is there any choice left in the world?"
    assert not seen.wrong, "\n".join(
        [line for message, way in seen.wrong.values() for line in (message, *(f"    {label}" for label in way))]
    )
    assert not explorer.world.folding.off_the_rules()
    for history in seen.ends:
        log = entries(case.contract, history)
        whole = folded(case.contract, log)
        assert normal(whole) in explorer.world.folding.states, "a fold from scratch comes to a state of its own"
        half = msgspec.msgpack.decode(
            msgspec.msgpack.encode(folded(case.contract, log[: len(log) // 2])), type=SagaState
        )
        for entry in log[len(log) // 2 :]:
            half = fold(case.contract, half, entry).state
        assert half == whole, "a fold from a checkpoint comes to another state than one from scratch"
        assert half.owed == ()


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_no_rule_can_be_left_out(switch: Switch) -> None:
    with switch.without():
        seen = Explorer(switch.case).run(seconds_max=SECONDS_MAX, until=switch.kind, ends=0)
    assert any(kind.startswith(switch.kind) for kind in seen.wrong), f"nothing goes wrong in {seen.states:,} states"


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_with_its_rule_the_same_case_is_clean(switch: Switch) -> None:
    habits = Habits(inbox=switch.case.habits.inbox, replicas=switch.case.habits.replicas)
    seen = Explorer(switch.case._replace(habits=habits)).run(seconds_max=SECONDS_MAX, ends=0)
    assert seen.complete
    assert not [message for kind, message in seen.wrong.items() if kind.startswith(switch.kind)]
