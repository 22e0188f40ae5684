"""The behaviours that users of PhoenixMicro.Saga (P) and Sage (S) know, one row each.

A test of a row is named after it: ``test_p7_…``, ``test_s16b_…``. ``python -m tests.semantics`` lists them.
"""

ROWS = {
    "P1": "steps declared in order; what is wrong is refused when defined",
    "P2": "sequential by default, parallel with after=",
    "P3": "context = input and effects by step name",
    "P4": "every exception and every unfit return is a failure of the step",
    "P5": "n extra attempts, same input and key, with backoff",
    "P6": "timeout of an attempt, deadline of a step",
    "P7": "compensation in reverse order",
    "P8": "the failing step's own compensation after a definite failure",
    "P9": "what a compensation gets",
    "P10": "a missing compensation is skipped, visibly",
    "P11": "a compensation that keeps failing: stuck, resumable",
    "P12": "run and wait",
    "P13": "start, idempotent by id",
    "P14": "status, at any time",
    "P15": "telemetry of steps, compensations and sagas",
    "P16": "generator",
    "P17": "after a crash it goes on where the log says",
    "S1": "a contract is a value, composable",
    "S2": "what a handler gets; compensation optional",
    "S3": "effect, Reject, Abort",
    "S4": "what an outcome carries",
    "S6": "compensate_on_failure",
    "S7": "effect or None, and the failure",
    "S8": "the context as the step saw it",
    "S10": "retry: forward again as the next round",
    "S11": "backoff of rounds, durable",
    "S12": "continue with a substitute",
    "S13": "abort is sticky",
    "S14": "exceptions: all compensated, then raised for the caller",
    "S15": "parallel branches and joins",
    "S16": "siblings settle before the way back",
    "S16b": "a sync step behind a failed parallel group runs in the next round",
    "S17": "a crashing compensation",
    "S18": "on_compensation_error",
    "S19": "finally hooks",
    "S20": "tracers",
    "S22": "the whole saga in one database transaction",
    "S23": "a readable rendering",
    "S24": "node failures",
    "S25": "circuit breaker, exponential backoff, idempotent compensations",
}


def row_of(test: str) -> str | None:
    """The row that a test is named after: ``test_s16b_the_sync_step_runs`` is one of S16b."""
    parts = test.split("_")
    by_name = {row.lower(): row for row in ROWS}
    return by_name.get(parts[1]) if len(parts) > 2 and parts[0] == "test" else None
