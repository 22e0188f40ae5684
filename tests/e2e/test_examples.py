"""Every example runs by the command in its first lines, and says what it is there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))

pytestmark = pytest.mark.e2e


def said_by(name: str, tmp_path: Path) -> list[str]:
    """What the example prints, line by line; run from elsewhere, so that it depends on no directory."""
    ran = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    assert list(tmp_path.iterdir()) == []
    return [line.strip() for line in ran.stdout.splitlines()]


def test_every_example_says_how_it_is_run_and_is_in_the_list() -> None:
    listed = re.findall(
        r"^\| \[(\w+)\.py\]", (ROOT / "examples" / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed) == EXAMPLES
    for name in EXAMPLES:
        assert f"python examples/{name}.py" in (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")


def test_circuit_breaker_goes_on_with_the_last_rate_and_spares_the_provider(tmp_path: Path) -> None:
    said = said_by("circuit_breaker", tmp_path)
    assert said[1:3] == ["asked the provider: no answer", "no invoice: fetch_rate crashed"]
    down = said[said.index("It is down:") :]
    assert down.count("invoice: 109.00 dollars, rate 1.09 from the cache") == 5
    opened = down.index("3 failures in a row: the breaker opens for 30 s")
    assert down[:opened].count("asked the provider: no answer") == 3
    assert down[opened:].count("breaker open: the provider is not asked") == 2
    assert "asked the provider: no answer" not in down[opened:]
    assert said[-1] == "invoice: 111.00 dollars, rate 1.11 from the provider"


def test_retry_with_backoff_shows_rounds_waits_and_the_limit(tmp_path: Path) -> None:
    said = said_by("retry_with_backoff", tmp_path)
    end = next(number for number, line in enumerate(said) if line.startswith("The bank does not come back"))
    back, never = said[:end], said[end:]
    assert [line for line in back if line.startswith("round")][1::2] == ["round 2 begins", "round 3 begins"]
    assert "take_payment  round 3, attempt 1: paid" in back
    assert back.count("hold_seat     12A") == 1  # the steps before keep their effects
    assert "take_payment  round 4, attempt 2: the bank does not answer" in never
    assert "round 5 begins" not in never
    assert never.index("release_seat  12B") < never.index("compensated: take_payment crashed")
    assert never[-1].endswith("not honoured")
    waits = [(int(wait), int(most)) for wait, most in re.findall(r"retry in (\d+) ms \(0 to (\d+)\)", "\n".join(said))]
    assert [most for _, most in waits] == [9, 99, 9, 99, 499, 499]
    assert all(0 <= wait <= most for wait, most in waits)


def test_trip_bookings_settle_and_are_undone(tmp_path: Path) -> None:
    said = said_by("trip_bookings", tmp_path)
    rome, atlantis = said[said.index("To Rome:") : said.index("To Atlantis:")], said[said.index("To Atlantis:") :]
    assert "3.0 s  completed, as long as the slowest of the three" in rome
    assert atlantis[1].startswith("1.0 s  there is no hotel in Atlantis")
    assert atlantis[2:4] == ["2.0 s  booked a car in Atlantis", "3.0 s  booked a flight to Atlantis"]
    assert {line[7:] for line in atlantis[4:6]} == {"cancelled a flight to Atlantis", "cancelled a car in Atlantis"}
    assert atlantis[6:] == ["3.0 s  compensated, because of book_hotel: rejected, no_hotel", "standing: nothing"]


def test_user_sign_up_sends_one_mail_and_leaves_nothing_of_a_failed_one(tmp_path: Path) -> None:
    said = said_by("user_sign_up", tmp_path)
    assert "welcome mail, attempt 4" in said[: said.index("completed")]
    assert "ada@example.org: has account, 1 mail" in said
    assert "compensated, because of open_billing_profile: rejected card_refused" in said
    assert "bob@example.org: no account, 0 mails" in said
    assert said[-4:] == [
        "profile-2 closed",
        "account of cyd@example.org deleted",
        "compensated, because of send_welcome_mail: crashed",
        "cyd@example.org: no account, 0 mails",
    ]


def test_conditional_steps_run_where_they_are_wanted(tmp_path: Path) -> None:
    said = said_by("conditional_steps", tmp_path)
    assert any("when score.risk >= 0.5 or input.amount > 1000" in line for line in said)
    assert said[-11:] == [
        "ada orders a kite for 30:",
        "shipped, without review, wrap",
        "ada orders a yacht as a gift for 30000:",
        "shipped, without leaving out anything",
        "bob orders a kite as a gift for 30:",
        "shipped, without leaving out anything",
        "mallory orders a kite for 30:",
        "not shipped: review refused",
        "ada orders a piano for 900:",
        "piano is back on the shelf",
        "not shipped: ship too_heavy",
    ]


def test_sub_sagas_fail_their_step_and_are_undone_with_their_parent(tmp_path: Path) -> None:
    said = said_by("sub_sagas", tmp_path)
    assert said == [
        "To Rome:",
        "booked a hotel in Rome",
        "booked a flight to Rome",
        'completed: "vouchers for two weeks in Rome"',
        "the trip is completed",
        "To Atlantis:",
        "booked a hotel in Atlantis",
        "cancelled the hotel in Atlantis",
        "gave back 90000 cents",
        "compensated, because of trip: no_flight",
        "the trip is compensated",
        "To Oslo, without an address:",
        "booked a hotel in Oslo",
        "booked a flight to Oslo",
        "cancelled the flight to Oslo",
        "cancelled the hotel in Oslo",
        "gave back 90000 cents",
        "compensated, because of send_vouchers: no_address",
        "the trip is compensated",
    ]


def test_many_replicas_share_the_work_and_survive_a_kill(tmp_path: Path) -> None:
    said = said_by("many_replicas", tmp_path)
    assert said[2].startswith("replica 1 killed")
    assert said[3] == "60 sagas completed, 60 thumbnails made"
    assert sum(map(int, re.findall(r": (\d+)", said[4]))) == 60


def test_manual_approval_waits_uses_the_payload_and_gives_up(tmp_path: Path) -> None:
    said = said_by("manual_approval", tmp_path)
    assert said.count("3.0 h  ship is waiting for approved") == 3
    approved, limited = said.index("Approved after three hours:"), said.index("Approved, but not for so much:")
    assert said[approved:limited][-2:] == ["3.0 h  shipped, approved by ada", "3.0 h  completed"]
    assert said[-6:] == [
        "3.0 h  compensated: ship rejected, over_limit",
        "Nobody looks at it:",
        "0.0 h  reserved a piano",
        "3.0 h  ship is waiting for approved",
        "8.0 h  released it",
        "8.0 h  compensated: ship timed_out, signal",
    ]
