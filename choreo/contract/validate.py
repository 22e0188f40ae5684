"""Finds every problem of a contract, so that a person mends them all at once."""

from __future__ import annotations

import re
from collections import Counter
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

from choreo.contract.child import Child
from choreo.contract.condition import AllOf, AnyOf, Compare, Condition, Exists, IsIn, Scalar, Value, parts
from choreo.contract.graph import Graph
from choreo.contract.policy import (
    DURATION_MS_MAX,
    FORWARD_RETRIES_DEFAULT,
    CompensateOnFailure,
    OnSiblingFailure,
    RecoverFrom,
    Retries,
    duration_text,
)
from choreo.ids import SAGA_NAME_PATTERN, STEP_NAME_PATTERN

if TYPE_CHECKING:
    from choreo.contract.saga import Saga, StepSpec

STEPS_MAX = 256
RETRIES_MAX = 1_000
VERSION_MAX = 1_000_000  # what a record can carry
CONDITION_PARTS_MAX = 64
CONDITION_DEPTH_MAX = 16
CONDITION_VALUES_MAX = 256
CONDITION_TEXT_MAX = 256
CONDITION_NUMBER_MAX = 2**53  # up to here JSON readers of any language agree on whole numbers
NAMES_TAKEN = frozenset({"contracts"})  # choreo.contracts is the topic of the contracts themselves


def problems_of(saga: Saga) -> list[str]:
    """All problems, each a sentence that names the input, the rule, and what to do."""
    problems = list(_saga_problems(saga))
    if len(saga.steps) > STEPS_MAX:
        return problems  # looking for hints among any number of names would take any time
    names = [step.name for step in saga.steps]
    for name, count in Counter(names).items():
        if count > 1:
            problems.append(f"step {name!r} is defined {count} times; give each step a name of its own")
    for step in saga.steps:
        problems += _step_problems(step, names)
    # A step that waits for itself is told so by its own problem.
    graph = Graph({step.name: tuple(other for other in step.after if other != step.name) for step in saga.steps})
    if len(set(names)) == len(names) and graph.cyclic:
        cycle = ", ".join(repr(step) for step in graph.cyclic)
        problems.append(f"steps {cycle} wait for each other in a circle; remove one of their 'after'")
    problems += [
        f"step {step.name!r}: signal_timeout {duration_text(step.signal_timeout_ms)} is longer than the saga's "
        f"deadline, {duration_text(saga.deadline_ms)}, which would end the wait; raise one or lower the other"
        for step in saga.steps
        if step.signal_timeout_ms is not None and step.signal_timeout_ms > saga.deadline_ms
    ]
    if not problems:
        problems += _pivot_problems(saga)
        problems += _sibling_problems(saga)
        for step in saga.steps:
            if step.when is not None:
                problems += _condition_problems(saga, step, step.when)
            if step.child is not None:
                problems += _child_problems(saga, step, step.child)
    return problems


def _pivot_problems(saga: Saga) -> list[str]:
    """A pivot needs an order with every other step: what ran beside it could neither be undone nor be waited for."""
    problems = []
    pivots = [step.name for step in saga.steps if step.pivot]
    for position, pivot in enumerate(pivots):
        ordered = {pivot, *saga.graph.ancestors[pivot], *saga.graph.descendants[pivot]}
        for step in saga.steps:
            if step.name in ordered or step.name in pivots[:position]:
                continue
            if step.pivot:
                problems.append(f"pivots {pivot!r} and {step.name!r} have no order; let one of them wait for the other")
            else:
                problems.append(
                    f"step {step.name!r} may run beside the pivot {pivot!r}; "
                    f"let it wait for the pivot, or the pivot for it"
                )
    return problems + [
        f"step {step.name!r}: forward_retries are of a pivot and of steps behind it; use retries"
        for step in saga.steps
        if step.name not in saga.forward_only and step.forward_retries != FORWARD_RETRIES_DEFAULT
    ]


def _sibling_problems(saga: Saga) -> list[str]:
    """To be cancelled because of a sibling takes one, and a way back."""
    alone = [step.name for step in saga.steps if not saga.graph.siblings[step.name]]
    if saga.on_sibling_failure == "cancel":
        if len(alone) == len(saga.steps):
            return ["on_sibling_failure is 'cancel', but no two of its steps run side by side; leave it out"]
        return []
    problems = []
    for step in saga.steps:
        if step.on_sibling_failure != "cancel":
            continue
        if step.name in saga.forward_only:
            problems.append(
                f"step {step.name!r}: on_sibling_failure is 'cancel', but from the pivot on nothing is cancelled; "
                "leave it out"
            )
        elif step.name in alone:
            problems.append(
                f"step {step.name!r}: on_sibling_failure is 'cancel', but no step runs beside it; "
                "leave it out, or let it and another step be 'after' the same one"
            )
    return problems


