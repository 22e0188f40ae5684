"""A saga is a value that reads in the order in which it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any, get_args

import msgspec

from choreo.contract.child import Child, child_of
from choreo.contract.condition import AnyCondition, Condition, as_condition
from choreo.contract.graph import Graph, Hop
from choreo.contract.policy import (
    FORWARD_RETRIES_DEFAULT,
    RECOVER_FROM_DEFAULT,
    CompensateOnFailure,
    Duration,
    OnSiblingFailure,
    RecoverFrom,
    Retries,
    duration_ms,
)
from choreo.contract.when import Place
from choreo.errors import DefinitionError

_DAY_MS = 86_400_000
UNDO_CHILD = "undo"
"""The compensation of a step that is a saga. No service has a handler for it."""


class StepSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A step of a saga, all defaults filled in. Made by ``Step``.

    What has a default here came later: left out of the document, it leaves older contracts' hashes as they were.

    Attributes:
        name: unique in the saga.
        after: the steps whose effects this one builds on; empty for a step that starts with the saga.
        compensation: the name of what undoes the step; ``None`` if nothing has to be undone.
        timeout_ms: bound of one attempt, enforced by the worker.
        deadline_ms: bound from the append of the trigger to the append of the outcome, outages and retries
            included; ``None`` for the saga's own deadline alone.
        retries: further attempts of the handler after an unexpected exception or a timeout.
        compensation_retries: further attempts of the compensation, then the saga is stuck.
        compensation_deadline_ms: bound from the append of ``Compensate`` to the append of the answer.
        compensate_on_failure: whether this step's own compensation runs when it is the one that fails.
        recover_from: after these kinds of failure it runs whatever that policy says, and only after these it may
            answer ``Continue``; ``None``: by the policy, and it may after ``rejected``.
        pivot: once it has completed there is only the way forward.
        forward_retries: further rounds of a pivot without a definite outcome, or of a failed step behind the pivot.
        await_signal: the step does not run before a signal of this name is in the log; ``None`` if it waits for none.
        signal_timeout_ms: bound of that wait, from when all that the step builds on stands; ``None`` for the saga's
            deadline alone.
        when: it runs only if this holds when all that it waits for is done; otherwise it is skipped. ``None``: always.
        child: the saga that this step is; ``None`` for a step that a service runs.
        on_sibling_failure: whether its attempt is cancelled when the saga turns back meanwhile.
    """

    name: str
    after: tuple[str, ...]
    compensation: str | None
    timeout_ms: int
    deadline_ms: int | None
    retries: Retries
    compensation_retries: Retries
    compensation_deadline_ms: int
    compensate_on_failure: CompensateOnFailure
    recover_from: tuple[RecoverFrom, ...] | None = None
    pivot: bool = False
    forward_retries: Retries = FORWARD_RETRIES_DEFAULT
    await_signal: str | None = None
    signal_timeout_ms: int | None = None
    when: AnyCondition | None = None
    child: Child | None = None
    on_sibling_failure: OnSiblingFailure = "settle"

    @property
    def is_commanded(self) -> bool:
        """Whether no event triggers it, because only the saga-log knows whether it may run: it gets ``Execute``."""
        return self.pivot or self.await_signal is not None or self.when is not None or self.child is not None

    def may_recover_from(self, kind: str) -> bool:
        """Whether the own compensation may answer ``Continue`` after a failure of this kind."""
        return kind in (RECOVER_FROM_DEFAULT if self.recover_from is None else self.recover_from)

    def is_asked_after(self, kind: str) -> bool:
        """Whether the own compensation runs after a failure of this kind, whatever the policy says."""
        return self.recover_from is not None and kind in self.recover_from


