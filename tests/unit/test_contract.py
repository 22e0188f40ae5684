"""A contract is a value: readable, comparable, checked as a whole, and the same on every machine."""

from __future__ import annotations

import contextlib
import dataclasses
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.contract import Retries, Saga, Step
from choreo.contract.document import from_json, to_json
from choreo.contract.graph import Graph
from choreo.contract.policy import DURATION_MS_MAX, duration_ms, duration_text
from choreo.contract.saga import StepSpec
from choreo.errors import DefinitionError, Undecodable

ORDER = Saga(
    "order",
    Step("reserve_stock", compensation="release_stock"),
    Step("charge_card", compensation="refund_card", retries=3),
    Step("book_carrier", compensation="cancel_carrier", timeout="10s", deadline="2m"),
    Step("send_receipt"),
    deadline="1h",
    description="Sells things.",
)
TRIP = Saga(
    "trip",
    Step("check"),
    Step("book_flight", compensation="cancel_flight"),
    Step("book_hotel", compensation="cancel_hotel", after="check"),
    Step("confirm", after=("book_flight", "book_hotel")),
    Step("welcome", after=()),
)


def problems(*steps: Step | StepSpec, name: str = "order", **policies: Any) -> tuple[str, ...]:
    with pytest.raises(DefinitionError) as refused:
        Saga(name, *steps, **policies)
    return refused.value.problems


# Reading and defaults


def test_a_saga_reads_in_the_order_in_which_it_was_written() -> None:
    assert [step.name for step in ORDER.steps] == ["reserve_stock", "charge_card", "book_carrier", "send_receipt"]


def test_a_step_waits_for_the_one_before_it_unless_it_says_otherwise() -> None:
    assert [step.after for step in ORDER.steps] == [(), ("reserve_stock",), ("charge_card",), ("book_carrier",)]
    assert [step.after for step in TRIP.steps] == [
        (),
        ("check",),
        ("check",),
        ("book_flight", "book_hotel"),
        (),
    ]


def test_what_a_step_leaves_out_is_filled_in() -> None:
    assert Saga("order", Step("charge_card")).steps[0] == StepSpec(
        name="charge_card",
        after=(),
        compensation=None,
        timeout_ms=30_000,
        deadline_ms=None,
        retries=Retries(0),
        compensation_retries=Retries(4),
        compensation_deadline_ms=900_000,
        compensate_on_failure="if_unknown",
    )


def test_what_a_saga_leaves_out_is_filled_in() -> None:
    saga = Saga("order", Step("charge_card"))
    assert (saga.version, saga.description) == (1, "")
    assert (saga.deadline_ms, saga.settle_ms, saga.grace_ms) == (86_400_000, 900_000, 5_000)


def test_the_policy_for_the_failing_steps_own_compensation_comes_from_the_saga_unless_the_step_has_one() -> None:
    saga = Saga("order", Step("a"), Step("b", compensate_on_failure="never"), compensate_on_failure="always")
    assert [step.compensate_on_failure for step in saga.steps] == ["always", "never"]


def test_a_step_is_found_by_its_name() -> None:
    assert ORDER["charge_card"].compensation == "refund_card"
    assert "charge_card" in ORDER
    assert "charge_cards" not in ORDER


def test_asking_for_a_step_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(DefinitionError, match="'charge' is not valid") as missing:
        ORDER["charge"]
    assert missing.value.problems == (
        "saga 'order' version 1 has no such step; it has reserve_stock, charge_card, book_carrier, send_receipt",
    )


def test_nothing_about_a_contract_can_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ORDER.version = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        ORDER.steps[0].timeout_ms = 1  # type: ignore[misc]


# The graph


def test_the_graph_says_who_comes_before_and_after_whom() -> None:
    graph = TRIP.graph
    assert graph.roots == ("check", "welcome")
    assert graph.after["check"] == ("book_flight", "book_hotel")
    assert graph.before["confirm"] == ("book_flight", "book_hotel")
    assert graph.ancestors["confirm"] == ("check", "book_flight", "book_hotel")
    assert graph.descendants["check"] == {"book_flight", "book_hotel", "confirm"}
    assert graph.depth == {"check": 0, "book_flight": 1, "book_hotel": 1, "confirm": 2, "welcome": 0}


