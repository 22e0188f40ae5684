"""The sagas whose crash points are tried: chains and forks of up to five steps that complete, fail or start again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from choreo.contract import Saga, Step
from choreo.contract.policy import Retries
from tests.simulation.shapes import Shape

AT_ONCE = Retries(limit=1, backoff_ms_base=1, backoff_ms_max=1)
ONCE: dict[str, Any] = {"retries": Retries(limit=0), "compensation_retries": AT_ONCE, "timeout": "30s"}


class Scenario(NamedTuple):
    """A saga and what happens in it besides deaths.

    Attributes:
        rejects: the step that has no effect and says so, in the first round.
        crashes: the step that fails after its effect, in the first round.
        flaky: the step whose first attempt fails.
        asks_for_retry: the step whose compensation asks for another round.
        cancelled_after_s: when a client cancels.
    """

    name: str
    shape: Shape
    outcome: str = "completed"
    rejects: str = ""
    crashes: str = ""
    flaky: str = ""
    asks_for_retry: str = ""
    cancelled_after_s: float | None = None


def shape_of(name: str, graph: Mapping[str, tuple[str, ...]], *, flaky: str = "") -> Shape:
    """A contract with these steps, hosted by two services in turn, so that neighbours are strangers."""
    contract = Saga(
        name,
        *(
            Step(
                step,
                compensation=f"undo_{step}",
                after=needs,
                **{**ONCE, **({"retries": AT_ONCE} if step == flaky else {})},
            )
            for step, needs in graph.items()
        ),
    )
    steps = list(graph)
    services = {"alpha": tuple(steps[::2]), "beta": tuple(steps[1::2])}
    return Shape(contract, {service: hosted for service, hosted in services.items() if hosted})


CHAINS = {
    f"chain-{length}": {step: (("abcde"[at - 1],) if at else ()) for at, step in enumerate("abcde"[:length])}
    for length in range(1, 6)
}
FORKS = {
    "fork-3": {"a": (), "b": (), "c": ("a", "b")},
    "fork-4": {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")},
    "fork-5": {"a": (), "b": ("a",), "c": ("a",), "d": ("c",), "e": ("b", "d")},
}


def scenarios(graphs: Mapping[str, Mapping[str, tuple[str, ...]]]) -> Iterator[Scenario]:
    """Each graph: as it is, with a flaky step, cancelled, in two rounds, with both kinds of failure at each step."""
    for name, graph in graphs.items():
        last, plain = list(graph)[-1], shape_of(name, graph)
        yield Scenario(f"{name} completes", plain)
        yield Scenario(f"{name}, {last} is flaky", shape_of(name, graph, flaky=last), flaky=last)
        yield Scenario(f"{name} is cancelled", plain, "compensated", cancelled_after_s=0.0)
        yield Scenario(f"{name}, {last} is tried in another round", plain, crashes=last, asks_for_retry=last)
        for step in graph:
            yield Scenario(f"{name}, {step} rejects", plain, "compensated", rejects=step)
            yield Scenario(f"{name}, {step} crashes", plain, "compensated", crashes=step)


def families() -> Iterator[Scenario]:
    """A step that is a saga of one step: it completes, fails, and is undone because the step behind it fails."""
    child = shape_of("child", {"x": ()})
    step = Step("s", saga=child.contract)
    alone = Shape(Saga("parent", step), {}, (child,))
    followed = Shape(Saga("parent", step, Step("b", "undo_b", **ONCE)), {"beta": ("b",)}, (child,))
    yield Scenario("child completes", alone)
    yield Scenario("child, x rejects", alone, "compensated", rejects="x")
    yield Scenario("child, x crashes", alone, "compensated", crashes="x")
    yield Scenario("child is cancelled with its parent", alone, "compensated", cancelled_after_s=0.0)
    yield Scenario("child-then-b completes", followed)
    yield Scenario("child-then-b, b rejects", followed, "compensated", rejects="b")


ALL = {each.name: each for each in (*scenarios({**CHAINS, **FORKS}), *families())}