@dataclass(frozen=True)
class Step:
    """A step as a person writes it; what is left out is filled in by the saga.

    Args:
        name: lower case letters, digits and ``_``; unique in the saga.
        compensation: a name for what undoes the step ("refund_card"); a service binds a handler to it.
        after: names of the steps it waits for; by default the step before it in the list, ``()`` for none.
        timeout: bound of one attempt, 30 s by default.
        deadline: bound of the whole step, outages and retries included; none but the saga's by default.
        retries: extra attempts, a number or ``Retries``; none by default.
        compensation_retries: extra attempts of the compensation; 4 by default.
        compensation_deadline: bound of the compensation as a whole, 15 min by default.
        compensate_on_failure: overrides the saga's policy for this step.
        recover_from: makes the step a circuit breaker: after a failure of one of these kinds ("rejected", "crashed",
            "timed_out") its own compensation runs, whatever ``compensate_on_failure`` says, and may answer
            ``Continue`` with a substitute. By default it may after "rejected", where the policy lets it run at all.
        pivot: the point of no return. Until its outcome is certain, cancels wait and deadlines only alert. Once it has
            completed, nothing is undone any more: what fails behind it is retried until it is done, or stuck.
        forward_retries: of the pivot and of steps behind it: how many further rounds before an operator is asked, a
            number or ``Retries``; by default 10, the first after at most 1 s, none after more than 5 min.
        await_signal: a name ("approved"): the step runs when all that it builds on stands and a signal of this name is
            in the log, whichever comes later. Several steps may wait for one name. The handler gets the payload.
        signal_timeout: bound of the wait for the signal; then the step fails without having run, as timed out with
            code ``signal``. By default the saga's deadline.
        when: a condition on the saga's input and the effects of earlier steps (``choreo.when``). Where it does not hold
            the step is skipped: it has no effect and nothing to undo, and what comes after it goes on.
        on_sibling_failure: overrides the saga's policy for this step: "cancel" if it may be cancelled in its middle
            when the saga turns back, "settle" if it is to go on to its own end.
        saga: the step is a saga of its own: it completes with that saga's result, fails if that is compensated, and is
            undone by undoing it. No service runs it. If that saga has a pivot, the step is one.
        input: of that saga, from the parent's context: ``{"city": when.input("city"), "room": when.effect("ask")}``,
            or one place; by default the parent's input.
    """

    name: str
    compensation: str | None = None
    after: tuple[str, ...] | str | None = None
    timeout: Duration = "30s"
    deadline: Duration | None = None
    retries: Retries | int = 0
    compensation_retries: Retries | int = 4
    compensation_deadline: Duration = "15m"
    compensate_on_failure: CompensateOnFailure | None = None
    recover_from: tuple[RecoverFrom, ...] | RecoverFrom | None = None
    pivot: bool = False
    forward_retries: Retries | int | None = None
    await_signal: str | None = None
    signal_timeout: Duration | None = None
    when: Condition | Place | None = None
    on_sibling_failure: OnSiblingFailure | None = None
    saga: Saga | None = None
    input: Place | Mapping[str, Any] | None = None