def test_an_event_alone_triggers_the_successors_that_wait_for_nothing_else() -> None:
    assert TRIP.graph.chained == {
        "check": ("book_flight", "book_hotel"),
        "book_flight": (),
        "book_hotel": (),
        "confirm": (),
        "welcome": (),
    }


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefx"), max_size=4).map(tuple)))
def test_the_graph_answers_for_contracts_that_are_wrong_too(before: dict[str, tuple[str, ...]]) -> None:
    graph = Graph(before)
    for step in graph.cyclic:
        assert step in graph.descendants[step]
        assert step in graph.ancestors[step]
    for step in before:
        assert all(step in graph.descendants[other] for other in graph.ancestors[step])


# Problems

STEP_SPEC = ORDER.steps[0]
EACH_PROBLEM = [
    ((), {}, "it has no steps; give it at least one"),
    (
        (Step("a"),),
        {"name": "Order"},
        r"name 'Order' must match ^[a-z][a-z0-9_-]{0,99}\Z: it becomes part of a topic's name",
    ),
    (
        (Step("a"),),
        {"name": "order\n"},
        r"name 'order\n' must match ^[a-z][a-z0-9_-]{0,99}\Z: it becomes part of a topic's name",
    ),
    (
        (Step("a"),),
        {"name": "contracts"},
        "name 'contracts' is taken: choreo.contracts is a topic of choreo's own; choose another",
    ),
    ((Step("a"),), {"version": 0}, "version 0 is not between 1 and 1000000; count from 1"),
    ((Step("a"),), {"version": 1_000_001}, "version 1000001 is not between 1 and 1000000; count from 1"),
    (
        tuple(Step(f"s{n}") for n in range(257)),
        {},
        "it has 257 steps; at most 256 are allowed",
    ),
    (
        (Step("a", compensate_on_failure="never"),),
        {"compensate_on_failure": "sometimes"},
        "compensate_on_failure is 'sometimes'; it must be one of if_unknown, always, never",
    ),
    (
        (Step("a"),),
        {"deadline": "soon"},
        "saga 'order': deadline: duration 'soon' is not like '30s', '1h30m' or '250ms'",
    ),
    (
        (Step("a"),),
        {"settle": 0},
        f"saga 'order': settle: duration 0 is not above zero and at most {duration_text(2**52)}",
    ),
    (
        (Step("a"),),
        {"grace": -1},
        f"saga 'order': grace: duration -1 is not above zero and at most {duration_text(2**52)}",
    ),
    ((Step("a"), Step("a", after=())), {}, "step 'a' is defined 2 times; give each step a name of its own"),
    ((Step("Charge"),), {}, r"step 'Charge': a step's name must match ^[a-z][a-z0-9_]{0,63}\Z"),
    ((Step(""),), {}, r"step '': a step's name must match ^[a-z][a-z0-9_]{0,63}\Z"),
    (
        (Step("a", compensation="Undo it"),),
        {},
        r"step 'a': compensation 'Undo it' must match ^[a-z][a-z0-9_]{0,63}\Z",
    ),
    ((Step("a", after="a"),), {}, "step 'a': it waits for itself; remove it from its 'after'"),
    (
        (Step("charge_card"), Step("b", after="charge_cart")),
        {},
        "step 'b': after='charge_cart' names no step; did you mean 'charge_card'?",
    ),
    ((Step("a"), Step("b", after="zzz")), {}, "step 'b': after='zzz' names no step; the steps are a, b"),
    ((Step("a"), Step("b", after=("a", "a"))), {}, "step 'b': 'after' names a step twice"),
    (
        (Step("a", after="c"), Step("b"), Step("c"), Step("d")),
        {},
        "steps 'a', 'b', 'c' wait for each other in a circle; remove one of their 'after'",
    ),
    ((Step("a", timeout="x"),), {}, "step 'a': timeout: duration 'x' is not like '30s', '1h30m' or '250ms'"),
    ((Step("a", deadline="x"),), {}, "step 'a': deadline: duration 'x' is not like '30s', '1h30m' or '250ms'"),
    (
        (Step("a", compensation_deadline="x"),),
        {},
        "step 'a': compensation_deadline: duration 'x' is not like '30s', '1h30m' or '250ms'",
    ),
    (
        (Step("a", deadline="29s"),),
        {},
        (
            "step 'a': deadline 29s is shorter than the timeout of one attempt, 30s; "
            "lower the timeout or raise the deadline"
        ),
    ),
    ((Step("a", retries=-1),), {}, "step 'a': retries: limit -1 is not between 0 and 1000"),
    ((Step("a", retries=1_001),), {}, "step 'a': retries: limit 1001 is not between 0 and 1000"),
    (
        (Step("a", compensation_retries=-1),),
        {},
        "step 'a': compensation_retries: limit -1 is not between 0 and 1000",
    ),
    (
        (Step("a", retries=Retries(1, backoff_ms_base=0)),),
        {},
        (
            f"step 'a': retries: backoff_ms_base 0 must be positive and at most backoff_ms_max 5000, "
            f"and that at most {2**52}"
        ),
    ),
    (
        (Step("a", retries=Retries(1, backoff_ms_base=2, backoff_ms_max=1)),),
        {},
        f"step 'a': retries: backoff_ms_base 2 must be positive and at most backoff_ms_max 1, and that at most {2**52}",
    ),
    (
        (Step("a", compensate_on_failure="sometimes"),),  # type: ignore[arg-type]
        {},
        "step 'a': compensate_on_failure is 'sometimes'; it must be one of if_unknown, always, never",
    ),
    (
        (Step("a"), Step("p", after="a", pivot=True), Step("b", after="a")),
        {},
        "step 'b' may run beside the pivot 'p'; let it wait for the pivot, or the pivot for it",
    ),
    (
        (Step("a"), Step("p", after="a", pivot=True), Step("q", after="a", pivot=True)),
        {},
        "pivots 'p' and 'q' have no order; let one of them wait for the other",
    ),
    (
        (Step("a"), Step("b", on_sibling_failure="cancel")),
        {},
        (
            "step 'b': on_sibling_failure is 'cancel', but no step runs beside it; leave it out, or let it and another "
            "step be 'after' the same one"
        ),
    ),
    (
        (Step("a", pivot=True), Step("b", after="a", on_sibling_failure="cancel"), Step("c", after="a")),
        {},
        "step 'b': on_sibling_failure is 'cancel', but from the pivot on nothing is cancelled; leave it out",
    ),
    (
        (Step("a"), Step("b")),
        {"on_sibling_failure": "cancel"},
        "on_sibling_failure is 'cancel', but no two of its steps run side by side; leave it out",
    ),
    (
        (Step("a"), Step("b", after=(), on_sibling_failure="kill")),
        {},
        "step 'b': on_sibling_failure is 'kill'; it must be one of settle, cancel",
    ),
    (
        (Step("a"), Step("b", after=())),
        {"on_sibling_failure": "kill"},
        "on_sibling_failure is 'kill'; it must be one of settle, cancel",
    ),
    (
        (Step("a", forward_retries=3), Step("p", pivot=True)),
        {},
        "step 'a': forward_retries are of a pivot and of steps behind it; use retries",
    ),
    (
        (Step("p", pivot=True, forward_retries=-1),),
        {},
        "step 'p': forward_retries: limit -1 is not between 0 and 1000",
    ),
    (
        (Step("a", compensation="b", recover_from="cancelled"),),  # type: ignore[arg-type]
        {},
        "step 'a': recover_from names 'cancelled'; it may name rejected, crashed, timed_out",
    ),
    (
        (Step("a", recover_from="crashed"),),
        {},
        "step 'a': recover_from needs a compensation: only that can answer Continue",
    ),
    (
        (msgspec.structs.replace(STEP_SPEC, timeout_ms=0),),
        {},
        f"step 'reserve_stock': timeout_ms 0 is not between 1 and {2**52}",
    ),
    (
        (msgspec.structs.replace(STEP_SPEC, deadline_ms=-1),),
        {},
        f"step 'reserve_stock': deadline_ms -1 is not between 1 and {2**52}",
    ),
    (
        (msgspec.structs.replace(STEP_SPEC, compensation_deadline_ms=2**60),),
        {},
        f"step 'reserve_stock': compensation_deadline_ms {2**60} is not between 1 and {2**52}",
    ),
]


