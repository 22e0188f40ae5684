"""The verbs of ``choreo``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from cyclopts import App, CycloptsError, Group

from choreo.cli.exits import Exit, complain, exit_of
from choreo.cli.settings import bring_into, misspelt
from choreo.errors import ChoreoError

EPILOGUE = (
    "\nExit codes: 0 done, 1 the answer is no (a saga failed), 2 usage, 3 configuration, 4 broker, 5 no such saga (or "
    "dead letter), 7 wait is over, 70 defect, 130 interrupted. Settings may stand in variables (CHOREO_BROKER, "
    "CHOREO_STORE, …) and in choreo.toml; `choreo config` lists them all, and which are in force.\n"
)


def _version() -> str:
    try:
        return version("choreo-sagas")
    except PackageNotFoundError:
        return "0 (not installed)"


app = App(
    name="choreo",
    help="Sagas over Kafka by event choreography: each step its own service, every undo in reverse order.",
    help_epilogue=EPILOGUE,
    help_format="plaintext",
    version=_version,
    result_action="return_value",
)

begin = Group.create_ordered("To begin with")
work = Group.create_ordered("Processes, and what they need")
sagas = Group.create_ordered("One saga")
inspect = Group.create_ordered("All of them")

keys = App(
    name="keys", help="Keys that records are signed with, and whom to trust.", group=work, help_format="plaintext"
)
keys.command("choreo.cli.keys:new")
keys.command("choreo.cli.keys:trust")
keys.command("choreo.cli.keys:init")
keys.command("choreo.cli.keys:erase")

preview = App(name="preview", help="Show what a command would do.", group=sagas, help_format="plaintext")
preview.command("choreo.cli.explain:preview_cancel", name="cancel")

audit = App(name="audit", help="Ask the log about the past.", group=inspect, help_format="plaintext")
audit.command("choreo.cli.audit:history")
audit.command("choreo.cli.audit:state")
audit.command("choreo.cli.audit:diff")
audit.command("choreo.cli.audit:verify")
audit.command("choreo.cli.what_if:what_if", name="what-if")
audit.command("choreo.cli.export:export")
audit.command("choreo.cli.prove:seal")
audit.command("choreo.cli.prove:prove")
audit.command("choreo.cli.prove:check_proof", name="check-proof")

gen = App(name="gen", help="Write the beginning of something.", group=begin, help_format="plaintext")
gen.command("choreo.cli.gen:saga")

app.command("choreo.cli.demo:demo", group=begin)
app.command(gen)
app.command("choreo.cli.describe:describe", group=begin)

app.command("choreo.cli.run:run", group=work)
app.command("choreo.cli.saga_log:saga_log", name="saga-log", group=work)
app.command("choreo.cli.topics:topics", group=work)
app.command("choreo.cli.acl:acl", group=work)
app.command(keys)
app.command("choreo.cli.http_token:http_token", name="http-token", group=work)
app.command("choreo.cli.config:config", group=work)

app.command("choreo.cli.start:start", group=sagas)
app.command("choreo.cli.status:status", group=sagas)
app.command("choreo.cli.explain:explain", group=sagas)
app.command("choreo.cli.signal:signal", group=sagas)
app.command("choreo.cli.cancel:cancel", group=sagas)
app.command(preview)
app.command("choreo.cli.pause:pause", group=sagas)
app.command("choreo.cli.pause:resume", group=sagas)
app.command("choreo.cli.operate:retry", group=sagas)
app.command("choreo.cli.operate:skip", group=sagas)
app.command("choreo.cli.operate:resolve", group=sagas)

app.command("choreo.cli.doctor:doctor", group=inspect)
app.command("choreo.cli.replay:replay", group=inspect)
app.command(audit)
app.command("choreo.cli.dead_letters:dead_letters", name="dead-letters", group=inspect)
app.command("choreo.cli.check_store:check_store", name="check-store", group=inspect)


def main() -> None:
    """Run the command line and exit with one of the codes of ``choreo.cli.exits``."""
    sys.path.insert(0, "")  # MODULE:NAME is looked up from the working directory first
    try:
        bring_into(os.environ)
    except ChoreoError as error:
        complain(error)
        sys.exit(exit_of(error))
    for line in misspelt(os.environ):
        complain(line)
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit code. Errors become one line on standard error."""
    _import_what_is_listed(arguments)
    try:
        result = app(arguments, exit_on_error=False)
    except CycloptsError:
        return Exit.USAGE
    except ChoreoError as error:
        complain(error)
        return exit_of(error)
    except ExceptionGroup as group:  # what tasks side by side have raised: the first of ours says why all ended
        first = next((error for error in _leaves(group) if isinstance(error, ChoreoError)), None)
        if first is None:
            raise
        complain(first)
        return exit_of(first)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (``choreo replay … | head``): nothing is left to say, nor a place to say it.
        sys.stdout = None
        return Exit.DONE
    return int(result) if isinstance(result, int) else Exit.DONE


def _import_what_is_listed(arguments: list[str]) -> None:
    """A list of commands says what each does, and that is known when it is imported; otherwise only one is."""
    listed = app
    for name in arguments:
        if name in app.help_flags:
            break
        if name not in listed:
            return
        listed = listed[name]
    for name in listed:
        listed[name]


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
