"""Templates, and how values are shown in them. Everything is escaped unless it was drawn by a template of ours."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlencode

import jinja2

from choreo.contract.policy import duration_text
from choreo.web.dashboard.waterfall import length_text

STATIC = ("choreo.css", "choreo.js", "choreo.svg")
STATIC_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

NOTHING = "\N{EN DASH}"

PHASE_WORDS = {
    "scheduled": "scheduled",
    "forward": "running",
    "compensating": "compensating",
    "stuck": "stuck",
    "completed": "completed",
    "compensated": "compensated",
    "unstarted": "not started",
    "truncated": "truncated",
    "no_compensation": "not to be undone",
}
MARKS = {
    "scheduled": "◷",
    "waiting": "○",
    "running": "◐",
    "forward": "◐",
    "completed": "✓",
    "substituted": "✓",
    "failed": "✕",
    "compensating": "↺",
    "stuck": "!",
    "undone": "↶",
    "compensated": "↶",
    "skipped": NOTHING,
    "no_compensation": "✓",
}
"""Beside each colour a mark, for who does not see the colour."""


@cache
def environment() -> jinja2.Environment:
    """The templates."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("choreo.web.dashboard"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "moment": moment,
        "length": length_text,
        "duration": duration_text,
        "pretty": pretty,
        "segment": segment,
        "phase": lambda phase: PHASE_WORDS.get(phase, phase),
        "mark": lambda phase: MARKS.get(phase, "○"),
        "number": lambda number: f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
        "query": lambda values: urlencode({name: value for name, value in values.items() if value not in ("", None)}),
        "iso": lambda at_ms: datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(timespec="milliseconds"),
    }
    made.globals["static"] = static_path
    return made


def render(template: str, **values: Any) -> str:
    """A page."""
    return environment().get_template(template).render(**values)


@cache
def static_file(name: str) -> bytes:
    """What a page is made of beside itself."""
    return files("choreo.web.dashboard").joinpath("static", name).read_bytes()


@cache
def static_path(name: str) -> str:
    """The path of a static file; another one when its content is another, so that browsers may keep it for ever."""
    return f"/static/{sha256(static_file(name)).hexdigest()[:12]}/{name}"


def moment(at_ms: int) -> str:
    """A time for people, UTC."""
    return f"{datetime.fromtimestamp(at_ms / 1_000, UTC):%Y-%m-%d %H:%M:%S}" if at_ms else NOTHING


def pretty(value: Any) -> str:
    """A value as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def segment(text: str) -> str:
    """A text as one segment of a path."""
    return quote(text, safe="")