@pytest.mark.parametrize(("steps", "policies", "sentence"), EACH_PROBLEM, ids=[each[2][:60] for each in EACH_PROBLEM])
def test_each_problem_alone_is_one_sentence(steps: tuple[Step, ...], policies: dict[str, Any], sentence: str) -> None:
    assert problems(*steps, **policies) == (sentence,)


def test_all_problems_of_a_contract_are_told_at_once() -> None:
    with pytest.raises(DefinitionError) as refused:
        Saga(
            "Order",
            Step("a", timeout="never", compensation="Undo"),
            Step("a", retries=-1),
            Step("b", after="bb"),
            version=0,
            deadline="x",
        )
    found = refused.value.problems
    assert [problem.split(";")[0] for problem in found] == [
        "step 'a': timeout: duration 'never' is not like '30s', '1h30m' or '250ms'",
        "saga 'Order': deadline: duration 'x' is not like '30s', '1h30m' or '250ms'",
        r"name 'Order' must match ^[a-z][a-z0-9_-]{0,99}\Z: it becomes part of a topic's name",
        "version 0 is not between 1 and 1000000",
        "step 'a' is defined 2 times",
        r"step 'a': compensation 'Undo' must match ^[a-z][a-z0-9_]{0,63}\Z",
        "step 'a': it waits for itself",
        "step 'a': retries: limit -1 is not between 0 and 1000",
        "step 'b': after='bb' names no step",
    ]
    assert str(refused.value) == "saga 'Order' is not valid:" + "".join(f"\n  - {problem}" for problem in found)


