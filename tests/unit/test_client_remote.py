"""A service's exception, rebuilt for the caller of ``run``."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from choreo.client.remote import remote_exception
from choreo.contract import Saga, Step
from choreo.errors import SagaFailed
from choreo.messages.records import Failure
from choreo.step import Service
from choreo.step.failure import crash
from choreo.testing import Runner


class CardError(ValueError):
    made = 0

    def __new__(cls, *args: Any) -> CardError:
        cls.made += 1
        return super().__new__(cls, *args)

    def __init__(self, card: str, cents: int) -> None:
        super().__init__(f"{card} has no {cents} cents")
        self.card = card

    class NestedError(OSError):
        pass


def charge() -> None:
    raise CardError("4242", 7)


def rebuilt(error: BaseException, *modules: str) -> Exception | None:
    return remote_exception(crash(error), modules)


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), ConnectionResetError("gone"), KeyError("k"), CardError("4242", 7), CardError.NestedError("n")],
)
def test_class_and_message_come_back(error: Exception) -> None:
    found = rebuilt(error)
    assert type(found) is type(error)
    assert str(error) in str(found)


def test_no_constructor_of_a_user_runs() -> None:
    failure = crash(CardError("4242", 7))
    before = CardError.made
    found = remote_exception(failure)
    assert isinstance(found, CardError)
    assert CardError.made == before
    assert not hasattr(found, "card")


def test_the_traceback_in_the_service_is_a_note() -> None:
    with pytest.raises(CardError) as raised:
        charge()
    found = rebuilt(raised.value)
    assert found is not None
    assert "in charge" in found.__notes__[0]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ValueError",
        "builtins.print",
        "builtins.SystemExit",
        "builtins.KeyboardInterrupt",
        "builtins.ExceptionGroup",
        "builtins.no_such",
        "os.path",
        "no.such.module.Error",
        "builtins..ValueError",
        ".",
        "subprocess.Popen",
        f"{__name__}.CardError.__init__",
        f"{__name__}.CardError.<locals>.Error",
    ],
)
def test_what_is_no_exception_of_here_stays_a_name(name: str) -> None:
    assert remote_exception(Failure(kind="crashed", exception_type=name)) is None


def test_a_rejection_tells_of_no_exception() -> None:
    assert remote_exception(Failure(kind="rejected", code="no")) is None


def test_nothing_is_imported_that_the_caller_has_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_errors.py").write_text("class OutOfStock(Exception):\n    pass\n", encoding="utf-8")
    (tmp_path / "shop_broken.py").write_text("raise RuntimeError\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    failure = Failure(kind="crashed", message="none left", exception_type="shop_errors.OutOfStock")
    assert remote_exception(failure) is None
    assert "shop_errors" not in sys.modules
    found = remote_exception(failure, ["shop_errors"])
    assert type(found).__name__ == "OutOfStock"
    assert remote_exception(Failure(kind="crashed", exception_type="shop_broken.Error"), ["shop_broken"]) is None
    monkeypatch.delitem(sys.modules, "shop_errors")


def test_no_module_is_asked_for_what_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = ModuleType("lazy_module")
    asked: list[str] = []
    lazy.__getattr__ = asked.append  # type: ignore[method-assign,assignment]
    monkeypatch.setitem(sys.modules, "lazy_module", lazy)
    assert remote_exception(Failure(kind="crashed", exception_type="lazy_module.Error")) is None
    assert asked == []


async def test_run_raises_from_the_services_exception() -> None:
    saga, service = Saga("pay", Step("charge")), Service("payment")

    service.step(saga, "charge")(charge)
    async with Runner(service) as runner:
        with pytest.raises(SagaFailed) as failed:
            await runner.run(saga, None)
    assert isinstance(failed.value.__cause__, CardError)
    assert "raise CardError" in failed.value.__cause__.__notes__[0]
