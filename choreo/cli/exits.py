"""Exit codes, and how an error becomes one line and a code.

0    done
1    done, and the answer is no: a saga failed, a line could not be started, a check found a difference
2    the command line is wrong
3    a contract, a setting or a file is wrong
4    the broker cannot be reached, or a topic is not as it has to be
5    there is no such saga, or no such dead letter
7    the wait is over, the work is not
70   a defect of choreo
130  interrupted
"""

from __future__ import annotations

import sys
from enum import IntEnum

from choreo.errors import (
    BrokerError,
    ChoreoError,
    ConfigurationError,
    DefinitionError,
    NoSuchDeadLetter,
    SagaError,
    SagaNotFound,
    StoreError,
    WaitTimeout,
    WireError,
)


class Exit(IntEnum):
    """What a program reads from ``choreo``."""

    DONE = 0
    NO = 1
    USAGE = 2
    CONFIGURATION = 3
    BROKER = 4
    NOT_FOUND = 5
    TIMEOUT = 7
    DEFECT = 70
    INTERRUPTED = 130


def exit_of(error: ChoreoError) -> Exit:
    """The exit code of an error."""
    match error:
        case DefinitionError() | ConfigurationError() | StoreError() | WireError():
            return Exit.CONFIGURATION
        case BrokerError():
            return Exit.BROKER
        case SagaNotFound() | NoSuchDeadLetter():
            return Exit.NOT_FOUND
        case WaitTimeout():
            return Exit.TIMEOUT
        case SagaError():
            return Exit.NO
    return Exit.DEFECT


def complain(message: object) -> None:
    """Say an error, after the program's name, on standard error."""
    print(f"choreo: {message}", file=sys.stderr)  # noqa: T201 - the one place where errors are printed