# Equality and the content hash


def test_equal_contracts_are_equal_values_with_equal_hashes() -> None:
    def define() -> Saga:
        return Saga("order", Step("a", retries=2), Step("b", after=["a"]), deadline=timedelta(hours=1))  # type: ignore[arg-type]

    assert define() == define()
    assert hash(define()) == hash(define())
    assert define().content_hash == define().content_hash


def test_the_content_hash_is_what_it_was_in_the_last_release() -> None:
    assert ORDER.content_hash == "e5c5a514c0d134a0bd58dd0458f06da0"
    assert TRIP.content_hash == "ee9d901d19100153e4b6062c628f06a5"


def test_the_description_is_neither_in_the_hash_nor_in_equality() -> None:
    described, bare = Saga("order", Step("a"), description="Sells things."), Saga("order", Step("a"))
    assert described == bare
    assert described.content_hash == bare.content_hash
    assert described.description != bare.description


BASE: dict[str, Any] = {"name": "order", "version": 1, "deadline": "1h", "settle": "1m", "grace": "1s"}
BASE_STEP: dict[str, Any] = {"name": "a", "compensation": "undo_a"}


@pytest.mark.parametrize(
    ("saga", "step"),
    [
        ({"name": "orders"}, {}),
        ({"version": 2}, {}),
        ({"deadline": "2h"}, {}),
        ({"settle": "2m"}, {}),
        ({"grace": "2s"}, {}),
        ({"compensate_on_failure": "always"}, {"compensate_on_failure": "if_unknown"}),
        ({}, {"name": "b"}),
        ({}, {"compensation": "undo_b"}),
        ({}, {"compensation": None}),
        ({}, {"timeout": "31s"}),
        ({}, {"deadline": "40s"}),
        ({}, {"retries": 1}),
        ({}, {"retries": Retries(jitter=False)}),
        ({}, {"compensation_retries": 5}),
        ({}, {"compensation_deadline": "16m"}),
        ({}, {"compensate_on_failure": "never"}),
        ({}, {"pivot": True}),
        ({"name": "pivoted"}, {"pivot": True, "forward_retries": 3}),
        ({}, {"recover_from": "crashed"}),
        ({}, {"recover_from": "rejected"}),
        ({}, {"recover_from": ()}),
    ],
)
def test_any_other_change_gives_another_contract_and_another_hash(saga: dict[str, Any], step: dict[str, Any]) -> None:
    def define(saga: dict[str, Any], step: dict[str, Any]) -> Saga:
        policies = dict(saga)
        return Saga(policies.pop("name"), Step(**step), **policies)

    old, new = define(BASE, BASE_STEP), define(BASE | saga, BASE_STEP | step)
    assert old != new
    assert old.content_hash != new.content_hash


