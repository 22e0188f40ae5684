"""Conditions: how they are written, refused, drawn, sent and evaluated."""

from __future__ import annotations

import re
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from choreo.contract import Saga, Step, when
from choreo.contract.condition import AllOf, Compare, Condition, Exists, IsIn, Value, text
from choreo.contract.document import from_json, to_json
from choreo.contract.render import mermaid
from choreo.contract.render import text as drawn
from choreo.core.condition import holds
from choreo.errors import DefinitionError, Undecodable
from choreo.messages.codec import encode_user_value
from choreo.messages.headers import JSON, MSGPACK

INPUT: Any = {
    "amount": 120,
    "ratio": 0.5,
    "country": "CH",
    "gift": True,
    "note": None,
    "items": [{"sku": "a"}, {"sku": "b"}],
    "a.b": {"c": 1},
    "10": "ten",
}
EFFECTS: Any = {"check": {"score": 0.9, "trusted": False}, "count": 3, "nothing": None}


def answer(condition: Condition | when.Place, content_type: str) -> bool:
    made = condition.as_condition() if isinstance(condition, when.Place) else condition
    encoded = {step: encode_user_value(value, content_type=content_type) for step, value in EFFECTS.items()}
    return holds(made, {**encoded, "": encode_user_value(INPUT, content_type=content_type)}, content_type)


TRUE = [
    when.input("amount") > 100,
    when.input("amount") >= 120,
    when.input("amount") == 120.0,
    when.input("ratio") < 1,
    when.input("country") == "CH",
    when.input("country") != "AT",
    when.input("country") < "D",
    when.input("gift"),
    when.input("note") == None,  # noqa: E711
    when.input("note").exists(),
    when.input("items.1.sku") == "b",
    when.input(("items", 0, "sku")) == "a",
    when.input(("a.b", "c")) == 1,
    when.input("10") == "ten",
    when.input("country").is_in(["AT", "CH"]),
    when.input("amount") > when.effect("count"),
    when.effect("count") == 3,
    when.effect(["check", "score"][0], "score") >= 0.8,
    when.effect("nothing").exists(),
    when.effect("check") == when.effect("check"),
    when.input("items") == when.input("items"),
    ~when.effect("skipped").exists(),
    ~when.effect("check", "trusted"),
    (when.input("amount") > 1_000) | when.input("gift"),
    when.input("gift") & (when.input("amount") > 1) & ~(when.input("country") == "AT"),
    # A missing value, or unlike types: no comparison but != is true.
    when.input("missing") != 1,
    when.input("missing.deeper") != None,  # noqa: E711
    when.input("country") != 1,
    when.input("gift") != 1,
    when.input("amount") != "120",
    ~(when.input("missing") < 1) & ~(when.input("missing") >= 1),
    ~(when.input("amount") < "2") & ~(when.input("amount") >= "2"),
]
FALSE = [
    when.input("missing") == None,  # noqa: E711
    when.input("missing"),
    when.input("missing").exists(),
    when.input("missing") == when.input("missing"),
    when.input("missing").is_in([None, 1]),
    when.input("gift") == 1,
    when.input("gift") > 0,
    when.input("note") == False,  # noqa: E712
    when.input("note") < 1,
    when.input("items.2.sku").exists(),
    when.input("items.-1.sku").exists(),
    when.input("items.sku").exists(),
    when.input("country.0").exists(),
    when.input("country.len").exists(),
    when.input("items") > when.input("items"),
    when.input("amount").is_in(["120", True]),
    when.effect("count", "deeper") == 3,
    when.input() == 1,
]


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
@pytest.mark.parametrize("condition", TRUE, ids=str)
def test_a_condition_holds(condition: Condition, content_type: str) -> None:
    assert answer(condition, content_type) is True


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
@pytest.mark.parametrize("condition", FALSE, ids=str)
def test_a_condition_does_not_hold(condition: Condition, content_type: str) -> None:
    assert answer(condition, content_type) is False