@dataclass(frozen=True, init=False)
class Saga:
    """The contract of a saga: its steps, what each reacts to, and its policies. Checked when it is made.

        ORDER = Saga(
            "order",
            Step("reserve_stock", compensation="release_stock"),
            Step("charge_card", compensation="refund_card", retries=3),
            Step("book_carrier", compensation="cancel_carrier", timeout="10s"),
            deadline="1h",
        )

    Attributes:
        children: the contracts of its steps that are sagas, and of theirs; empty if it was read from its document.

    Equal contracts are equal values with equal hashes, on every machine and in every release that writes the same
    ``document``. A change of anything in it needs another ``version``: services refuse the same version with another
    ``content_hash``.

    Raises:
        DefinitionError: with every problem found, not only the first.
    """

    name: str
    steps: tuple[StepSpec, ...]
    version: int
    deadline_ms: int
    settle_ms: int
    grace_ms: int
    compensate_on_failure: CompensateOnFailure
    on_sibling_failure: OnSiblingFailure
    description: str = field(compare=False)
    children: tuple[Saga, ...] = field(compare=False)

    def __init__(
        self,
        name: str,
        *steps: Step | StepSpec,
        version: int = 1,
        deadline: Duration = "24h",
        settle: Duration = "15m",
        grace: Duration = "5s",
        compensate_on_failure: CompensateOnFailure = "if_unknown",
        on_sibling_failure: OnSiblingFailure = "settle",
        description: str = "",
    ) -> None:
        """Define a saga.

        Args:
            name: names the topic ``choreo.<name>``.
            steps: in the order in which they run.
            version: raise it with every change.
            deadline: from the append of ``SagaStarted``; must be shorter than the topic's retention.
            settle: how long a step in flight may still take once the saga is failing.
            grace: how long past its due a step's outcome is waited for, for clocks and queues.
            compensate_on_failure: policy of the steps that have none of their own.
            on_sibling_failure: what becomes of steps in parallel branches that are at work when one branch fails, or
                the saga is cancelled: they "settle", or the saga-log has their services "cancel" the attempt. Not where
                the failed step may still get a substitute (``Continue``), and not from the pivot on.
            description: for people; not part of the content hash.
        """
        from choreo.contract.validate import problems_of

        problems: list[str] = []
        specs: list[StepSpec] = []
        for position, step in enumerate(steps, 1):
            previous = specs[-1].name if specs else None
            if not isinstance(step, Step | StepSpec):
                problems.append(
                    f"argument {position} after the name is a {type(step).__name__}, not a Step; "
                    'write Saga("order", Step("reserve"), Step("charge"))'
                )
                continue
            specs.append(
                step
                if isinstance(step, StepSpec)
                else _fill_in(step, previous, compensate_on_failure, on_sibling_failure, problems)
            )
        times = {
            what: _milliseconds(value, f"saga {name!r}: {what}", problems)
            for what, value in (("deadline", deadline), ("settle", settle), ("grace", grace))
        }
        set_field = object.__setattr__
        set_field(self, "name", name)
        set_field(self, "steps", tuple(specs))
        set_field(self, "version", version)
        set_field(self, "deadline_ms", times["deadline"])
        set_field(self, "settle_ms", times["settle"])
        set_field(self, "grace_ms", times["grace"])
        set_field(self, "compensate_on_failure", compensate_on_failure)
        set_field(self, "on_sibling_failure", on_sibling_failure)
        set_field(self, "description", description)
        set_field(self, "children", _children(steps))
        problems += problems_of(self)
        if problems:
            raise DefinitionError(f"saga {name!r}", tuple(problems))

    @cached_property
    def graph(self) -> Graph:
        """Who comes before and after whom."""
        families = {step.name for step in self.steps if step.child is not None}
        commanded = (step.name for step in self.steps if step.is_commanded or families.intersection(step.after))
        return Graph({step.name: step.after for step in self.steps}, commanded)

    @cached_property
    def forward_only(self) -> frozenset[str]:
        """The pivots and all behind them: the steps that no deadline ends."""
        pivots = [step.name for step in self.steps if step.pivot]
        return frozenset(pivots).union(*(self.graph.descendants[pivot] for pivot in pivots))

    @cached_property
    def cancellable(self) -> frozenset[str]:
        """The steps whose attempt is cancelled when the saga turns back. From the pivot on it does not."""
        asked = (step.name for step in self.steps if step.on_sibling_failure == "cancel")
        return frozenset(asked) - self.forward_only

    @cached_property
    def hops(self) -> dict[str, Hop]:
        """What the start leads to, under the empty name, and each step's completion.

        Not that of a pivot: it changes more than who comes next.
        """
        graph = self.graph
        first = tuple(step for step, needs in graph.before.items() if not needs)
        follow = {"": (first, graph.roots)}
        follow |= {
            step.name: (graph.after[step.name], graph.chained[step.name]) for step in self.steps if not step.pivot
        }
        return {
            step: Hop(
                tuple((other, self[other].deadline_ms) for other in chained),
                tuple(graph.needs[other] for other in others if other not in chained),
            )
            for step, (others, chained) in follow.items()
        }

    @cached_property
    def signals(self) -> dict[str, tuple[str, ...]]:
        """The names of the signals that steps wait for, and which steps."""
        found: dict[str, tuple[str, ...]] = {}
        for step in self.steps:
            if step.await_signal is not None:
                found[step.await_signal] = (*found.get(step.await_signal, ()), step.name)
        return found

    @cached_property
    def _by_name(self) -> dict[str, StepSpec]:
        return {step.name: step for step in self.steps}

    def __getitem__(self, step: str) -> StepSpec:
        """The step of that name.

        Raises:
            DefinitionError: there is none; the message lists those there are.
        """
        try:
            return self._by_name[step]
        except KeyError:
            names = ", ".join(self._by_name)
            raise DefinitionError(
                f"step {step!r}", (f"saga {self.name!r} version {self.version} has no such step; it has {names}",)
            ) from None

    def __contains__(self, step: object) -> bool:
        return step in self._by_name

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the contract's document, 32 hex digits."""
        from choreo.contract.document import content_hash

        return content_hash(self)

    def extend(self, *steps: Step, version: int | None = None) -> Saga:
        """The same saga with more steps behind its last one."""
        extended = Saga(
            self.name,
            *self.steps,
            *steps,
            version=self.version if version is None else version,
            deadline=timedelta(milliseconds=self.deadline_ms),
            settle=timedelta(milliseconds=self.settle_ms),
            grace=timedelta(milliseconds=self.grace_ms),
            compensate_on_failure=self.compensate_on_failure,
            on_sibling_failure=self.on_sibling_failure,
            description=self.description,
        )
        object.__setattr__(extended, "children", tuple(dict.fromkeys((*self.children, *extended.children))))
        return extended

    def __str__(self) -> str:
        from choreo.contract.render import text

        return text(self)