def test_the_order_of_the_steps_is_part_of_the_contract() -> None:
    one, other = Step("a", after=()), Step("b", after=())
    assert Saga("order", one, other).content_hash != Saga("order", other, one).content_hash


# Extending


def test_extending_adds_steps_behind_the_last_one_and_keeps_the_rest() -> None:
    policies: dict[str, Any] = {
        "deadline": "1h",
        "settle": 1.001,
        "grace": "7ms",
        "compensate_on_failure": "always",
        "description": "x",
    }
    longer = Saga("order", Step("a"), **policies).extend(Step("b"), Step("c", after="a"), version=2)
    whole = Saga("order", Step("a"), Step("b"), Step("c", after="a"), version=2, **policies)
    assert longer == whole
    assert longer.description == "x"


def test_extending_keeps_the_version_unless_told() -> None:
    assert ORDER.extend(Step("thank")).version == ORDER.version


def test_extending_finds_problems_with_the_steps_that_are_there() -> None:
    with pytest.raises(DefinitionError, match="step 'send_receipt' is defined 2 times"):
        ORDER.extend(Step("send_receipt"))


# The document


def test_kinds_to_recover_from_are_one_contract_however_they_are_written() -> None:
    named = [
        Saga("order", Step("a", compensation="b", recover_from=kinds))
        for kinds in (("crashed", "rejected"), ("rejected", "crashed", "rejected"))
    ]
    assert named[0] == named[1]
    assert named[0].content_hash == named[1].content_hash


def test_what_came_later_is_not_in_the_document_unless_it_is_used() -> None:
    document = to_json(Saga("order", Step("a", compensation="b")))
    later = (b"recover_from", b"pivot", b"forward_retries", b"on_sibling_failure")
    assert not [field for field in later if field in document]


def test_who_is_cancelled_with_a_sibling_is_the_sagas_policy_unless_the_step_has_one() -> None:
    saga = Saga(
        "order", Step("a"), Step("b"), Step("c", after="a", on_sibling_failure="settle"), on_sibling_failure="cancel"
    )
    assert [step.on_sibling_failure for step in saga.steps] == ["cancel", "cancel", "settle"]
    assert saga.cancellable == {"a", "b"}
    assert from_json(to_json(saga)) == saga
    assert saga.extend(Step("d")).on_sibling_failure == saga.extend(Step("d"))["d"].on_sibling_failure == "cancel"
    one = Saga("order", Step("a"), Step("b", on_sibling_failure="cancel"), Step("c", after="a"))
    assert one.cancellable == {"b"}
    assert from_json(to_json(one)) == one
    assert (
        len({each.content_hash for each in (saga, one, Saga("order", Step("a"), Step("b"), Step("c", after="a")))}) == 3
    )


def test_from_the_pivot_on_nobody_is_cancelled() -> None:
    steps = (Step("a", after=()), Step("b", after=()), Step("p", pivot=True, after=("a", "b")), Step("c"))
    assert Saga("order", *steps, on_sibling_failure="cancel").cancellable == {"a", "b"}


def test_siblings_are_those_without_an_order() -> None:
    assert TRIP.graph.siblings == {
        "check": ("welcome",),
        "book_flight": ("book_hotel", "welcome"),
        "book_hotel": ("book_flight", "welcome"),
        "confirm": ("welcome",),
        "welcome": ("check", "book_flight", "book_hotel", "confirm"),
    }


def test_a_pivot_and_all_behind_it_go_only_forward_and_no_event_alone_triggers_it() -> None:
    saga = Saga("order", Step("a"), Step("p", pivot=True), Step("b"), Step("c", after="p"), Step("d", after=("b", "c")))
    assert saga.forward_only == {"p", "b", "c", "d"}
    assert saga.graph.chained == {"a": (), "p": ("b", "c"), "b": (), "c": (), "d": ()}
    assert Saga("order", Step("p", pivot=True), Step("a")).graph.roots == ()