PLACES = st.builds(
    Value,
    st.sampled_from(["", "check", "count", "skipped"]),
    st.lists(st.sampled_from(["amount", "items", "sku", "0", 0, "a.b"]), max_size=3).map(tuple),
)
CONSTANTS = st.none() | st.booleans() | st.integers(-3, 200) | st.floats(-1, 1) | st.text(max_size=2)
LEAVES = (
    st.builds(Compare, PLACES, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), CONSTANTS | PLACES)
    | st.builds(IsIn, PLACES, st.lists(CONSTANTS, min_size=1, max_size=3).map(tuple))
    | PLACES.map(Exists)
)
CONDITIONS: st.SearchStrategy[Condition] = st.recursive(
    LEAVES,
    lambda inner: (
        st.tuples(inner, inner).map(lambda two: two[0] & two[1])
        | st.tuples(inner, inner).map(lambda two: two[0] | two[1])
        | inner.map(lambda one: ~one)
    ),
    max_leaves=6,
)
JSON_VALUES = st.recursive(
    CONSTANTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["amount", "items", "0"]), inner),
    max_leaves=5,
)


@given(CONDITIONS, JSON_VALUES, JSON_VALUES)
def test_every_condition_has_the_same_answer_for_any_values_in_either_codec(
    condition: Condition, value: Any, effect: Any
) -> None:
    answers = set()
    for content_type in (JSON, MSGPACK):
        encoded = {
            "": encode_user_value(value, content_type=content_type),
            "check": encode_user_value(effect, content_type=content_type),
        }
        answers.add(holds(condition, encoded, content_type))
        assert holds(~condition, encoded, content_type) is not holds(condition, encoded, content_type)
    assert len(answers) == 1


@given(CONDITIONS)
def test_a_contract_with_a_condition_comes_back_from_its_document(condition: Condition) -> None:
    steps = (Step("check"), Step("count"), Step("skipped"), Step("last", when=condition))
    saga = Saga("order", *steps)
    back = from_json(to_json(saga))
    assert back == saga
    assert hash(back) == hash(saga)
    assert (back.content_hash, str(back)) == (saga.content_hash, str(saga))
    assert text(condition).isascii()
    assert text(condition).isprintable()


def test_values_that_are_not_bytes_of_the_codec_are_missing() -> None:
    assert not holds(when.input().exists(), {"": b"{"}, JSON)
    assert holds(when.input() != 1, {"": b"{"}, JSON)


def test_contracts_differ_where_python_sees_no_difference() -> None:
    def saga(constant: Any) -> Saga:
        return Saga("order", Step("a", when=when.input("x") == constant))

    assert len({saga(1).content_hash, saga(True).content_hash, saga(1.0).content_hash}) == 3
    assert saga(1) != saga(True)
    assert saga(1) == saga(1)


def test_a_contract_without_conditions_keeps_its_hash() -> None:
    assert b'"when"' not in to_json(Saga("order", Step("a")))


CONDITION = (when.input("amount") > 100) & ~when.effect("check", "trusted").exists() | when.input("gift")


def test_a_condition_reads_as_it_was_written() -> None:
    assert text(CONDITION) == "(input.amount > 100 and check.trusted is missing) or input.gift == true"
    assert text(~(when.input(("a b", 0)).is_in([None, "é\x1b"]))) == 'not (input["a b"][0] in [null, "\\u00e9\\u001b"])'
    assert text((when.input() == 1) & (when.input("x") | when.input("y"))) == (
        "input == 1 and (input.x == true or input.y == true)"
    )
    assert text(when.input("a") <= when.effect("check", "b")) == "input.a <= check.b"


def test_a_condition_is_drawn_in_text_and_on_the_arrows_in_mermaid() -> None:
    saga = Saga("order", Step("check"), Step("wrap", when=(when.input("colour") == '"<red>|')))
    assert drawn(saga).endswith('-> wrap   <- nothing to undo  when input.colour == "\\"<red>|", timeout 30s')
    [arrow] = [line for line in mermaid(saga).splitlines() if line.endswith("| do_wrap")]
    label = arrow.removeprefix('    do_check -->|"').removesuffix('"| do_wrap')
    assert not set('"<>|') & set(label), "nothing that ends a label or is taken for markup"
    said = re.sub(r"#(\d+);", lambda number: chr(int(number[1])), label)
    assert said == 'when input.colour == "\\"<red>|"'
    first = Saga("order", Step("wrap", when=when.input("gift")))
    assert '    saga_start -->|"when input.gift == true"| do_wrap' in mermaid(first).splitlines()


