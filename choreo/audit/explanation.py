"""Why a saga is where it is: its state beside the groups that have to move it, the time, and what nobody could read.

State says what a saga waits for; nobody but the consumer groups can say why that does not come. So for each thing that
is waited for the group is looked at from outside: does anybody live in it, does it have the partition, how many records
are before ours. What a worker keeps to itself (which attempt it is at) is in no log and is not guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec

from choreo.audit.histories import decision_text, why_not
from choreo.audit.trail import Trail, read_trail
from choreo.audit.waiting import Waited, wait_of
from choreo.broker.port import Broker, Message, TopicPartition
from choreo.broker.registry import Registry
from choreo.broker.topics import dead_letter_topic
from choreo.contract.policy import duration_text
from choreo.contract.saga import Saga
from choreo.core import next_due_ms
from choreo.core.commands import remaining
from choreo.core.due import settle_due_ms
from choreo.core.state import Instance, Key
from choreo.core.status import SagaStatus, status_of
from choreo.ids import child_id
from choreo.messages.records import Failure
from choreo.saga_log.replay import records
from choreo.saga_log.runtime import GROUP as SAGA_LOG_GROUP

PROMPT_MS = 5_000
"""A decision whose record is not in the log after so long, or a timer that has not fired, is a sign."""

DEAD_LETTERS_SHOWN = 20
DEAD_LETTERS_READ = 50_000  # of one partition, the newest

Kind = Literal[
    "finished",  # it has its outcome, and nothing is left to do
    "repair",  # it has its outcome, and a possible effect is being undone
    "stuck",  # an operator is needed
    "step",  # waits for a step's outcome
    "compensation",  # waits for the answer to a Compensate
    "saga_log",  # waits for the saga-log to say what is decided, or to fire a timer
    "signal",  # waits for something outside
    "scheduled",  # waits for the time at which it is to begin
    "paused",  # an operator holds it, or all of its type
    "backoff",  # waits for a time
    "pivot",  # a cancel waits for the pivot's outcome
    "contract",  # its records wait for a contract that is not registered
    "truncated",  # the log no longer has its start
    "unstarted",  # only a cancel is there
]


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a saga waits for, or why it waits for nothing.

    Attributes:
        text: a sentence for people, complete by itself.
        since_ms: from when on it waits, broker's clock; 0 if nobody knows.
        until_ms: when that ends by itself; ``None`` if it does not.
        step, round, generation: what it is about; empty and 0 where that does not apply.
        waits_on: the groups that have to act, as they are now.
        failure: what went wrong last.
        advice: what to do, commands included; empty where waiting is all.
    """

    kind: Kind
    text: str
    since_ms: int = 0
    until_ms: int | None = None
    step: str = ""
    round: int = 0
    generation: int = 0
    waits_on: tuple[Waited, ...] = ()
    failure: Failure | None = None
    advice: tuple[str, ...] = ()


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A record of this saga that somebody could not handle. ``offset`` is where it stands in the saga's topic."""

    offset: int
    at_ms: int
    source: str
    error: str
    message: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a saga is where it is.

    Attributes:
        now_ms: when it was asked, by the asker's clock.
        headline: the first reason.
        reasons: the most urgent first; at least one.
        status: ``None`` if no record of it could be folded.
        dead_letters: the newest ``DEAD_LETTERS_SHOWN``.
    """

    saga: str
    saga_id: str
    now_ms: int
    headline: str
    reasons: tuple[Reason, ...]
    status: SagaStatus | None
    dead_letters: tuple[DeadLetter, ...] = ()


async def explain(broker: Broker, saga: str, saga_id: str, *, registry: Registry, now_ms: int) -> Explanation:
    """Say why a saga is where it is. Reads its partition, looks at groups, and changes nothing.

    Args:
        saga: the contract's name.
        registry: refreshed before the first record is folded.
        now_ms: the time, Unix epoch.

    Raises:
        SagaNotFound: the log has no record under this id.
        TopicError: the saga has no topic.
        BrokerUnavailable: the log cannot be read.
    """
    trail = await read_trail(broker, saga, saga_id, registry=registry)
    return await explain_trail(broker, trail, registry=registry, now_ms=now_ms)


async def explain_trail(broker: Broker, trail: Trail, *, registry: Registry, now_ms: int) -> Explanation:
    """As ``explain``, for who has read the trail already."""
    letters = await _dead_letters(broker, trail)
    contract = trail.contract
    if contract is None:
        reasons = [_unfolded(trail)]
    else:
        reasons = await _Explaining(broker, registry, trail, contract, now_ms).reasons()
        if trail.problems:
            reasons.insert(0, _unfolded(trail))
    return Explanation(
        saga=trail.saga,
        saga_id=trail.saga_id,
        now_ms=now_ms,
        headline=reasons[0].text,
        reasons=tuple(reasons),
        status=None if contract is None else status_of(contract, trail.state),
        dead_letters=tuple(letters[-DEAD_LETTERS_SHOWN:]),
    )


class _Explaining:
    def __init__(self, broker: Broker, registry: Registry, trail: Trail, contract: Saga, now_ms: int) -> None:
        self._broker = broker
        self._registry = registry
        self._trail = trail
        self._contract = contract
        self._state = trail.state
        self._now_ms = now_ms

    async def reasons(self) -> list[Reason]:
        state = self._state
        if not state.started:
            return [self._not_started()]
        found = self._pauses()
        found += [self._stuck(key) for key, instance in state.instances.items() if instance.stuck]
        found += await self._saga_log()
        found += await self._instances()
        if state.waits_for_begin and state.begins_ms + PROMPT_MS > self._now_ms:
            text = f"scheduled: it begins at {self._clock(state.begins_ms)}"
            found.append(Reason(kind="scheduled", text=text, since_ms=state.started_ms, until_ms=state.begins_ms))
        if state.retry_at_ms is not None and state.retry_at_ms > self._now_ms:
            found.append(self._backoff(state.retry_at_ms))
        if state.deferred:
            found.append(
                Reason(kind="pivot", text="a cancel waits for the pivot's outcome; if it completes, it is refused")
            )
        if state.outcome is not None:
            found.append(self._outcome(repair=bool(found)))
        if not found:  # nothing that this release knows of
            text = f"it is {state.phase}, since {self._clock(state.updated_ms)}; look at choreo audit history"
            found.append(Reason(kind="saga_log", since_ms=state.updated_ms, text=text))
        return found

    async def _instances(self) -> list[Reason]:
        """The steps and compensations that somebody else has to come forward with."""
        found = []
        for key, instance in self._state.instances.items():
            if instance.awaits_answer and not self._is_owed(key, "compensate", "settle"):
                found.append(await self._compensation(key, instance))
            elif instance.in_flight and not self._is_owed(key, "execute"):
                found.append(await self._step(key, instance))
            elif self._state.waits_for_signal(key):
                found.append(self._signal(key, instance))
        return found

    def _clock(self, at_ms: int) -> str:
        return clock_text(at_ms, self._now_ms)

    def _is_owed(self, key: Key, *kinds: str) -> bool:
        return any(one.kind in kinds and (one.step, one.round) == key for one in self._state.owed)

    def _not_started(self) -> Reason:
        if self._state.truncated:
            return Reason(
                kind="truncated",
                text="its start is not in the log (retention has deleted it, or it was refused); nothing is decided "
                "for it",
                advice=("keep records for longer than sagas live: choreo doctor compares the two",),
            )
        return Reason(kind="unstarted", text="a cancel is in the log, and no start; the start will be undone at once")

    def _outcome(self, *, repair: bool) -> Reason:
        state = self._state
        assert state.outcome is not None, "asked for one that is there"
        kind = state.outcome.kind
        if repair:
            return Reason(
                kind="repair",
                since_ms=state.finished_ms,
                text=f"it has {kind}; an effect that came after that is being undone, the outcome stays",
            )
        took = duration_text(max(state.finished_ms - state.started_ms, 1))
        why = f": {state.outcome.step} failed ({_said(state.outcome.failure)})" if state.outcome.step else ""
        return Reason(
            kind="finished",
            since_ms=state.finished_ms,
            step=state.outcome.step or "",
            failure=state.outcome.failure,
            text=f"it has {kind} at {self._clock(state.finished_ms)}, after {took}{why}; nothing is left to do",
        )

    def _stuck(self, key: Key) -> Reason:
        state, (step, saga_round) = self._state, key
        instance = state.instance(key)
        failure = instance.failure if instance.exhausted else instance.compensation_failure
        left = [each for each in remaining(self._contract, state) if each != step]
        if instance.exhausted:
            what = f"step {step} has failed in all its rounds ({_said(failure)}), and there is no way back"
            after = f"still to be done: {', '.join(left)}" if left else "nothing else is left to be done"
        else:
            attempts = self._attempts(key, instance)
            what = f"compensation of {step} failed{attempts} ({_said(failure)})"
            after = f"still to be undone: {', '.join(left)}" if left else "nothing else is left to be undone"
        command = f"choreo {{}} {self._trail.saga} {self._trail.saga_id} {step} --reason …"
        return Reason(
            kind="stuck",
            step=step,
            round=saga_round,
            generation=instance.generation,
            failure=failure,
            since_ms=self._failed_ms(key),
            text=f"stuck: {what}; {after}",
            advice=(
                f"repair the cause, then: {command.format('retry')}",
                f"do it by hand, then: {command.format('skip')}",
                f"do all that is left by hand, then: {command.format('resolve')}",
            ),
        )

    def _attempts(self, key: Key, instance: Instance) -> str:
        for fact in reversed(self._trail.facts):
            record = fact.entry.record
            same = (getattr(record, "step", ""), getattr(record, "generation", 0)) == (key[0], instance.generation)
            if same and (count := getattr(record, "attempts", 0)) > 1:
                return f" {count} times"
        return ""

    def _failed_ms(self, key: Key) -> int:
        for fact in reversed(self._trail.facts):
            if fact.state.instance(key).stuck and not fact.before.instance(key).stuck:
                return fact.entry.at_ms
        return 0

    async def _saga_log(self) -> list[Reason]:
        """What is decided and not said, and timers that should have fired: the saga-log alone does either."""
        state, trail = self._state, self._trail
        waits = [(trail.decided.get(one, (state.offset, state.updated_ms)), decision_text(one)) for one in state.owed]
        due_ms = next_due_ms(self._contract, state)
        if due_ms is not None and due_ms + PROMPT_MS < self._now_ms:
            waits.append(((state.offset, due_ms), f"the timer of {self._clock(due_ms)}"))
        if not waits:
            return []
        (offset, since_ms), _ = min(waits)
        waited = await wait_of(self._broker, SAGA_LOG_GROUP, trail.tp, offset)
        late = self._now_ms - since_ms > PROMPT_MS
        advice = ("start it: choreo saga-log …",) if late and not waited.members else ()
        if late and waited.members and not waited.ahead:
            advice = ("it has the record; look at its log and its metrics, the broker may refuse what it writes",)
        return [
            Reason(
                kind="saga_log",
                since_ms=since_ms,
                waits_on=(waited,),
                text=f"waits for the saga-log since {self._clock(since_ms)} "
                f"({', '.join(what for _, what in waits)}): {waited.text}",
                advice=advice,
            )
        ]

    async def _step(self, key: Key, instance: Instance) -> Reason:
        step, saga_round = key
        state = self._state
        offset, since_ms = self._trail.triggered.get(key, (state.offset, state.updated_ms))
        waited, why = await self._group_of(step, offset)
        until_ms = settle_due_ms(self._contract, state, instance) if instance.due_ms else None
        again = f" in round {saga_round}" if saga_round > 1 else ""
        first = "before the way back begins, it waits" if state.failing and not state.only_forward else "waits"
        asked = ", which is to be cancelled," if instance.cancelling else ""
        until = ""
        if until_ms is not None and step not in self._contract.forward_only:
            until = f"; its due is {self._clock(until_ms)}"
        return Reason(
            kind="step",
            step=step,
            round=saga_round,
            since_ms=since_ms,
            until_ms=until_ms,
            waits_on=waited,
            text=f"{first} for {step}{again}{asked} since {self._clock(since_ms)}: {why}{until}",
            advice=self._advice(step, waited),
        )

    async def _compensation(self, key: Key, instance: Instance) -> Reason:
        step, saga_round = key
        offset, since_ms = self._said_at(key, instance)
        waited, why = await self._group_of(step, offset)
        again = f" (generation {instance.generation})" if instance.generation > 1 else ""
        what = (
            f"for word that {step}, given up early, has ended"
            if instance.settling
            else f"for the compensation of {step}"
        )
        return Reason(
            kind="compensation",
            step=step,
            round=saga_round,
            generation=instance.generation,
            since_ms=since_ms,
            until_ms=instance.compensation_due_ms or None,
            waits_on=waited,
            text=f"waits {what}{again} since {self._clock(since_ms)}: {why}; without "
            f"an answer it is stuck at {self._clock(instance.compensation_due_ms)}",
            advice=self._advice(step, waited),
        )

    def _said_at(self, key: Key, instance: Instance) -> tuple[int, int]:
        """Where the record is by which an answer was asked for."""
        for fact in reversed(self._trail.facts):
            record = fact.entry.record
            if not fact.before.instance(key).compensation_due_ms and fact.state.instance(key).compensation_due_ms:
                return fact.entry.offset, fact.entry.at_ms
            if (getattr(record, "step", ""), getattr(record, "generation", 0)) == (key[0], instance.generation):
                return fact.entry.offset, fact.entry.at_ms
        return self._state.offset, self._state.updated_ms

    async def _group_of(self, step: str, offset: int) -> tuple[tuple[Waited, ...], str]:
        """The groups that have to handle a record of the step, and what keeps them."""
        child = self._contract[step].child
        if child is not None:
            latest = max(saga_round for name, saga_round in self._state.instances if name == step)
            saga_id = child_id(self._contract.name, self._state.saga_id, step, latest)
            return (), f"it is saga {saga_id}; see choreo explain {child.saga} {saga_id}"
        words = self._registry.hosts(self._contract.name, self._contract.version, step)
        waited = tuple([await wait_of(self._broker, word.group, self._trail.tp, offset) for word in words])
        if not waited:
            version = f"{self._contract.name} version {self._contract.version}"
            return (), f"no service has said that it runs {step} of {version}"
        return waited, " / ".join(each.text for each in waited)

    def _advice(self, step: str, waited: Sequence[Waited]) -> tuple[str, ...]:
        if self._contract[step].child is not None:
            return ()
        if not waited:
            return (
                f"start a service that binds {step} of version {self._contract.version}: choreo run MODULE:SERVICE",
            )
        if not any(each.members for each in waited):
            return (f"start the service: choreo run MODULE:{waited[0].group.removeprefix('choreo.')}",)
        if all(each.finished for each in waited):
            return ("look at the service's log and at the dead letters: it has read the record and said nothing",)
        return ()

    def _pauses(self) -> list[Reason]:
        """Pauses in force; they hold a saga whatever else it waits for."""
        trail, found = self._trail, []
        pauses = (
            (self._state.pause, "paused", f"{trail.saga} {trail.saga_id}"),
            (self._state.type_pause, f"all sagas of {trail.saga} are paused", f"--type {trail.saga}"),
        )
        for pause, what, whom in pauses if self._state.outcome is None else ():
            if pause is not None:
                why = f": {pause.reason}" if pause.reason else ""
                found.append(
                    Reason(
                        kind="paused",
                        since_ms=pause.since_ms,
                        text=f"{what} by {pause.operator or 'somebody'} since {self._clock(pause.since_ms)}{why}",
                        advice=(f"to let it go on: choreo resume {whom} --why …",),
                    )
                )
        return found

    def _signal(self, key: Key, instance: Instance) -> Reason:
        step, trail = key[0], self._trail
        name = self._contract[step].await_signal
        _, since_ms = trail.triggered.get(key, (0, self._state.updated_ms))
        return Reason(
            kind="signal",
            step=step,
            round=key[1],
            since_ms=since_ms,
            until_ms=instance.signal_due_ms,
            text=f"waits for signal {name} (step {step}) since {self._clock(since_ms)}; without it the step fails at "
            f"{self._clock(instance.signal_due_ms)}",
            advice=(f"when it has happened: choreo signal {trail.saga} {trail.saga_id} {name}",),
        )

    def _backoff(self, until_ms: int) -> Reason:
        state = self._state
        failed = state.first_failure()
        failures = [failure for _, saga_round, failure in state.failures if saga_round == state.round]
        after = f" after {failed[0]} failed ({_said(failed[1])})" if failed else ""
        limit = self._contract[failed[0]].forward_retries.limit if failed and state.only_forward else 0
        of = f" of {limit + 1}" if limit else ""
        return Reason(
            kind="backoff",
            step=failed[0] if failed else "",
            round=state.round + 1,
            until_ms=until_ms,
            failure=failures[0] if failures else None,
            text=f"backoff until {self._clock(until_ms)}, then round {state.round + 1}{of}{after}",
        )


def _unfolded(trail: Trail) -> Reason:
    problem = trail.problems[0]
    more = f" (and {len(trail.problems) - 1} more)" if len(trail.problems) > 1 else ""
    return Reason(
        kind="contract",
        since_ms=problem.at_ms,
        text=f"its record at offset {problem.offset}{more} cannot be folded: {why_not(problem.why)}",
    )


def _said(failure: Failure | None) -> str:
    if failure is None:
        return "no reason given"
    return ": ".join(filter(None, (", ".join(filter(None, (failure.kind, failure.code))), failure.message)))


def clock_text(at_ms: int, now_ms: int) -> str:
    """A time as people read it: the date only where it is not today's."""
    at, now = (datetime.fromtimestamp(ms / 1_000, UTC) for ms in (at_ms, now_ms))
    return f"{at:%H:%M:%S}" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M:%S}"


async def _dead_letters(broker: Broker, trail: Trail) -> list[DeadLetter]:
    """Those with the saga's key; they lie in the partition of the same number."""
    topic = dead_letter_topic(trail.saga)
    if topic not in await broker.topics():
        return []
    tp = TopicPartition(topic, trail.tp.partition)
    first, end = (await broker.offsets([tp]))[tp]
    found: list[DeadLetter] = []
    async for messages in records(broker, tp, max(first, end - DEAD_LETTERS_READ), end):
        found += [_dead_letter(message) for message in messages if message.key == trail.saga_id.encode()]
    return found


def _dead_letter(message: Message) -> DeadLetter:
    def text(name: str) -> str:
        # Ours are behind those of the original, which may be a dead letter itself.
        found = [value for key, value in message.headers if key == name]
        return found[-1].decode("utf-8", "replace") if found else ""

    original = text("choreo_original_offset")
    return DeadLetter(
        offset=int(original) if original.isdigit() else -1,
        at_ms=message.timestamp_ms,
        source=text("choreo_error_source").removeprefix("/choreo/"),
        error=text("choreo_error_type"),
        message=text("choreo_error_message"),
    )