def test_forward_retries_as_a_number_keep_the_usual_backoff() -> None:
    usual = Saga("order", Step("p", pivot=True))["p"].forward_retries
    assert Saga("order", Step("p", pivot=True, forward_retries=3))["p"].forward_retries == msgspec.structs.replace(
        usual, limit=3
    )
    assert Saga("order", Step("p", pivot=True, forward_retries=Retries(7)))["p"].forward_retries == Retries(7)


@st.composite
def contracts(draw: st.DrawFn) -> Saga:
    names = draw(st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), min_size=1, max_size=6, unique=True))
    durations = st.integers(1, DURATION_MS_MAX).map(lambda ms: timedelta(milliseconds=ms))
    policies = st.sampled_from(["if_unknown", "always", "never"])
    bases = st.integers(1, 1_000)
    retries = st.integers(0, 1_000) | st.builds(
        Retries, st.integers(0, 1_000), bases, st.integers(1_000, DURATION_MS_MAX), st.booleans()
    )
    steps = []
    for position, name in enumerate(names):
        timeout = draw(durations)
        earlier = st.lists(st.sampled_from(names[:position]), unique=True).map(tuple) if position else st.just(())
        compensation = draw(st.none() | st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True))
        kinds = st.lists(st.sampled_from(["rejected", "crashed", "timed_out"])).map(tuple)
        steps.append(
            Step(
                name,
                compensation=compensation,
                recover_from=draw(st.none() | kinds) if compensation else None,
                after=draw(st.none() | earlier),
                timeout=timeout,
                deadline=draw(st.none() | durations.filter(lambda deadline, least=timeout: deadline >= least)),
                retries=draw(retries),
                compensation_retries=draw(retries),
                compensation_deadline=draw(durations),
                compensate_on_failure=draw(st.none() | policies),
            )
        )
    return Saga(
        draw(st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True).filter(lambda name: name != "contracts")),
        *steps,
        version=draw(st.integers(1, 1_000_000)),
        deadline=draw(durations),
        settle=draw(durations),
        grace=draw(durations),
        compensate_on_failure=draw(policies),
        description=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=40)),
    )


@given(contracts())
def test_every_contract_survives_its_document(saga: Saga) -> None:
    again = from_json(to_json(saga))
    assert again == saga
    assert again.description == saga.description
    assert again.content_hash == saga.content_hash
    assert to_json(again) == to_json(saga)


def test_no_millisecond_of_a_very_long_duration_is_lost_on_the_way() -> None:
    for milliseconds in range(DURATION_MS_MAX - 100, DURATION_MS_MAX + 1):
        long = timedelta(milliseconds=milliseconds)
        saga = Saga("order", Step("a"), deadline=long, settle=long, grace=long)
        for same in (from_json(to_json(saga)), saga.extend()):
            assert (same.deadline_ms, same.settle_ms, same.grace_ms) == (milliseconds,) * 3


def test_fields_of_a_newer_release_are_passed_over() -> None:
    document = msgspec.json.decode(to_json(ORDER))
    document["colour"] = "red"
    document["steps"][0]["shape"] = "round"
    assert from_json(msgspec.json.encode(document)) == ORDER


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"{}",
        b"\xff\xfe",
        to_json(ORDER)[:-1],
        to_json(ORDER) + b"}",
        to_json(ORDER).replace(b"Sells things.", b"\xff"),
        to_json(ORDER).replace(b"3600000", b"0"),
        to_json(ORDER).replace(b"3600000", b"9" * 400),
        to_json(ORDER).replace(b"3600000", b'"1h"'),
        b"[" * 100_000,
    ],
)
def test_bytes_that_are_no_document_are_undecodable(value: bytes) -> None:
    with pytest.raises(Undecodable, match="not a contract document"):
        from_json(value)


def test_a_document_with_an_invalid_contract_tells_all_its_problems() -> None:
    value = to_json(ORDER).replace(b'"timeout_ms":10000', b'"timeout_ms":0').replace(b'"refund_card"', b'"<b>"')
    with pytest.raises(DefinitionError) as refused:
        from_json(value)
    assert len(refused.value.problems) == 2


