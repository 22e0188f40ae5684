"""A contract drawn for people: text for a terminal, Mermaid for a page."""

from __future__ import annotations

from choreo.contract import condition
from choreo.contract.policy import duration_text
from choreo.contract.saga import Saga, StepSpec


def text(saga: Saga) -> str:
    """A line for each step: ``->`` forward, what it waits for, ``<-`` back, and its limits."""
    lines = [
        f"saga {saga.name} v{saga.version}  [{saga.content_hash[:12]}]",
        f"deadline {duration_text(saga.deadline_ms)}, own compensation of a failed step: {saga.compensate_on_failure}",
    ]
    if saga.description:
        lines.insert(1, _one_line(saga.description))
    width = max(len(step.name) for step in saga.steps)
    back_width = max(len(step.compensation or "nothing to undo") for step in saga.steps)
    for step in saga.steps:
        forward = f"{'  ' * saga.graph.depth[step.name]}-> {step.name}"
        indent = width + 3 + 2 * max(saga.graph.depth.values())
        back = f"<- {step.compensation or 'nothing to undo'}"
        lines.append(
            f"  {forward:<{indent}}  {back:<{back_width + 3}}  {_limits(saga, step)}{_waits(saga, step)}".rstrip()
        )
    return "\n".join(lines)


def mermaid(saga: Saga) -> str:
    """A flowchart: solid arrows forward, with conditions, dotted ones to compensations; pivots hexagons, signals flags.

    Nodes have prefixes and labels quotes, because a step may be called ``end`` or ``style``, words of Mermaid's own.
    """
    lines = ["flowchart LR", '    saga_start(("start"))']
    for step in saga.steps:
        opens, closes = ("[[", "]]") if step.child is not None else ("{{", "}}") if step.pivot else ("[", "]")
        lines.append(f'    do_{step.name}{opens}"{step.name}"{closes}')
        label = "" if step.when is None else f'|"when {condition.text(step.when).translate(_MERMAID)}"|'
        lines += [f"    do_{other} -->{label} do_{step.name}" for other in step.after]
        if not step.after:
            lines.append(f"    saga_start -->{label} do_{step.name}")
        if step.await_signal is not None:
            lines.append(f'    signal_{step.await_signal}>"{step.await_signal}"] --> do_{step.name}')
        if step.compensation is not None:
            lines.append(f'    do_{step.name} -. undo .-> undo_{step.name}(["{step.compensation}"])')
    lines.append('    saga_end(("end"))')
    lines += [f"    do_{step.name} --> saga_end" for step in saga.steps if not saga.graph.after[step.name]]
    return "\n".join(lines)


_MERMAID = str.maketrans({letter: f"#{ord(letter)};" for letter in '#"<>&`|'})
"""What would end a label or be taken for markup, by its number."""


def _one_line(description: str) -> str:
    """The description without anything that could move a terminal's cursor: contracts come over the wire, too."""
    return "".join(character if character.isprintable() else " " for character in " ".join(description.split()))


def _limits(saga: Saga, step: StepSpec) -> str:
    limits = ["pivot"] if step.pivot else []
    if step.child is not None:
        limits.append(f"saga {step.child.saga} v{step.child.version}")
    if step.when is not None:
        limits.append(f"when {condition.text(step.when)}")
    limits.append(f"timeout {duration_text(step.timeout_ms)}")
    if step.deadline_ms is not None:
        limits.append(f"deadline {duration_text(step.deadline_ms)}")
    if step.retries.limit:
        limits.append("1 retry" if step.retries.limit == 1 else f"{step.retries.limit} retries")
    if step.await_signal is not None:
        at_most = "" if step.signal_timeout_ms is None else f" for {duration_text(step.signal_timeout_ms)}"
        limits.append(f"waits for signal {step.await_signal}{at_most}")
    if step.name in saga.cancellable and saga.graph.siblings[step.name]:
        limits.append("cancelled if the saga turns back")
    if step.recover_from:
        limits.append(f"may continue if {' or '.join(step.recover_from)}")
    return ", ".join(limits)


def _waits(saga: Saga, step: StepSpec) -> str:
    position = saga.steps.index(step)
    previous = saga.steps[position - 1].name if position else None
    usual = (previous,) if previous else ()
    if step.after == usual:
        return ""
    return f"  (after {', '.join(step.after)})" if step.after else "  (starts at once)"