def _condition_problems(saga: Saga, step: StepSpec, condition: Condition) -> list[str]:
    """A condition is evaluated by every reader of the log, in the same way, before the step runs."""
    where = f"step {step.name!r}: when"
    problems = []
    if step.pivot:
        problems.append(
            f"{where}: a pivot cannot be skipped: nobody would know whether there is a way back; "
            "put the condition on the steps around it"
        )
    found = list(parts(condition))
    if len(found) > CONDITION_PARTS_MAX or max(depth for _, depth in found) > CONDITION_DEPTH_MAX:
        return [
            *problems,
            (
                f"{where}: the condition has {len(found)} parts; at most {CONDITION_PARTS_MAX} are allowed, nested "
                f"at most {CONDITION_DEPTH_MAX} deep. Let an earlier step return what it comes down to"
            ),
        ]
    for part, _ in found:
        match part:
            case Compare(left=left, right=right):
                problems += _place_problems(saga, step, left)
                problems += _place_problems(saga, step, right) if isinstance(right, Value) else _constant(where, right)
            case IsIn(left=left, values=values):
                problems += _place_problems(saga, step, left)
                problems += [problem for value in values for problem in _constant(where, value)]
                if not 1 <= len(values) <= CONDITION_VALUES_MAX:
                    problems.append(f"{where}: is_in has {len(values)} values; give it 1 to {CONDITION_VALUES_MAX}")
            case Exists(left=left):
                problems += _place_problems(saga, step, left)
            case AllOf(of=several) | AnyOf(of=several) if not several:
                problems.append(f"{where}: '{part.__struct_config__.tag}' has no conditions; give it at least one")
    return list(dict.fromkeys(problems))


def _child_problems(saga: Saga, step: StepSpec, child: Child) -> list[str]:
    """A step that is a saga has no handler, so what is for handlers is not for it."""
    where = f"step {step.name!r}"
    problems = []
    if step.compensation is None:
        problems.append(f"{where}: a step that is a saga can be undone; its compensation is missing")
    if step.retries.limit:
        problems.append(f"{where}: retries are of handlers; give them to the steps of saga {child.saga!r}")
    if step.recover_from is not None:
        problems.append(f"{where}: recover_from is for compensations that can answer Continue; a saga cannot")
    if isinstance(child.input, Value):
        problems += _place_problems(saga, step, child.input, "input")
    elif child.input is not None:
        if len(child.input) > CONDITION_VALUES_MAX:
            return [
                *problems,
                f"{where}: input has {len(child.input)} fields; at most {CONDITION_VALUES_MAX} are allowed",
            ]
        for _, each in child.input:
            if isinstance(each, Value):
                problems += _place_problems(saga, step, each, "input")
            else:
                problems += _constant(f"{where}: input", each)
    return problems


def _place_problems(saga: Saga, step: StepSpec, place: Value, what: str = "when") -> list[str]:
    where = f"step {step.name!r}: {what}"
    problems = []
    before = saga.graph.ancestors[step.name]
    if place.step and place.step not in before:
        close = get_close_matches(place.step, before, n=1)
        if place.step == step.name:
            problems.append(f"{where}: it looks at its own effect, which is not there before it has run")
        elif place.step in saga:
            problems.append(
                f"{where}: it looks at the effect of {place.step!r}, which may not have run by then; "
                f"let {step.name!r} wait for it by 'after'"
            )
        else:
            hint = f"did you mean {close[0]!r}?" if close else f"steps before it: {', '.join(before) or 'none'}"
            problems.append(f"{where}: it looks at the effect of {place.step!r}, which is no step; {hint}")
    if len(place.path) > CONDITION_DEPTH_MAX:
        problems.append(f"{where}: path of {len(place.path)} keys; at most {CONDITION_DEPTH_MAX} are allowed")
    for segment in place.path:
        if isinstance(segment, bool) or not isinstance(segment, str | int):
            problems.append(f"{where}: path has {segment!r}; a key is a text, a position in a list a number")
        elif segment == "" or (isinstance(segment, str) and len(segment) > CONDITION_TEXT_MAX):
            problems.append(f"{where}: path has a key of {len(segment)} letters; 1 to {CONDITION_TEXT_MAX} are allowed")
        elif isinstance(segment, str) and not _is_unicode(segment):
            problems.append(f"{where}: path has a key that is no valid Unicode")
        elif isinstance(segment, int) and not 0 <= segment <= CONDITION_NUMBER_MAX:
            problems.append(f"{where}: path has the position {segment}; count from 0")
    return problems


def _constant(where: str, value: Scalar) -> list[str]:
    if value is None or isinstance(value, bool):
        return []
    if isinstance(value, str):
        if len(value) > CONDITION_TEXT_MAX:
            return [
                f"{where}: it compares with a text of {len(value)} letters; at most {CONDITION_TEXT_MAX} are allowed"
            ]
        return [] if _is_unicode(value) else [f"{where}: it compares with a text that is no valid Unicode"]
    if isinstance(value, int | float):
        if not -CONDITION_NUMBER_MAX <= value <= CONDITION_NUMBER_MAX:  # not a number fails this, too
            return [f"{where}: it compares with {value}, which is no number between -2**53 and 2**53"]
        return []
    return [
        (
            f"{where}: it compares with a {type(value).__name__}; constants are texts, numbers, True, False and None, "
            "written as they are in JSON"
        )
    ]