def with_children(sagas: Iterable[Saga]) -> tuple[Saga, ...]:
    """These contracts and those of their steps that are sagas, each once."""
    return tuple(dict.fromkeys(each for saga in sagas for each in (saga, *saga.children)))


def _children(steps: Iterable[Step | StepSpec]) -> tuple[Saga, ...]:
    """The sagas that these steps are, and those that their steps are, each once."""
    return with_children(step.saga for step in steps if isinstance(step, Step) and step.saga is not None)


def _milliseconds(value: Duration, what: str, problems: list[str]) -> int:
    try:
        return duration_ms(value)
    except (ValueError, TypeError) as error:
        problems.append(f"{what}: {error}")
        return _DAY_MS


def _retries(value: Retries | int) -> Retries:
    return value if isinstance(value, Retries) else Retries(limit=value)


def _forward_retries(value: Retries | int | None) -> Retries:
    if isinstance(value, int):
        return msgspec.structs.replace(FORWARD_RETRIES_DEFAULT, limit=value)
    return FORWARD_RETRIES_DEFAULT if value is None else value


def _kinds(value: tuple[RecoverFrom, ...] | RecoverFrom | None) -> tuple[RecoverFrom, ...] | None:
    if value is None:
        return None
    named = (value,) if isinstance(value, str) else tuple(value)
    in_order = [kind for kind in get_args(RecoverFrom) if kind in named]  # one contract, however it was written
    return (*in_order, *(kind for kind in named if kind not in in_order))


def _condition(value: Condition | Place | None, where: str, problems: list[str]) -> AnyCondition | None:
    if value is None:
        return None
    try:
        return as_condition(value)
    except DefinitionError as error:
        problems += [f"{where}: when: {problem}" for problem in error.problems]
        return None


def _fill_in(
    step: Step,
    previous: str | None,
    policy: CompensateOnFailure,
    on_sibling_failure: OnSiblingFailure,
    problems: list[str],
) -> StepSpec:
    where = f"step {step.name!r}"
    if step.after is None:
        after: tuple[str, ...] = (previous,) if previous is not None else ()
    else:
        after = (step.after,) if isinstance(step.after, str) else tuple(step.after)
    deadline = None if step.deadline is None else _milliseconds(step.deadline, f"{where}: deadline", problems)
    patience = step.signal_timeout
    child = None if step.saga is None else child_of(step.saga, step.input)
    if child is None and step.input is not None:
        problems.append(
            f"{where}: input is for a step that is a saga; give it saga=, or let its handler pick its input"
        )
    if child is not None and step.compensation is not None:
        problems.append(f"{where}: it is undone by undoing saga {child.saga!r}; leave out its compensation")
    return StepSpec(
        name=step.name,
        after=after,
        compensation=step.compensation if child is None else UNDO_CHILD,
        timeout_ms=_milliseconds(step.timeout, f"{where}: timeout", problems),
        deadline_ms=deadline,
        retries=_retries(step.retries),
        compensation_retries=_retries(step.compensation_retries),
        compensation_deadline_ms=_milliseconds(step.compensation_deadline, f"{where}: compensation_deadline", problems),
        compensate_on_failure=step.compensate_on_failure or policy,
        recover_from=_kinds(step.recover_from),
        pivot=step.pivot or (step.saga is not None and any(each.pivot for each in step.saga.steps)),
        forward_retries=_forward_retries(step.forward_retries),
        await_signal=step.await_signal,
        signal_timeout_ms=None if patience is None else _milliseconds(patience, f"{where}: signal_timeout", problems),
        when=_condition(step.when, where, problems),
        child=child,
        on_sibling_failure=step.on_sibling_failure or on_sibling_failure,
    )