def test_a_conditional_step_is_triggered_by_no_event_but_what_comes_after_it_is() -> None:
    saga = Saga("order", Step("a"), Step("b", when=when.input("x")), Step("c"))
    assert saga.graph.chained == {"a": (), "b": ("c",), "c": ()}
    assert Saga("order", Step("a", when=when.input("x")), Step("b")).graph.roots == ()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: (when.input("a") > 1) and (when.input("b") > 2),
        lambda: 1 < when.input("a") < 3,
        lambda: not when.input("a"),
    ],
)
def test_words_of_python_that_would_lose_half_of_a_condition_are_refused(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match=r"combine conditions by '&', '\|' and '~'"):
        wrong()


A, B = Step("a"), Step("b")
EACH_PROBLEM: list[tuple[Any, str]] = [
    (lambda ctx: True, "is no condition; write one as data"),
    (True, "step 'c': when: True is no condition"),
    (when.effect("c") == 1, "step 'c': when: it looks at its own effect, which is not there before it has run"),
    (
        when.effect("d") == 1,
        "looks at the effect of 'd', which may not have run by then; let 'c' wait for it",
    ),
    (when.effect("bb") == 1, "looks at the effect of 'bb', which is no step; did you mean 'b'?"),
    (when.effect("zzz") == 1, "looks at the effect of 'zzz', which is no step; steps before it: a, b"),
    (when.input("x") == when.effect("d"), "looks at the effect of 'd'"),
    (when.input("x") == [1], "compares with a list; constants are texts, numbers, True, False and None"),
    (when.input("x").is_in([b"x"]), "compares with a bytes"),
    (when.input("x") == float("nan"), "compares with nan, which is no number between -2**53 and 2**53"),
    (when.input("x") == 2**60, "which is no number between -2**53 and 2**53"),
    (when.input("x") == "x" * 257, "compares with a text of 257 letters; at most 256 are allowed"),
    (when.input("x") == "\ud800", "compares with a text that is no valid Unicode"),
    (when.input("x").is_in([]), "is_in has 0 values; give it 1 to 256"),
    (when.input("x..y") == 1, "path has a key of 0 letters; 1 to 256 are allowed"),
    (when.input(("x", -1)) == 1, "path has the position -1; count from 0"),
    (when.input(("x", 1.5)) == 1, "path has 1.5; a key is a text, a position in a list a number"),  # type: ignore[arg-type]
    (when.input(("x",) * 17) == 1, "path of 17 keys; at most 16 are allowed"),
    (AllOf(()), "'all' has no conditions; give it at least one"),
]


@pytest.mark.parametrize(("condition", "problem"), EACH_PROBLEM, ids=[problem[:50] for _, problem in EACH_PROBLEM])
def test_each_problem_of_a_condition_says_where_and_how_to_mend_it(condition: Any, problem: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        Saga("order", A, B, Step("c", when=condition), Step("d"))
    [found] = refused.value.problems
    assert found.startswith("step 'c': when: ")
    assert problem in found


def test_all_problems_of_all_conditions_are_in_one_error() -> None:
    with pytest.raises(DefinitionError) as refused:
        Saga(
            "order",
            Step("a", when=(when.effect("b") == 1) & (when.input("x") == {})),
            Step("b", pivot=True, when=when.input("x")),
        )
    assert len(refused.value.problems) == 3
    assert "step 'b': when: a pivot cannot be skipped" in str(refused.value)


def test_a_path_that_is_neither_text_nor_tuple_is_refused_where_it_is_written() -> None:
    with pytest.raises(DefinitionError, match="path 3 is neither a text such as"):
        when.input(3)  # type: ignore[arg-type]


def test_a_condition_has_bounds() -> None:
    wide = when.input("x") == 0
    for number in range(1, 65):
        wide = wide | (when.input("x") == number)
    deep = when.input("x") == 0
    for _ in range(20):
        deep = ~deep
    for condition in (wide, deep):
        with pytest.raises(DefinitionError, match="at most 64 are allowed, nested at most 16 deep"):
            Saga("order", Step("a", when=condition))


def test_a_condition_of_another_shape_is_refused_from_the_wire() -> None:
    document = to_json(Saga("order", Step("a", when=when.input("x") == 1)))
    with pytest.raises(Undecodable, match="not a contract document"):
        from_json(document.replace(b'"=="', b'"~="'))
    with pytest.raises(Undecodable, match="not a contract document"):
        from_json(document.replace(b'"compare"', b'"call"'))
    nested = b'{"type":"not","of":' * 5_000 + b"1" + b"}" * 5_000
    with pytest.raises(Undecodable):
        from_json(document.replace(b'{"type":"compare"', nested + b'{"type":"compare"'))