@given(st.binary(max_size=60), st.integers(0, len(to_json(ORDER))))
def test_a_damaged_document_is_refused_or_read_but_never_raises_anything_else(noise: bytes, at: int) -> None:
    document = to_json(ORDER)
    with contextlib.suppress(Undecodable, DefinitionError):
        from_json(document[:at] + noise + document[at + len(noise) :])


# Durations and backoff


@pytest.mark.parametrize(
    ("duration", "milliseconds"),
    [
        ("250ms", 250),
        ("30s", 30_000),
        ("1h30m", 5_400_000),
        ("1.5s", 1_500),
        ("2d", 172_800_000),
        (30, 30_000),
        (0.25, 250),
        (0.000_01, 1),
        (timedelta(minutes=2), 120_000),
    ],
)
def test_a_duration_is_text_seconds_or_a_timedelta(duration: str | float | timedelta, milliseconds: int) -> None:
    assert duration_ms(duration) == milliseconds


@pytest.mark.parametrize(
    "duration",
    [
        "",
        "30",
        "s",
        "-1s",
        "1 s",
        "1s ",
        "1s\n",
        "1w",
        "1e3s",
        "1.s",
        "0s",
        0,
        -1,
        float("nan"),
        float("inf"),
        10**400,
        timedelta(0),
        timedelta(days=-1),
        timedelta.max,
        "9" * 400 + "s",
    ],
)
def test_what_is_no_duration_or_not_above_zero_is_refused(duration: str | float | timedelta) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration_ms(duration)


@given(st.integers(1, DURATION_MS_MAX))
def test_a_printed_duration_reads_back(milliseconds: int) -> None:
    assert duration_ms(duration_text(milliseconds)) == milliseconds
    assert duration_ms(timedelta(milliseconds=milliseconds)) == milliseconds


def test_a_duration_is_printed_in_units_from_large_to_small() -> None:
    assert [duration_text(ms) for ms in (1, 90_000, 3_600_000, 90_061_001)] == ["1ms", "1m30s", "1h", "1d1h1m1s1ms"]


def test_the_backoff_doubles_up_to_its_limit() -> None:
    retries = Retries(10, backoff_ms_base=100, backoff_ms_max=1_000)
    assert [retries.backoff_ms(retry) for retry in (1, 2, 3, 4, 5, 6)] == [100, 200, 400, 800, 1_000, 1_000]
    assert retries.backoff_ms(10**30) == 1_000


@given(st.integers(1, 10**9), st.integers(1, 1_000), st.integers(1_000, DURATION_MS_MAX))
def test_the_backoff_saturates_and_never_falls(retry: int, base: int, limit: int) -> None:
    retries = Retries(1_000, backoff_ms_base=base, backoff_ms_max=limit)
    assert base <= retries.backoff_ms(retry) <= retries.backoff_ms(retry + 1) <= limit


def test_a_step_that_waits_for_a_signal_is_triggered_by_no_event_alone() -> None:
    saga = Saga("order", Step("a"), Step("b", await_signal="approved", signal_timeout="2h"), Step("c"))
    assert saga.graph.commanded == {"b"}
    assert saga.graph.chained["a"] == ()
    assert saga["b"].signal_timeout_ms == 7_200_000
    assert Saga("order", Step("a", await_signal="go"), Step("b", await_signal="go")).signals == {"go": ("a", "b")}
    assert from_json(to_json(saga)) == saga


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (Step("a", await_signal="Not this"), "await_signal 'Not this' must match"),
        (
            Step("a", signal_timeout="1h"),
            "signal_timeout is how long a signal is waited for; name one with await_signal",
        ),
        (Step("a", await_signal="go", signal_timeout="2d"), "signal_timeout 2d is longer than the saga's deadline, 1d"),
        (Step("a", await_signal="go", signal_timeout="soon"), "signal_timeout: duration 'soon' is not like"),
    ],
)
def test_what_cannot_be_waited_for_is_refused(step: Step, problem: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        Saga("order", step)
    assert problem in str(refused.value)
