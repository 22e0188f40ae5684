"""Which exceptions of a handler are worth another attempt."""

from __future__ import annotations

from typing import Any, NamedTuple

ExceptionTypes = tuple[type[BaseException], ...]


class Retried(NamedTuple):
    """What a handler's binding says of its exceptions.

    A cancelled attempt counts as a ``TimeoutError``. ``Reject``, ``Abort`` and ``InvalidInput`` of a step are
    decisions, and not retried whatever stands here.

    Attributes:
        on: retried, subclasses too.
        never: not retried, though they are in ``on``.
    """

    on: ExceptionTypes = (BaseException,)
    never: ExceptionTypes = ()

    def includes(self, error: BaseException) -> bool:
        """Whether another attempt may help."""
        return isinstance(error, self.on) and not isinstance(error, self.never)


ALWAYS = Retried()


def retried(retry_on: Any, never_retry: Any, decisions: ExceptionTypes) -> tuple[Retried, list[str]]:
    """The rule for two arguments of a binding as a user wrote them, and all that is wrong with them.

    ``decisions`` are exceptions that are never retried here.
    """
    problems: list[str] = []
    for name, kinds in (("retry_on", retry_on), ("never_retry", never_retry)):
        if not isinstance(kinds, tuple):
            problems.append(f"{name} is {kinds!r}; it must be a tuple of exception types: {name}=(TimeoutError,)")
            continue
        problems += [
            f"{name}: {kind!r} is no exception type"
            for kind in kinds
            if not (isinstance(kind, type) and issubclass(kind, BaseException))
        ]
    if not problems:
        problems += [
            f"retry_on: {kind.__name__} is a decision of the handler and never retried"
            for kind in retry_on
            if issubclass(kind, decisions)
        ]
    return (ALWAYS, problems) if problems else (Retried(retry_on, never_retry), [])
