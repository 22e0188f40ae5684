"""Everything that the API and the dashboard do, for callers that are known to be allowed to. No HTTP in here.

Lists and counts come from the store, single sagas too; a saga that the store does not have (yet, or any more) is folded
from the log. What is asked for is appended to the log by a client, as any other program would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from choreo.audit import Explanation, Trail, explain_trail
from choreo.broker.port import Broker
from choreo.broker.registry import Registry
from choreo.client import Client
from choreo.clock import Clock
from choreo.contract.policy import duration_ms
from choreo.contract.saga import Saga
from choreo.core import SagaState
from choreo.core.status import SagaStatus, status_of
from choreo.doctor import Diagnosis, examine
from choreo.ids import SAGA_ID_PATTERN, is_saga_id, start_hash
from choreo.messages.codec import encode_user_value
from choreo.observe.metrics import Metrics
from choreo.store import Query, Row, Store
from choreo.store.query import place_of
from choreo.web.cursor import cursor_of, place_in
from choreo.web.history import Trails
from choreo.web.letters import Letters
from choreo.web.live import Feed
from choreo.web.problem import conflict, invalid, no_such
from choreo.web.shapes import (
    Accepted,
    Act,
    Filter,
    Lag,
    ListQuery,
    Overview,
    SagaCounts,
    SagaLine,
    SagaPage,
    SignalRequest,
    Started,
    StartRequest,
    Stretch,
)

STRETCH_MS = 60_000
STRETCHES = 60
IN_PROGRESS = ("scheduled", "forward", "compensating", "stuck")
OUTCOMES = ("completed", "compensated")


class Known(NamedTuple):
    """A saga as the store or the log has it."""

    contract: Saga
    state: SagaState


class Desk:
    """What can be asked of a saga-log.

    Args:
        sagas: names of the sagas that are looked after.
        not_ready_because: why the saga-log does not do its part.
        store_url: of the store, for the doctor; ``None`` where it keeps nothing to look into.
    """

    def __init__(
        self,
        broker: Broker,
        store: Store,
        client: Client,
        sagas: Sequence[str],
        *,
        metrics: Metrics,
        clock: Clock,
        not_ready_because: Callable[[], str | None],
        store_url: str | None = None,
    ) -> None:
        self.sagas = tuple(dict.fromkeys(sagas))
        self.client = client
        self.clock = clock
        self.registry = Registry(broker)
        self.feed = Feed(broker, self.sagas)
        self.letters = Letters(broker, self.sagas, clock)
        self._broker = broker
        self._store = store
        self._store_url = store_url
        self._metrics = metrics
        self._not_ready_because = not_ready_because
        self._trails = Trails(broker, self.registry)

    # Looking

    async def overview(self) -> Overview:
        """Counts, the last hour, lag: how things are."""
        counts = await self._store.counts()
        now_ms = self.clock.now_ms()
        since_ms = (now_ms // STRETCH_MS - STRETCHES + 1) * STRETCH_MS
        activity = {number: dict.fromkeys(("started", *OUTCOMES), 0) for number in range(STRETCHES)}
        for each in await self._store.activity(since_ms, STRETCH_MS):
            if each.stretch in activity and each.what in activity[each.stretch]:
                activity[each.stretch][each.what] += each.number
        return Overview(
            now_ms=now_ms,
            not_ready_because=self._not_ready_because(),
            sagas=tuple([await self._counts_of(saga, counts) for saga in self._names(counts)]),
            stretch_ms=STRETCH_MS,
            activity=tuple(
                Stretch(from_ms=since_ms + number * STRETCH_MS, **numbers) for number, numbers in activity.items()
            ),
            lag=tuple(self._lag()),
        )

    async def list_sagas(self, query: ListQuery) -> SagaPage:
        """A page of the sagas that a filter finds."""
        wanted = filter_of(query)
        newest_first = query.order == "newest"
        after = None if query.cursor is None else place_in(query.cursor, newest_first=newest_first)
        asked = self.query_of(wanted)._replace(limit=query.limit + 1, newest_first=newest_first, after=after)
        rows = await self._store.search(asked)
        page = rows[: query.limit]
        return SagaPage(
            sagas=tuple(line_of(row) for row in page),
            next=cursor_of(place_of(page[-1]), newest_first=newest_first) if len(rows) > len(page) else None,
        )

    def query_of(self, wanted: Filter) -> Query:
        """A filter as the store takes it. Raises ``ProblemError`` for a duration that is none."""
        return Query(
            saga=wanted.saga,
            version=wanted.version,
            phases=wanted.phases,
            step=wanted.step,
            code=wanted.code,
            text=wanted.text,
            paused=wanted.paused,
            started_before_ms=self._ago("older_than", wanted.older_than),
            started_from_ms=self._ago("younger_than", wanted.younger_than),
            updated_before_ms=self._ago("silent_for", wanted.silent_for),
        )

    async def search(self, query: Query) -> Sequence[Row]:
        """What the store has."""
        return await self._store.search(query)

    async def known(self, saga: str, saga_id: str) -> Known:
        """One saga. Raises ``ProblemError`` if nothing is known of it."""
        self._check_names(saga, saga_id)
        state = await self._store.find(saga, saga_id)
        if state is not None:
            contract = await self._contract(saga, state.version)
            if contract is not None:
                return Known(contract, state)
        trail = await self._trails.read(saga, saga_id)
        contract = trail.contract
        assert contract is not None, "a trail with facts has a contract"
        return Known(contract, trail.state)

    async def status(self, saga: str, saga_id: str) -> SagaStatus:
        """Where a saga is."""
        return status_of(*await self.known(saga, saga_id))

    async def trail(self, saga: str, saga_id: str) -> Trail:
        """All that the log has of a saga, folded record by record."""
        self._check_names(saga, saga_id)
        return await self._trails.read(saga, saga_id)

    async def explanation(self, saga: str, saga_id: str) -> Explanation:
        """Why a saga is where it is."""
        trail = await self.trail(saga, saga_id)
        return await explain_trail(self._broker, trail, registry=self.registry, now_ms=self.clock.now_ms())

    async def diagnosis(self) -> Diagnosis:
        """What the doctor says of the deployment."""
        contracts = [each for each in await self.contracts() if each.name in self.sagas]
        now_ms = self.clock.now_ms()
        return await examine(
            self._broker, self.sagas, now_ms=now_ms, contracts=contracts, store=self._store_url, read_log=False
        )

    async def contracts(self) -> tuple[Saga, ...]:
        """The registered contracts of the sagas that are looked after."""
        await self.registry.refresh()
        return tuple(contract for contract in self.registry.contracts if contract.name in self.sagas)

    async def contract(self, saga: str, version: int | None) -> Saga:
        """One contract, the newest if no version is said. Raises ``ProblemError`` if there is none."""
        found = [each for each in await self.contracts() if each.name == saga and version in (None, each.version)]
        if not found:
            known = ", ".join(f"{each.name}@{each.version}" for each in self.registry.contracts) or "none"
            what = saga if version is None else f"{saga}@{version}"
            raise no_such("saga", f"no contract {what!r} is registered here; registered are: {known}")
        return found[-1]

    # Doing

    async def start(self, saga: str, request: StartRequest, *, traceparent: str | None) -> Started:
        """Start a saga, unless the same start is in the log already."""
        contract = await self.contract(saga, request.version)
        if request.after is not None and request.not_before is not None:
            raise invalid("body after", "the saga is to begin at two times", "must not be there beside not_before")
        encoded = encode_user_value(request.input)
        begins = {
            "delay_ms": 0 if request.after is None else _length_ms("body after", request.after),
            "not_before_ms": 0 if request.not_before is None else round(request.not_before.timestamp() * 1_000),
        }
        if request.saga_id is not None:
            state = await self._store.find(saga, request.saga_id)
            if state is not None and state.started and state.start != start_hash(encoded, **begins):
                raise conflict(
                    f"saga id {request.saga_id!r} is taken by a saga with another input, or another time to begin",
                    "choose another id; the same id and the same input again is the same saga",
                )
            if state is not None and state.started:
                return _started(contract.name, state.version, state.saga_id, new=False)
        saga_id = await self.client.start(
            contract,
            request.input,
            id=request.saga_id,
            at=request.after or request.not_before,
            traceparent=traceparent,
        )
        return _started(contract.name, contract.version, saga_id, new=True)

    async def signal(self, known: Known, request: SignalRequest, *, by: str) -> Accepted:
        """Tell a saga that something outside of it has happened."""
        contract, state = known
        await self.client.signal(
            contract,
            state.saga_id,
            request.name,
            request.payload,
            id=request.id,
            reason=request.reason,
            sent_by=by,
        )
        return Accepted(saga=contract.name, saga_id=state.saga_id, act="signal", operator=by)

    async def act(self, known: Known, act: Act, step: str | None, *, operator: str, reason: str) -> Accepted:
        """Ask for something to be done to a saga. Raises ``ProblemError`` where it cannot be any more."""
        contract, state = known
        if act == "cancel":
            if state.outcome is not None:
                raise conflict(f"saga {state.saga_id!r} has {state.outcome.kind} already; a cancel would be refused")
            await self.client.cancel(contract, state.saga_id, reason=reason, requested_by=operator)
        elif act == "pause":
            if state.outcome is not None or state.pause is not None:
                why = f"has {state.outcome.kind}" if state.outcome is not None else "is paused"
                raise conflict(f"saga {state.saga_id!r} {why} already")
            await self.client.pause(contract, state.saga_id, operator=operator, reason=reason)
        elif act == "resume":
            if state.pause is None:
                what = "all sagas of its name are; resume those" if state.type_pause is not None else "nothing holds it"
                raise conflict(f"saga {state.saga_id!r} is not paused by itself: {what}")
            await self.client.resume(contract, state.saga_id, operator=operator, reason=reason)
        else:
            for each in (step,) if step is not None else stuck_steps(state) or ("",):
                await self.client.act_on(contract, state, act, each, operator=operator, reason=reason)
        return Accepted(saga=contract.name, saga_id=state.saga_id, act=act, operator=operator)

    async def pause_all(self, saga: str, *, on: bool, operator: str, reason: str) -> Accepted:
        """Hold all sagas of a name, those too that start later; or let them go on."""
        contract = await self.contract(saga, None)
        do = self.client.pause if on else self.client.resume
        await do(contract, operator=operator, reason=reason)
        return Accepted(saga=saga, saga_id="", act="pause" if on else "resume", operator=operator)

    async def close(self) -> None:
        """End the streams."""
        await self.feed.close()

    def _ago(self, name: str, duration: str | None) -> int | None:
        return None if duration is None else self.clock.now_ms() - _length_ms(name, duration)

    def _names(self, counts: Mapping[tuple[str, str], int]) -> list[str]:
        return sorted({*self.sagas, *(saga for saga, _ in counts)})

    async def _counts_of(self, saga: str, counts: Mapping[tuple[str, str], int]) -> SagaCounts:
        mine = {phase: number for (name, phase), number in counts.items() if name == saga}
        numbers = {phase: mine.pop(phase, 0) for phase in (*IN_PROGRESS, *OUTCOMES)}
        oldest = []
        if any(numbers[phase] for phase in IN_PROGRESS):
            oldest = list(await self._store.search(Query(saga=saga, phases=IN_PROGRESS, limit=1)))
        return SagaCounts(
            saga=saga, **numbers, other=sum(mine.values()), oldest_ms=oldest[0].started_ms if oldest else 0
        )

    def _lag(self) -> list[Lag]:
        return [
            Lag(topic=labels["topic"], partition=int(labels["partition"]), records=int(value))
            for family in self._metrics.consumer_lag.collect()
            for _, labels, value, *_ in family.samples
        ]

    async def _contract(self, saga: str, version: int) -> Saga | None:
        found = self.registry.get(saga, version)
        if found is None:
            await self.registry.refresh()
            found = self.registry.get(saga, version)
        return found

    def _check_names(self, saga: str, saga_id: str) -> None:
        if saga not in self.sagas:
            raise no_such("saga", f"no saga {saga!r} is looked after here; there are: {', '.join(self.sagas)}")
        if not is_saga_id(saga_id):
            raise invalid("saga id", f"saga id {saga_id!r} is none", f"must match {SAGA_ID_PATTERN}")


def filter_of(query: ListQuery) -> Filter:
    """The filter in a list's parameters. Raises ``ProblemError`` for a phase that is none."""
    given = {name: getattr(query, name) for name in Filter.__struct_fields__ if name != "phases"}
    given["phases"] = [phase for phase in query.phase.split(",") if phase]
    try:
        return msgspec.convert(given, Filter)
    except msgspec.ValidationError as error:
        raise invalid("query parameter phase", str(error), "must be phases between commas") from error


def line_of(row: Row) -> SagaLine:
    """A row of the store as a list shows it."""
    values: dict[str, Any] = {name: getattr(row, name) for name in SagaLine.__struct_fields__ if name != "busy"}
    return SagaLine(**values, busy=tuple(row.busy.split()))


def stuck_steps(state: SagaState) -> tuple[str, ...]:
    """The steps at which a saga is stuck."""
    return tuple(sorted({step for (step, _), instance in state.instances.items() if instance.stuck}))


def _length_ms(name: str, duration: str) -> int:
    try:
        return duration_ms(duration)
    except ValueError as error:
        raise invalid(name, str(error), "must be a duration such as 30s, 1h30m or 7d") from error


def _started(saga: str, version: int, saga_id: str, *, new: bool) -> Started:
    path = f"/api/v1/sagas/{saga}/{quote(saga_id, safe='')}"
    return Started(saga=saga, version=version, saga_id=saga_id, new=new, status=path)
