"""A contract drawn for people, as text and as Mermaid."""

from __future__ import annotations

import re
import textwrap

import pytest

from choreo.contract import Saga, Step
from choreo.contract.render import mermaid, text

ORDER = Saga(
    "order",
    Step("reserve_stock", compensation="release_stock"),
    Step("charge_card", compensation="refund_card", retries=3),
    Step("book_carrier", compensation="cancel_carrier", timeout="10s", deadline="1m", retries=1),
    Step("send_receipt"),
    version=2,
    deadline="1h30m",
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


def dedent(drawing: str) -> str:
    return textwrap.dedent(drawing).strip("\n")


def test_a_linear_saga_is_a_staircase_with_the_way_back_beside_it() -> None:
    assert text(ORDER) == dedent(f"""
        saga order v2  [{ORDER.content_hash[:12]}]
        Sells things.
        deadline 1h30m, own compensation of a failed step: if_unknown
          -> reserve_stock        <- release_stock    timeout 30s
            -> charge_card        <- refund_card      timeout 30s, 3 retries
              -> book_carrier     <- cancel_carrier   timeout 10s, deadline 1m, 1 retry
                -> send_receipt   <- nothing to undo  timeout 30s
    """)


def test_parallel_steps_stand_at_the_same_depth_and_say_what_they_wait_for() -> None:
    assert text(TRIP) == dedent(f"""
        saga trip v1  [{TRIP.content_hash[:12]}]
        deadline 1d, own compensation of a failed step: if_unknown
          -> check            <- nothing to undo  timeout 30s
            -> book_flight    <- cancel_flight    timeout 30s
            -> book_hotel     <- cancel_hotel     timeout 30s  (after check)
              -> confirm      <- nothing to undo  timeout 30s  (after book_flight, book_hotel)
          -> welcome          <- nothing to undo  timeout 30s  (starts at once)
    """)


def test_a_circuit_breaker_says_after_which_failures() -> None:
    breaker = Step("ask", compensation="use_last", recover_from=("rejected", "crashed"))
    assert text(Saga("order", breaker)).endswith(
        "-> ask  <- use_last  timeout 30s, may continue if rejected or crashed"
    )


def test_who_is_cancelled_with_a_sibling_is_said() -> None:
    saga = Saga(
        "order", Step("a"), Step("b"), Step("c", after="a"), Step("d", after=("b", "c")), on_sibling_failure="cancel"
    )
    said = [
        line.endswith("cancelled if the saga turns back") for line in text(saga).replace("  (after a)", "").splitlines()
    ]
    assert said[-4:] == [False, True, True, False], "only where there is a sibling"


def test_a_pivot_is_named_in_the_text_and_a_hexagon_in_mermaid() -> None:
    saga = Saga("order", Step("pay"), Step("ship", pivot=True))
    assert text(saga).endswith("-> ship  <- nothing to undo  pivot, timeout 30s")
    assert '    do_ship{{"ship"}}' in mermaid(saga).splitlines()


def test_the_string_of_a_saga_is_its_text() -> None:
    assert str(TRIP) == text(TRIP)


def test_a_linear_saga_is_a_chain_in_mermaid_with_dotted_ways_back() -> None:
    assert mermaid(Saga("order", Step("charge", compensation="refund"), Step("ship"))) == dedent("""
        flowchart LR
            saga_start(("start"))
            do_charge["charge"]
            saga_start --> do_charge
            do_charge -. undo .-> undo_charge(["refund"])
            do_ship["ship"]
            do_charge --> do_ship
            saga_end(("end"))
            do_ship --> saga_end
    """)


def test_a_parallel_saga_forks_and_joins_in_mermaid() -> None:
    assert mermaid(TRIP) == dedent("""
        flowchart LR
            saga_start(("start"))
            do_check["check"]
            saga_start --> do_check
            do_book_flight["book_flight"]
            do_check --> do_book_flight
            do_book_flight -. undo .-> undo_book_flight(["cancel_flight"])
            do_book_hotel["book_hotel"]
            do_check --> do_book_hotel
            do_book_hotel -. undo .-> undo_book_hotel(["cancel_hotel"])
            do_confirm["confirm"]
            do_book_flight --> do_confirm
            do_book_hotel --> do_confirm
            do_welcome["welcome"]
            saga_start --> do_welcome
            saga_end(("end"))
            do_confirm --> saga_end
            do_welcome --> saga_end
    """)


@pytest.mark.parametrize(
    "name", ["end", "style", "class", "click", "subgraph", "default", "start", "saga_end", "a__undo"]
)
def test_a_step_may_have_the_name_of_a_word_or_a_node_of_mermaid(name: str) -> None:
    lines = mermaid(Saga("order", Step(name, compensation=name), Step("a"))).splitlines()
    nodes = [line.split("(")[0].split("[")[0].split(".-> ")[-1].strip() for line in lines if re.search(r'[\[(]"', line)]
    assert nodes == ["saga_start", f"do_{name}", f"undo_{name}", "do_a", "saga_end"]
    assert len(set(nodes)) == len(nodes)


def test_a_description_cannot_break_lines_or_move_a_terminals_cursor() -> None:
    drawn = text(Saga("order", Step("a"), description='"Sells"\n\tthings\x1b[2J\u202e; --> x\u2028y'))
    assert drawn.splitlines()[1] == '"Sells" things [2J ; --> x y'
    assert all(character.isprintable() for line in drawn.split("\n") for character in line)
    assert len(drawn.split("\n")) == 4


def test_a_description_is_no_part_of_the_diagram() -> None:
    assert mermaid(Saga("order", Step("a"), description='"] --> x["')) == mermaid(Saga("order", Step("a")))


def test_a_signal_is_named_in_the_text_and_a_flag_in_mermaid() -> None:
    saga = Saga("order", Step("pay"), Step("ship", await_signal="approved", signal_timeout="2h"))
    assert text(saga).endswith("timeout 30s, waits for signal approved for 2h")
    assert '    signal_approved>"approved"] --> do_ship' in mermaid(saga).splitlines()
