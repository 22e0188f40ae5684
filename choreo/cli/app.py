"""The verbs of ``choreo``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from cyclopts import App, CycloptsError

from choreo.cli.exits import Exit, complain, exit_of
from choreo.cli.settings import bring_into, misspelt
from choreo.errors import ChoreoError

EPILOGUE = """
Exit codes: 0 done, 1 the answer is no (a saga failed), 2 usage, 3 configuration, 4 broker, 5 no such saga (or
dead letter), 7 wait is over, 70 defect, 130 interrupted. Settings may stand in variables (CHOREO_BROKER, CHOREO_STORE,
…) and in choreo.toml; `choreo config` lists them all, and which are in force.
"""


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
app.command("choreo.cli.demo:demo")
app.command("choreo.cli.run:run")
app.command("choreo.cli.saga_log:saga_log", name="saga-log")
app.command("choreo.cli.start:start")
app.command("choreo.cli.status:status")
app.command("choreo.cli.cancel:cancel")
app.command("choreo.cli.signal:signal")
app.command("choreo.cli.pause:pause")
app.command("choreo.cli.pause:resume")
app.command("choreo.cli.operate:retry")
app.command("choreo.cli.operate:skip")
app.command("choreo.cli.operate:resolve")
app.command("choreo.cli.describe:describe")
app.command("choreo.cli.config:config")
app.command("choreo.cli.topics:topics")
app.command("choreo.cli.acl:acl")
keys = App(name="keys", help="Keys that records are signed with, and whom to trust.", help_format="plaintext")
keys.command("choreo.cli.keys:new")
keys.command("choreo.cli.keys:trust")
keys.command("choreo.cli.keys:init")
keys.command("choreo.cli.keys:erase")
app.command(keys)
app.command("choreo.cli.replay:replay")
app.command("choreo.cli.check_store:check_store", name="check-store")
app.command("choreo.cli.dead_letters:dead_letters", name="dead-letters")
app.command("choreo.cli.explain:explain")
app.command("choreo.cli.doctor:doctor")
preview = App(name="preview", help="Show what a command would do.", help_format="plaintext")
preview.command("choreo.cli.explain:preview_cancel", name="cancel")
app.command(preview)
audit = App(name="audit", help="Ask the log about the past.", help_format="plaintext")
audit.command("choreo.cli.audit:history")
audit.command("choreo.cli.audit:state")
audit.command("choreo.cli.audit:diff")
audit.command("choreo.cli.audit:verify")
audit.command("choreo.cli.what_if:what_if", name="what-if")
audit.command("choreo.cli.export:export")
audit.command("choreo.cli.prove:seal")
audit.command("choreo.cli.prove:prove")
audit.command("choreo.cli.prove:check_proof", name="check-proof")
app.command(audit)
app.command("choreo.cli.http_token:http_token", name="http-token")
gen = App(name="gen", help="Write the beginning of something.", help_format="plaintext")
gen.command("choreo.cli.gen:saga")
app.command(gen)


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


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
