"""How a step service runs, apart from what it does."""

from __future__ import annotations

import math

import msgspec

from choreo.errors import ConfigurationError


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a ``StepRuntime``.

    Attributes:
        concurrency: handlers that run at once, for each partition.
        threads: for sync handlers, for the whole process.
        unfinished_max: records in work, for each partition, at which it is paused.
        poll_timeout_s: longest wait of one poll; a stop waits as long.
        commit_interval_s: a commit is made when that time has passed since the last.
        commit_records: a commit is made when that many were finished since the last.
        drain_timeout_s: what running handlers get when their partition is given up.
        shutdown_timeout_s: what they get at a stop.
        ready_within_s: a service that has not polled for that long is not ready.
        park_limit_s: how long a record of a contract version that is not held is kept for a newer worker.
        answers_remembered: for each partition, to recognise triggers that are in the log twice.
        observer_timeout_s: what a tracer gets for each call.

    Raises:
        ConfigurationError: a setting is zero where something is counted, negative, or no number.
    """

    concurrency: int = 64
    threads: int = 64
    unfinished_max: int = 1_000
    poll_timeout_s: float = 0.25
    commit_interval_s: float = 0.5
    commit_records: int = 1_000
    drain_timeout_s: float = 10.0
    shutdown_timeout_s: float = 25.0
    ready_within_s: float = 30.0
    park_limit_s: float = 600.0
    answers_remembered: int = 20_000
    observer_timeout_s: float = 1.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            least = 0 if name.endswith("_s") else 1
            if not least <= value < math.inf:
                raise ConfigurationError(f"{name} is {value}; it must be a number of at least {least}")
