"""The command ``choreo``: a file for each verb, loaded when it is used.

``app`` lists the verbs; ``exits`` says what each exit code means; ``names`` turns ``MODULE:NAME`` into an object and
``options`` are the arguments that verbs share. Data goes to standard output, everything for people to standard error.
"""

from choreo.cli.app import main

__all__ = ["main"]
