"""``choreo gen``: a saga to begin with, that runs and is tested as it is."""

from __future__ import annotations

import keyword
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

from cyclopts import Parameter

from choreo.contract import Saga, Step
from choreo.errors import ConfigurationError, DefinitionError

NAME_LENGTH_MAX = 40
STEP_LENGTH_MAX = 59  # with "undo_" in front it is still a step's name, and as a host name it fits into a DNS label
WORDS = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
MODULES = frozenset({"contract", "effects", "tests"})
HOSTS = frozenset({"kafka", "saga_log", "prometheus"})
NAMES_IN_A_MODULE = frozenset({"service", "annotations", "pytest", "run_saga", "standing", "own_databases"})
NAMES_IN_TESTS = frozenset({"modules", "services", "steps"})  # in capitals, as the saga's own would be


def saga(
    name: Annotated[str, Parameter(help="What the saga and its package are called: trip, or TripBooking.")],
    /,
    *,
    steps: Annotated[str, Parameter(help="Names of the steps, in order, with commas between them.")],
    directory: Annotated[Path, Parameter(help="Where the package goes.")] = Path(),
    force: Annotated[bool, Parameter(negative="", help="Overwrite files that are there.")] = False,
) -> int:
    """Write a package: contract, a service for each step, tests that pass, compose file, README.

    Example: choreo gen saga trip --steps book_flight,book_hotel,book_car
    """
    plan = Plan.of(name, steps, directory)
    written = plan.files()
    package = directory / plan.name
    there = [path for path in written if os.path.lexists(package / path)]
    if there and not force:
        named = ", ".join(str(package / path) for path in there)
        raise ConfigurationError(f"{named} would be overwritten; choose another name, or say --force")
    for path, content in written.items():
        try:
            (package / path).parent.mkdir(parents=True, exist_ok=True)
            (package / path).write_text(content, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"cannot write {package / path}: {error.strerror or error}") from error
        print(f"wrote {package / path}")  # noqa: T201 - the command's output
    print(f"\n{plan.advice(directory)}")  # noqa: T201
    return 0


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
        name: of the saga, its package and its topic.
        steps: names, in order; each is a module and a function, too.
    """

    name: str
    steps: tuple[str, ...]

    @classmethod
    def of(cls, name: str, steps: str, directory: Path) -> Plan:
        """The plan that a person asks for.

        Raises:
            DefinitionError: with everything that is wrong with the names.
        """
        made = cls(_snake_case(name), tuple(step.strip() for step in steps.split(",") if step.strip()))
        problems = [*_name_problems(name, made.name, directory)]
        for step, count in Counter(made.steps).items():
            problems += _step_problems(step)
            if count > 1:
                problems.append(f"step {step!r} is named {count} times; give each step a name of its own")
        if not made.steps:
            problems.append("--steps names no step; give at least one, as in --steps book_flight,book_hotel")
        if problems:
            raise DefinitionError(f"saga {name!r}", tuple(problems))
        Saga(made.name, *(Step(step, compensation=f"undo_{step}") for step in made.steps))  # what contracts refuse
        return made

    @property
    def constant(self) -> str:
        return self.name.upper()

    def files(self) -> dict[str, str]:
        """Contents by path below the package."""
        words = self._words()
        contents = {
            path: _template(path).substitute(words)
            for path in ("__init__.py", "contract.py", "effects.py", "compose.yaml", "prometheus.yml", "README.md")
        }
        for step in self.steps:
            contents[f"{step}.py"] = _template("step.py").substitute(words, step=step, service=self._service(step))
        contents["tests/__init__.py"] = ""
        contents[f"tests/test_{self.name}.py"] = _template("test_saga.py").substitute(words)
        return contents

    def advice(self, directory: Path) -> str:
        """What to do next."""
        lines = [
            f"python -m pytest {self.name}",
            f"choreo describe {self.name}:{self.constant}",
            f"cat {self.name}/README.md",
        ]
        if directory.resolve() != Path.cwd():
            lines.insert(0, f"cd {shlex.quote(str(directory))}")
        return "\n".join(("Next:", *(f"  {line}" for line in lines)))

    def _words(self) -> dict[str, str]:
        hosts = {step: step.replace("_", "-") for step in self.steps}
        return {
            "name": self.name,
            "constant": self.constant,
            "project": self.name.replace("_", "-"),
            "last": self.steps[-1],
            "count": "one step" if len(self.steps) == 1 else f"{len(self.steps)} steps",
            "contract_steps": _lines(f'    Step("{step}", compensation="undo_{step}"),' for step in self.steps),
            "test_imports": self._test_imports(),
            "test_modules": _lines(f'    "{step}": {step},' for step in self.steps),
            "compose_services": "\n".join(
                _template("compose_service.yaml").substitute(name=self.name, step=step, host=host)
                for step, host in hosts.items()
            ),
            "compose_volumes": _lines(f"  {host}:" for host in hosts.values()),
            "prometheus_targets": _lines(
                f'      - targets: ["{host}:8080"]\n        labels: {{ service: {host} }}' for host in hosts.values()
            ),
            "table": _lines(
                f"| `{step}` | [`{self._service(step)}`]({step}.py) | `undo_{step}` |" for step in self.steps
            ),
            "run_commands": _lines(f"choreo run {self.name}.{step}:service &" for step in self.steps),
        }

    def _test_imports(self) -> str:
        """In one line if that is short, else one for each: what formatters make of it."""
        names = [self.constant, "Input", *sorted(self.steps)]
        short = f"from {self.name} import {', '.join(names)}"
        return short if len(short) <= 88 else _lines((f"from {self.name} import (", *(f"    {n}," for n in names), ")"))

    def _service(self, step: str) -> str:
        return f"{self.name}-{step}".replace("_", "-")


def _name_problems(given: str, name: str, directory: Path) -> list[str]:
    if not WORDS.fullmatch(name):
        return [f"its name {given!r} must be words of lower case letters and digits joined by '_', as in trip_booking"]
    problems = []
    if len(name) > NAME_LENGTH_MAX:
        problems.append(f"its name has {len(name)} characters; at most {NAME_LENGTH_MAX} are allowed")
    if keyword.iskeyword(name):
        problems.append(f"{name!r} is a word of Python's own and cannot be a package; choose another name")
    elif name in NAMES_IN_TESTS:
        problems.append(f"{name!r} has the name of another part of the package; choose another name")
    elif _is_taken(name, directory):
        problems.append(f"a module {name!r} is installed and would be hidden by the package; choose another name")
    return problems


def _step_problems(step: str) -> list[str]:
    if not WORDS.fullmatch(step):
        close = _snake_case(step)
        hint = f"; did you mean {close!r}?" if WORDS.fullmatch(close) else ""
        return [f"step {step!r} must be words of lower case letters and digits joined by '_'{hint}"]
    problems = []
    if len(step) > STEP_LENGTH_MAX:
        problems.append(f"step {step!r} has {len(step)} characters; at most {STEP_LENGTH_MAX} are allowed")
    if keyword.iskeyword(step):
        problems.append(f"step {step!r} is a word of Python's own and cannot be a function; choose another name")
    elif step in MODULES | HOSTS | NAMES_IN_A_MODULE:
        problems.append(f"step {step!r} has the name of another part of the package; choose another name")
    return problems


def _is_taken(name: str, directory: Path) -> bool:
    """Whether the name belongs to a module elsewhere than in the working directory and the package's own."""
    here = {Path.cwd(), directory.resolve()}
    path = [entry for entry in sys.path if entry and Path(entry).resolve() not in here]
    return name == "choreo" or name in sys.stdlib_module_names or PathFinder.find_spec(name, path) is not None


def _snake_case(name: str) -> str:
    """``TripBooking`` and ``trip-booking`` as ``trip_booking``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()


def _template(path: str) -> Template:
    return Template((files("choreo.cli") / "templates" / "saga" / f"{path}.tmpl").read_text(encoding="utf-8"))


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(parts)