def _is_unicode(text: str) -> bool:
    """Whether it can be written: half of a surrogate pair cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _saga_problems(saga: Saga) -> list[str]:
    problems = []
    if not re.match(SAGA_NAME_PATTERN, saga.name):
        problems.append(f"name {saga.name!r} must match {SAGA_NAME_PATTERN}: it becomes part of a topic's name")
    if saga.name in NAMES_TAKEN:
        problems.append(f"name {saga.name!r} is taken: choreo.{saga.name} is a topic of choreo's own; choose another")
    if not saga.steps:
        problems.append("it has no steps; give it at least one")
    if len(saga.steps) > STEPS_MAX:
        problems.append(f"it has {len(saga.steps)} steps; at most {STEPS_MAX} are allowed")
    if not 1 <= saga.version <= VERSION_MAX:
        problems.append(f"version {saga.version} is not between 1 and {VERSION_MAX}; count from 1")
    problems += _policy_problems("compensate_on_failure", saga.compensate_on_failure)
    problems += _policy_problems("on_sibling_failure", saga.on_sibling_failure, OnSiblingFailure)
    for step in saga.steps:
        if step.on_sibling_failure != saga.on_sibling_failure:  # else that was said of the saga
            where = f"step {step.name!r}: on_sibling_failure"
            problems += _policy_problems(where, step.on_sibling_failure, OnSiblingFailure)
    return problems


def _step_problems(step: StepSpec, names: list[str]) -> list[str]:
    where = f"step {step.name!r}"
    problems = []
    if not re.match(STEP_NAME_PATTERN, step.name):
        problems.append(f"{where}: a step's name must match {STEP_NAME_PATTERN}")
    if step.compensation is not None and not re.match(STEP_NAME_PATTERN, step.compensation):
        problems.append(f"{where}: compensation {step.compensation!r} must match {STEP_NAME_PATTERN}")
    for other in step.after:
        if other == step.name:
            problems.append(f"{where}: it waits for itself; remove it from its 'after'")
        elif other not in names:
            close = get_close_matches(other, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the steps are {', '.join(names)}"
            problems.append(f"{where}: after={other!r} names no step; {hint}")
    if len(set(step.after)) < len(step.after):
        problems.append(f"{where}: 'after' names a step twice")
    for what in ("timeout_ms", "deadline_ms", "compensation_deadline_ms", "signal_timeout_ms"):
        milliseconds = getattr(step, what)
        if milliseconds is not None and not 0 < milliseconds <= DURATION_MS_MAX:
            problems.append(f"{where}: {what} {milliseconds} is not between 1 and {DURATION_MS_MAX}")
    if step.child is None and step.deadline_ms is not None and 0 < step.deadline_ms < step.timeout_ms:
        problems.append(
            f"{where}: deadline {duration_text(step.deadline_ms)} is shorter than the timeout of one attempt, "
            f"{duration_text(step.timeout_ms)}; lower the timeout or raise the deadline"
        )
    problems += _retries_problems(f"{where}: retries", step.retries)
    problems += _retries_problems(f"{where}: compensation_retries", step.compensation_retries)
    problems += _retries_problems(f"{where}: forward_retries", step.forward_retries)
    problems += _policy_problems(f"{where}: compensate_on_failure", step.compensate_on_failure)
    problems += _recovery_problems(where, step)
    problems += _signal_problems(where, step)
    return problems


def _signal_problems(where: str, step: StepSpec) -> list[str]:
    problems = []
    if step.await_signal is not None and not re.match(STEP_NAME_PATTERN, step.await_signal):
        problems.append(f"{where}: await_signal {step.await_signal!r} must match {STEP_NAME_PATTERN}")
    if step.signal_timeout_ms is not None and step.await_signal is None:
        problems.append(f"{where}: signal_timeout is how long a signal is waited for; name one with await_signal")
    return problems


def _recovery_problems(where: str, step: StepSpec) -> list[str]:
    if step.recover_from is None:
        return []
    allowed = get_args(RecoverFrom)
    problems = [
        f"{where}: recover_from names {kind!r}; it may name {', '.join(allowed)}"
        for kind in step.recover_from
        if kind not in allowed
    ]
    if step.compensation is None:
        problems.append(f"{where}: recover_from needs a compensation: only that can answer Continue")
    return problems


def _retries_problems(what: str, retries: Retries) -> list[str]:
    problems = []
    if not 0 <= retries.limit <= RETRIES_MAX:
        problems.append(f"{what}: limit {retries.limit} is not between 0 and {RETRIES_MAX}")
    if not 0 < retries.backoff_ms_base <= retries.backoff_ms_max <= DURATION_MS_MAX:
        problems.append(
            f"{what}: backoff_ms_base {retries.backoff_ms_base} must be positive and at most "
            f"backoff_ms_max {retries.backoff_ms_max}, and that at most {DURATION_MS_MAX}"
        )
    return problems


def _policy_problems(what: str, policy: str, policies: Any = CompensateOnFailure) -> list[str]:
    allowed = get_args(policies)
    return [] if policy in allowed else [f"{what} is {policy!r}; it must be one of {', '.join(allowed)}"]
