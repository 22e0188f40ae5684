"""A contract's steps as a graph: a column for each depth, arrows from predecessors. Pure; lengths in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from choreo.contract.saga import Saga

NODE_WIDTH, NODE_HEIGHT = 176, 58
GAP_X, GAP_Y = 48, 18
MARGIN = 6


class Node(NamedTuple):
    """A step. ``phase`` is its class in the style sheet; empty where no saga is shown."""

    step: str
    compensation: str
    phase: str
    pivot: bool
    x: int
    y: int


class Drawing(NamedTuple):
    """A graph ready to be drawn.

    Attributes:
        arrows: paths, as SVG has them, and whether the way has been taken.
        summary: the graph in words.
    """

    width: int
    height: int
    nodes: tuple[Node, ...]
    arrows: tuple[tuple[str, bool], ...]
    summary: str


def draw(contract: Saga, phases: Mapping[str, str] | None = None) -> Drawing:
    """Lay out a contract's steps.

    Args:
        phases: step → phase, where a saga is shown.
    """
    known = phases or {}
    columns: dict[int, list[str]] = {}
    for step in contract.steps:
        columns.setdefault(contract.graph.depth[step.name], []).append(step.name)
    tallest = max(len(column) for column in columns.values())
    height = tallest * (NODE_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    places: dict[str, tuple[int, int]] = {}
    for depth, column in columns.items():
        top = (height - (len(column) * (NODE_HEIGHT + GAP_Y) - GAP_Y)) // 2
        for row, name in enumerate(column):
            places[name] = (MARGIN + depth * (NODE_WIDTH + GAP_X), top + row * (NODE_HEIGHT + GAP_Y))
    nodes = tuple(
        Node(step.name, step.compensation or "", known.get(step.name, ""), step.pivot, *places[step.name])
        for step in contract.steps
    )
    arrows = tuple(
        (_arrow(places[other], places[step.name]), known.get(step.name, "waiting") != "waiting")
        for step in contract.steps
        for other in step.after
    )
    told = [f"{name} is {phase}" for name, phase in known.items()] or [step.name for step in contract.steps]
    width = len(columns) * (NODE_WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    return Drawing(width, height, nodes, arrows, f"Steps of {contract.name}: {', '.join(told)}")


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1 = start[0] + NODE_WIDTH, start[1] + NODE_HEIGHT // 2
    x2, y2 = end[0] - 3, end[1] + NODE_HEIGHT // 2
    bend = max((x2 - x1) // 2, 12)
    return f"M{x1} {y1} C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"
