"""A world of services, saga-logs, clients and an operator, in which everything goes wrong for a while and then heals.

The runtimes are those that are deployed; only their ports are of this world (``process``). While the faults are active,
clients start sagas and the world's accidents (``_happen``) come at random times. Then the faults stop, and within a
bounded time everything must have come to rest, so that the judge can say what it has come to.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from choreo.broker.memory import MemoryBroker
from choreo.broker.partitioning import partition_of_key
from choreo.broker.port import TopicPartition
from choreo.broker.registry import ensure_saga_topics
from choreo.broker.topics import saga_topic
from choreo.client import Client
from choreo.client.client import Act
from choreo.contract import Saga
from choreo.errors import BrokerError, NotStuck, SagaFailed, SagaNotFound, StartRefused, StoreError, WaitTimeout
from choreo.ids import input_hash
from choreo.messages.codec import encode_user_value
from choreo.messages.headers import JSON, MSGPACK
from choreo.messages.records import SagaCompleted
from choreo.saga_log import SagaLog
from choreo.step import Options, Service, StepRuntime
from choreo.store.projection import state_of
from choreo.testing import VirtualClock
from choreo.testing.inline import InlineExecutor
from tests.simulation import clockwork
from tests.simulation.faults import PER_SECOND, Faults
from tests.simulation.handlers import bind
from tests.simulation.inboxes import InsideHandlers, add_faults, open_inbox
from tests.simulation.judge import Judge
from tests.simulation.process import Disk, FaultyBroker, FaultyStore, Log, Process, ProcessClock
from tests.simulation.shapes import SHAPES, Shape
from tests.simulation.unmeasured import UNMEASURED

QUIET_WITHIN_S = 900.0
"""Longest deadlines of the contracts, several times over."""

MEMORY = Path("/dev/shm")  # where there is such a thing, files need no disk

SESSION_TIMEOUT_MS = 6_000
STORM_S = 8.0


@dataclass
class Result:
    """What a run has come to.

    Attributes:
        virtual_s: how long it took, in its own time.
        contended, repeated: sagas for which the weaker promises hold (see ``judge``).
        given_up: sagas in which a step completed in time after the saga-log had given it up.
        weaker: how often that was needed, by invariant.
        paused: as the judge's.
        children: sub-sagas by how they ended; ``sagas`` and ``outcomes`` are without them.
        cancelled: how often a step was, because its saga had turned back, by what is known of its effect.
    """

    seed: int
    digest: str
    sagas: int
    records: int
    virtual_s: float
    violations: list[str]
    outcomes: Counter[str] = field(default_factory=Counter)
    fired: Counter[str] = field(default_factory=Counter)
    contended: int = 0
    repeated: int = 0
    given_up: int = 0
    weaker: Counter[str] = field(default_factory=Counter)
    inbox: bool = False
    cancelled: Counter[str] = field(default_factory=Counter)
    paused: Counter[str] = field(default_factory=Counter)
    children: Counter[str] = field(default_factory=Counter)


class _Keeper(NamedTuple):
    """A saga-log that runs, its clock and disk, how often that had been replaced, and how many may rest in memory."""

    saga_log: SagaLog
    clock: ProcessClock
    disk: Disk
    replaced: int
    resting_max: int


def simulate(
    seed: int, *, sagas: int = 10, say: Callable[[str], None] | None = None, inbox: bool = False, pauses: bool = False
) -> Result:
    """Run the world of a seed.

    Args:
        sagas: how many are started, not counting second starts.
        inbox: whether the services have inboxes.
        pauses: whether operators pause sagas, and all of the type.
        say: told what happens, line by line.
    """
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the runtimes say a lot about faults
    try:
        if not inbox:
            return clockwork.run(lambda clock: World(seed, sagas, clock, say, pauses=pauses).run())
        with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
            return clockwork.run(lambda clock: World(seed, sagas, clock, say, Path(directory), pauses=pauses).run())
    finally:
        logging.disable(level)


class World:
    """One run."""

    def __init__(
        self,
        seed: int,
        sagas: int,
        clock: VirtualClock,
        say: Callable[[str], None] | None,
        inboxes: Path | None = None,
        *,
        pauses: bool = False,
    ) -> None:
        """Make the world of a seed. ``inboxes`` is where the services' databases are, if they have any."""
        self.random = Random(f"{seed}/world")
        self.faults = Faults(seed)
        self.clock = clock
        self._is_resumed = False
        self._pauses = Random(f"{seed}/pauses") if pauses else None
        self._seed = seed
        self._sagas = sagas
        self._began = clock.monotonic()
        self._told = say
        self.shape = self.random.choice(SHAPES)
        self._partitions = self.random.randint(1, 3)
        self._contracts = {saga_topic(each.contract.name): each.contract for each in self.shape.family}
        self._topics = list(self._contracts)
        self._tps = [TopicPartition(topic, number) for topic in self._topics for number in range(self._partitions)]
        self.judge = Judge(self.shape, self.place_of, clock.now_ms, say and self.say)
        self.log = Log(clock.now_ms, self.judge.appended, session_timeout_ms=SESSION_TIMEOUT_MS)
        self.log.fetch_s = self.random.choice((0.0, 0.01, 0.02, 0.05))
        self._content_type = self.random.choice((JSON, MSGPACK))
        self._lives: Counter[str] = Counter()
        self._running: dict[str, Process] = {}
        self._replaced: set[str] = set()
        self._saga_logs: dict[str, _Keeper] = {}
        self._roles: dict[str, Callable[[Process], Coroutine[Any, Any, None]]] = {}
        self._stops: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._left_stuck: set[str] = set()
        self._names = itertools.count()
        self._inboxes = inboxes
        self._inside: frozenset[str] = frozenset()
        if inboxes is not None:
            self._draw_inside(Random(f"{seed}/inbox"))
        self._cast()

    def say(self, what: str) -> None:
        if self._told is not None:
            self._told(f"{self.clock.monotonic() - self._began:9.3f} {what}")

    def place_of(self, saga_id: str) -> TopicPartition:
        parent, _, inside = saga_id.partition("/")
        topic = self._topics[0]
        if parent == self.shape.contract.name and inside:
            step = inside.rsplit("/", 2)[1]
            child = self.shape.contract[step].child
            assert child is not None, "only sagas of such steps have such ids"
            topic = saga_topic(child.saga)
        return TopicPartition(topic, partition_of_key(saga_id, self._partitions))

    def _contract_of(self, saga_id: str) -> Saga:
        return self._contracts[self.place_of(saga_id).topic]

    async def run(self) -> Result:
        await ensure_saga_topics(
            MemoryBroker("memory://simulation", self.log), [*self._contracts.values()], partitions=self._partitions
        )
        keepers = [asyncio.create_task(self._keep_alive(name)) for name in self._roles]
        accidents = [asyncio.create_task(self._happen(kind)) for kind in PER_SECOND if kind in self.faults.rates]
        operator = asyncio.create_task(self._operate())
        clients = asyncio.create_task(self._be_clients())
        await asyncio.wait((clients,))
        clients.result()
        await asyncio.sleep(self.random.uniform(1, 20))
        self._heal()
        for accident in accidents:
            accident.cancel()
        await self._rest()
        for task in (*keepers, operator):
            task.cancel()
        for process in self._running.values():
            process.die()
        for task in self._tasks:
            task.cancel()
        await asyncio.sleep(10)
        return self._result()

    # Who there is

    def _cast(self) -> None:
        """Give out the roles: replicas of each service, one or two saga-logs with their disks."""
        for shape in self.shape.family:
            for service in shape.services:
                for number in range(self.random.choice((1, 1, 2, 2, 3))):
                    self._roles[f"{service}-{number}"] = self._serve(shape, service)
        shared = Disk()
        is_shared = self.random.random() < 0.5
        for number in range(self.random.choice((1, 2))):
            self._roles[f"saga-log-{number}"] = self._keep_saga_log(shared if is_shared else Disk())

    def _draw_inside(self, random: Random) -> None:
        """Which steps work in the transactions of their services' inboxes: mostly all."""
        add_faults(self.faults, self._seed)
        steps = [step.name for contract in self._contracts.values() for step in contract.steps if step.child is None]
        self._inside = frozenset(steps if random.random() < 0.7 else random.sample(steps, len(steps) // 2))
        self.judge.is_strict = len(self._inside) == len(steps)

    def _service(self, shape: Shape, name: str, process: Process) -> Service:
        """A service for one life of a process."""
        inbox = None if self._inboxes is None else open_inbox(self._inboxes, name, process)
        handlers = InsideHandlers(process, self.judge)
        return bind(
            Service(name, inbox=inbox),
            shape,
            process,
            self.judge,
            lambda step: handlers if step in self._inside else None,
        )

    def _serve(self, shape: Shape, service: str) -> Callable[[Process], Coroutine[Any, Any, None]]:
        options = Options(
            concurrency=self.random.choice((1, 4, 64)),
            unfinished_max=self.random.choice((2, 10, 1_000)),
            poll_timeout_s=1.5,
            commit_interval_s=self.random.choice((0.0, 0.5, 5.0)),
            commit_records=self.random.choice((1, 5, 1_000)),
            drain_timeout_s=self.random.choice((0.0, 1.0, 10.0)),
            shutdown_timeout_s=self.random.choice((0.0, 5.0)),
        )

        async def run(process: Process) -> None:
            runtime = StepRuntime(
                self._service(shape, service, process),
                FaultyBroker(self.log, process, self.judge.committed),
                clock=ProcessClock(process),
                random=Random(f"{self._seed}/{process.name}"),
                metrics=UNMEASURED,
                options=options,
                executor=InlineExecutor(),
            )
            self._stops[process.name] = runtime.stop
            await runtime.run()

        return run

    def _keep_saga_log(self, disk: Disk) -> Callable[[Process], Coroutine[Any, Any, None]]:
        resting_max = self.random.choice((0, 2, 1_000))
        records_max = self.random.choice((1, 5, 500))
        save_interval_s = self.random.choice((0.0, 0.0, 0.0, 0.25))

        async def run(process: Process) -> None:
            if self.faults.happens("store_lost"):
                disk.lose()
            elif self.faults.happens("store_stale") and not disk.go_back(self.random.choice):
                self.faults.fired["store_stale"] -= 1
            clock = ProcessClock(process)
            saga_log = SagaLog(
                FaultyBroker(self.log, process, self.judge.committed),
                FaultyStore(disk, process),  # type: ignore[arg-type]  # what only dashboards ask is not in it
                (self.shape.contract,),
                clock=clock,
                metrics=UNMEASURED,
                poll_timeout_s=1.5,
                records_max=records_max,
                resting_max=resting_max,
                active_max=resting_max,
                save_interval_s=save_interval_s,
            )
            self._saga_logs[process.name] = _Keeper(saga_log, clock, disk, disk.replaced, resting_max)
            self._stops[process.name] = saga_log.stop
            try:
                await saga_log.run()
            finally:
                del self._saga_logs[process.name]

        return run

    async def _keep_alive(self, role: str) -> None:
        """Run a role, again and again."""
        while True:
            self._lives[role] += 1
            process = Process(f"{role}.{self._lives[role]}", self.faults, self.clock, self.log, self.say)
            self._running[role] = process
            self.say(f"{process.name} comes")
            process.task = asyncio.create_task(self._roles[role](process), name=process.name)
            await asyncio.wait((process.task,))
            self._stops.pop(process.name, None)
            if not process.task.cancelled() and (error := process.task.exception()) is not None:
                self.say(f"{process.name} ends with {error!r}")
                if not isinstance(error, BrokerError | StoreError):
                    self.judge.violated("R0", process.name, f"ended with {error!r}")
            process.die()
            if self.faults.active:
                is_long = self.faults.happens("stays_away")
                await asyncio.sleep(self.faults.seconds(20.0, 90.0) if is_long else self.faults.seconds(0.05, 15.0))

    # What clients and operators do

    async def _be_clients(self) -> None:
        span_s = self.random.choice((5.0, 20.0, 60.0))
        process = Process("client", self.faults, self.clock, self.log, self.say, is_mortal=False)
        broker = FaultyBroker(self.log, process, self.judge.committed)
        random = Random(f"{self._seed}/client")
        client = Client(broker, content_type=self._content_type, clock=self.clock, random=random)
        async with client, asyncio.TaskGroup() as group:
            for number in range(self._sagas):
                await asyncio.sleep(self.random.expovariate(self._sagas / span_s))
                group.create_task(self._use(client, f"saga-{number}"))
                if self._pauses is not None and self._pauses.random() < 0.5:
                    whom = f"saga-{self._pauses.randint(0, number)}" if self._pauses.random() < 0.7 else None
                    group.create_task(self._pause(client, whom, self._pauses))

    async def _pause(self, client: Client, saga_id: str | None, random: Random) -> None:
        """Pause a saga, or the type, for a while; some are paused before they start, and some when they are over."""
        await asyncio.sleep(random.expovariate(0.3))
        await self._insist(client.pause, self.shape.contract, saga_id, operator="op", reason="simulated")
        await asyncio.sleep(random.expovariate(0.1))
        await self._insist(client.resume, self.shape.contract, saga_id, operator="op", reason="simulated")

    async def _resume_all(self, client: Client) -> None:
        """What is paused by an old record that came once more, nobody would resume."""
        contract, states = self.shape.contract, list(self.judge.states.values())
        for saga_id in [state.saga_id for state in states if state.pause is not None]:
            await self._insist(client.resume, self._contract_of(saga_id), saga_id, operator="op", reason="the end")
        if self._pauses is not None and not self._is_resumed:
            self._is_resumed = True
            await self._insist(client.resume, contract, None, operator="op", reason="the end")

    async def _use(self, client: Client, saga_id: str) -> None:
        contract, order = self.shape.contract, {"number": saga_id, "gift": self.random.random() < 0.5}
        at = timedelta(seconds=self.faults.seconds(1.0, 30.0)) if self.faults.happens("scheduled") else None
        async with asyncio.TaskGroup() as group:
            for name in contract.signals:
                await self._signal(client, saga_id, name, group)
            if self.faults.happens("cancelled_before_start"):
                await self._insist(client.cancel, contract, saga_id)
            if self.faults.happens("cancelled"):
                group.create_task(self._later(client.cancel, contract, saga_id))
            if self.faults.happens("started_again"):
                group.create_task(self._later(client.start, contract, order, id=saga_id))
            if self.faults.happens("started_with_other_input"):
                group.create_task(self._later(client.start, contract, {"other": saga_id}, id=saga_id))
            if self.random.random() < 0.5 or at is not None:
                await self._insist(client.start, contract, order, id=saga_id, at=at)
            else:
                await self._insist(self._wait_for, client, saga_id, order)

    async def _signal(self, client: Client, saga_id: str, name: str, group: asyncio.TaskGroup) -> None:
        if self.faults.happens("signal_withheld"):
            return
        send = partial(client.signal, self.shape.contract, saga_id, name, {"by": saga_id})
        if self.faults.happens("signal_before_start"):
            await self._insist(send)
        else:
            group.create_task(self._later(send))
        if self.faults.happens("signalled_twice"):
            group.create_task(self._later(send))

    async def _wait_for(self, client: Client, saga_id: str, order: object) -> None:
        start = input_hash(encode_user_value(order, content_type=self._content_type))
        try:
            told = await client.run(self.shape.contract, order, id=saga_id, timeout_s=60)
        except SagaFailed:
            self.judge.told(saga_id, start, "compensated")
        except (WaitTimeout, StartRefused):
            return
        else:
            assert isinstance(told, SagaCompleted), "that is what it promises"
            self.judge.told(saga_id, start, "completed")

    async def _later(self, call: Callable[..., Coroutine[Any, Any, object]], *args: object, **options: object) -> None:
        await asyncio.sleep(self.faults.seconds(longest=30.0))
        await self._insist(call, *args, **options)

    async def _insist(self, call: Callable[..., Coroutine[Any, Any, object]], *args: object, **options: object) -> None:
        """Call until the broker takes it; repeating is safe, as clients are told."""
        while True:
            try:
                await call(*args, **options)
            except BrokerError:
                await asyncio.sleep(self.faults.seconds())
            else:
                return

    async def _operate(self) -> None:
        """Act on what is stuck, except on some that are left."""
        process = Process("operator", self.faults, self.clock, self.log, self.say, is_mortal=False)
        broker = FaultyBroker(self.log, process, self.judge.committed)
        random = Random(f"{self._seed}/operator")
        async with Client(broker, content_type=self._content_type, clock=self.clock, random=random) as client:
            while True:
                await asyncio.sleep(random.uniform(1, 6))
                if not self.faults.active:
                    await self._resume_all(client)
                for saga_id, step in self.judge.stuck_steps():
                    await self._act(client, saga_id, step, random)

    async def _act(self, client: Client, saga_id: str, step: str, random: Random) -> None:
        if saga_id in self._left_stuck or self.judge.waits_for_stuck_child(saga_id, step):
            return
        if self.faults.happens("left_stuck"):
            self._left_stuck.add(saga_id)
            return
        act: Act = random.choice(("retry", "retry", "retry", "skip", "resolve")) if self.faults.active else "retry"
        if self._contract_of(saga_id)[step].child is not None:
            act = "retry"  # what is left of a sub-saga is undone there
        try:
            await client.act(self._contract_of(saga_id), saga_id, act, step, operator="op", reason="simulated")
        except (BrokerError, NotStuck, SagaNotFound):
            return

    # What happens to all of them

    async def _happen(self, kind: str) -> None:
        while True:
            await asyncio.sleep(self.faults.random.expovariate(self.faults.rates[kind]))
            if await getattr(self, f"_{kind}")():
                self.faults.fired[kind] += 1

    def _victim(self) -> Process | None:
        alive = [process for process in self._running.values() if not process.is_dead and not process.is_stalled]
        return self.faults.random.choice(alive) if alive else None

    async def _process_killed(self) -> bool:
        victim = self._victim()
        if victim is not None:
            victim.die()
        return victim is not None

    async def _process_stopped(self) -> bool:
        victim = self._victim()
        stop = None if victim is None else self._stops.pop(victim.name, None)
        if victim is None or stop is None:
            return False
        self.say(f"{victim.name} is stopped")
        self._spawn(stop())
        return True

    async def _stalled_briefly(self) -> bool:
        return await self._stall(0.05, SESSION_TIMEOUT_MS / 1_000)

    async def _stalled_past_session(self) -> bool:
        return await self._stall(SESSION_TIMEOUT_MS / 1_000, 30.0)

    async def _stall(self, shortest_s: float, longest_s: float) -> bool:
        victim = self._victim()
        if victim is None:
            return False
        victim.stall()
        asyncio.get_running_loop().call_later(self.faults.seconds(shortest_s, longest_s), victim.resume)
        return True

    async def _rebalance_storm(self) -> bool:
        """Members join the group of a service or of the saga-log, take partitions, do nothing, and leave or die."""
        random = self.faults.random
        group, topics = random.choice(list(self.judge.topics_of.items()))

        async def nothing(_tps: object) -> None:
            return None

        async def idle() -> None:
            broker = MemoryBroker("memory://simulation", self.log)
            ends_at = self.clock.monotonic() + self.faults.seconds(0.1, STORM_S)
            consumer = await broker.consumer(group, topics, on_assigned=nothing, on_revoked=nothing)
            while self.faults.active and self.clock.monotonic() < ends_at:
                await consumer.poll(timeout_s=0.3)
                consumer.pause(consumer.assignment())
            if random.random() < 0.5:
                await consumer.close()
            else:
                consumer.abandon()

        self.say(f"a storm in {group}")
        for _ in range(random.randint(1, 3)):
            self._spawn(idle())
        return True

    async def _clock_stepped(self) -> bool:
        if not self._saga_logs:
            return False
        clock = self._saga_logs[self.faults.random.choice(sorted(self._saga_logs))].clock
        clock.wrong_ms = self.faults.random.choice((-3_600_000, -60_000, -5_000, 0, 5_000, 60_000, 3_600_000))
        self.say(f"a saga-log's clock is {clock.wrong_ms} ms wrong")
        return True

    async def _log_clock_stepped(self) -> bool:
        self.log.wrong_ms = self.faults.random.choice((-900, -300, 0, 300, 900))
        self.say(f"the broker's clock is {self.log.wrong_ms} ms wrong")
        return True

    async def _broker_away(self) -> bool:
        if self.log.away:
            return False
        self.say("the broker is away")
        self.log.away = True
        asyncio.get_running_loop().call_later(self.faults.seconds(0.5, 20.0), self._broker_back)
        return True

    def _broker_back(self) -> None:
        self.say("the broker is back")
        self.log.away = False

    async def _cut_off(self) -> bool:
        victim = self._victim()
        if victim is None or victim.cut_off:
            return False
        self.say(f"{victim.name} is cut off")
        victim.cut_off = True
        asyncio.get_running_loop().call_later(self.faults.seconds(1.0, 30.0), self._reconnect, victim)
        return True

    def _reconnect(self, process: Process) -> None:
        self.say(f"{process.name} is not cut off any more")
        process.cut_off = False

    async def _poison(self) -> bool:
        """Bytes that are no record: garbage, or a record with its bytes damaged."""
        random = self.faults.random
        if random.random() < 0.3 or not self.log.messages:
            headers = (("ce_type", random.randbytes(8)),) if random.random() < 0.5 else ()
            self.log.append(
                random.choice(self._topics),
                f"noise-{next(self._names)}",
                random.randbytes(random.randint(0, 60)),
                headers,
            )
            return True
        original = random.choice(self.log.messages)
        if original.topic not in self._contracts or original.key is None:
            return False
        value = original.value[: random.randrange(len(original.value) or 1)]
        self.log.append(original.topic, original.key.decode(), value, original.headers)
        return True

    async def _old_record_again(self) -> bool:
        original = self.faults.random.choice(self.log.messages)
        if original.topic not in self._contracts or original.key is None:
            return False
        self.log.append(original.topic, original.key.decode(), original.value, original.headers)
        return True

    async def _store_copied(self) -> bool:
        for keeper in self._saga_logs.values():
            keeper.disk.copy()
        return bool(self._saga_logs)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The end

    def _heal(self) -> None:
        self.say("the faults stop")
        self.faults.active = False
        self.log.away, self.log.wrong_ms = False, 0
        for process in self._running.values():
            process.resume()
            process.cut_off = False
        for keeper in self._saga_logs.values():
            keeper.clock.wrong_ms = 0

    async def _rest(self) -> None:
        """Wait until nothing happens any more."""
        give_up_at = self.clock.monotonic() + QUIET_WITHIN_S
        quiet = 0
        while quiet < 2:
            await asyncio.sleep(3)
            ends = {tp: self.log.end_known(tp) or 0 for tp in self._tps}
            busy = self.judge.is_quiet(ends) or self._not_ready()
            quiet = 0 if busy else quiet + 1
            if busy and self.clock.monotonic() > give_up_at:
                self.judge.violated(*busy.split(" ", 2))
                return
        self._compare_states()

    def _not_ready(self) -> str | None:
        """What a saga-log still folds or has not saved; lag 0 is what its group has committed, not what it has read."""
        for name, keeper in self._saga_logs.items():
            if reason := keeper.saga_log.not_ready_because():
                return f"L2 {name} is not ready: {reason}"
            for tp, shard in keeper.saga_log._own.shards.items():
                if self._owner(name).owns(tp) and shard.advance() is not None:
                    return f"L2 {name} has not saved {tp}"
        return None

    def _owner(self, name: str) -> Process:
        return next(process for process in self._running.values() if process.name == name)

    def _compare_states(self) -> None:
        """Of the owners; who has been late for its session still believes in what it has, until it polls again."""
        for name, (saga_log, _, disk, replaced, resting_max) in self._saga_logs.items():
            owner = self._owner(name)
            for tp, shard in saga_log._own.shards.items():
                if not owner.owns(tp):
                    continue
                self.judge.compare(f"the memory of {name}", shard.states())
                self.judge.measure(f"{name}/{tp}", shard.states(), resting_max=resting_max)
                if disk.replaced != replaced:
                    continue  # another instance came with a disk that is new: that is noticed with the next record
                log_says = {saga_id for saga_id in self.judge.states if self.place_of(saga_id) == tp}
                of_tp = (self._contracts[tp.topic].name, tp.partition)
                rows = [row for row in disk.store._rows.values() if (row.saga, row.partition) == of_tp]
                found = {row.saga_id: state_of(row.blob) for row in rows}
                self.judge.compare(f"the store of {name}", found, whole=log_says)

    def _result(self) -> Result:
        judge = self.judge
        judge.judge_at_the_end()
        return Result(
            self._seed,
            judge.digest.hexdigest()[:16],
            sum(state.started and state.parent is None for state in judge.states.values()),
            judge.records,
            self.clock.monotonic() - self._began,
            judge.violations,
            Counter(state.phase.value for state in judge.states.values() if state.started and state.parent is None),
            +self.faults.fired,
            len(judge.contended),
            len(judge.repeated - judge.contended),
            len(judge.given_up),
            judge.weaker,
            self._inboxes is not None,
            judge.cancelled,
            judge.paused,
            Counter(state.phase.value for state in judge.states.values() if state.started and state.parent is not None),
        )
