"""The saga-log as a process: follows the consumer group, runs the batches, fires the timers.

One task reads, folds, appends and saves. The order makes a crash harmless at any point: fold a batch; append what is
owed and wait until the log has it; a few times a second save states and offset together, and commit the group's offset.
What was not reached is done again by the next owner, from the same records and under the same ids.

The group's committed offset serves two ends: it shows the lag, and it marks what an earlier owner has counted and
dead-lettered. Where to fold from, the store says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from functools import partial

from choreo.broker.port import Broker, Committed, Consumer, Message, TopicPartition
from choreo.broker.registry import RETENTION_MS_DEFAULT, Registry, register
from choreo.broker.topics import saga_topic
from choreo.clock import Clock, SystemClock
from choreo.contract.saga import Saga, with_children
from choreo.core import SagaState, Timer
from choreo.errors import (
    BrokerUnavailable,
    CommitRefused,
    ConfigurationError,
    StoreConflict,
    StoreError,
    StoreUnavailable,
)
from choreo.observe.metrics import Metrics
from choreo.saga_log.accounts import Accounts
from choreo.saga_log.dead_letter import DeadLetters
from choreo.saga_log.intake import Refused
from choreo.saga_log.outbound import Outbound, Wanted
from choreo.saga_log.ownership import Ownership
from choreo.saga_log.shard import Applied, Shard, Unsent
from choreo.saga_log.side_by_side import side_by_side
from choreo.saga_log.tracers import SagaTracers
from choreo.store.port import Store

logger = logging.getLogger("choreo.saga_log")

GROUP = "choreo.saga-log"
PARKED_RETRY_S = 5.0
DROPPING_S = 600.0
STORE_PAUSE_S = 0.2  # between attempts to load from a store that is away
TIMERS_AT_ONCE = 500
TIMERS_INTERVAL_S = 0.1  # how much later than due a timer may fire under load: most sagas are over before


class SagaLog:
    """Folds the log of some sagas and decides: compensations, joins, time-outs, outcomes.

    Several instances with the same group share the partitions. The topics must exist.

    Args:
        store: where states are kept between runs; it is not closed here.
        contracts: registered when it runs, and their topics are read. Other versions are taken from the registry.
        retention_ms: of the topics: resting sagas are dropped from the store when their last record is older.
        poll_timeout_s: how long ``stop`` may have to wait for the end of a quiet poll.
        records_max: in one batch.
        resting_max: sagas per partition that rest and are still kept in memory.
        active_max: sagas per partition that do not, and are kept as values; the others are bytes.
        save_interval_s: how far the store, the group's offsets and the gauges may lag under load. A saga that goes
            through several batches in that time is saved once; what a crash loses is folded again from the log.
    """

    def __init__(
        self,
        broker: Broker,
        store: Store,
        contracts: Sequence[Saga],
        *,
        group: str = GROUP,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
        retention_ms: int = RETENTION_MS_DEFAULT,
        poll_timeout_s: float = 0.5,
        records_max: int = 500,
        resting_max: int = 1_000,
        active_max: int = 1_000,
        save_interval_s: float = 0.25,
        tracers: Sequence[object] = (),
    ) -> None:
        if not contracts:
            raise ConfigurationError("the saga-log has no contracts; give it at least one, as in services.order:ORDER")
        self._broker = broker
        self._store = store
        self._contracts = with_children(contracts)
        self._sagas = {saga_topic(contract.name): contract.name for contract in self._contracts}
        self._group = group
        self._clock = clock or SystemClock()
        self._metrics = metrics or Metrics()
        self._retention_ms = retention_ms
        self._poll_timeout_s = poll_timeout_s
        self._records_max = records_max
        self._save_interval_s = save_interval_s
        self._save_due_s = 0.0
        self._consumer: Consumer | None = None
        steps: dict[str, set[str]] = {saga: set() for saga in self._sagas.values()}
        for contract in contracts:
            steps[contract.name].update(step.name for step in contract.steps)
        self._tracers = SagaTracers(tracers, self._metrics)
        self._accounts = Accounts(self._metrics, group, steps, tracers=self._tracers, contracts=self._contract)
        self._registry = Registry(broker)
        self._own = Ownership(
            broker,
            store,
            self._sagas,
            self._contract,
            resting_max=resting_max,
            active_max=active_max,
            on_dropped=lambda tp: self._metrics.drop_partition(tp.topic, tp.partition, group),
        )
        self._outbound: Outbound
        self._dead_letters: DeadLetters
        self._busy = asyncio.Lock()  # held while shards are at work; a rebalance waits for it
        self._running = False
        self._stopping = False
        self._ended = asyncio.Event()
        self._uncommitted: dict[TopicPartition, Shard] = {}
        self._timers_due_s = 0.0
        self._parked_retry_due_s = 0.0
        self._dropping_due_s = 0.0

    async def run(self) -> None:
        """Work until ``stop``. Once for an object.

        Raises:
            DefinitionError: a contract differs from the one registered under its version.
            TopicError: a topic does not exist.
            BrokerUnavailable: no broker answers at the start; later outages are ridden out.
            StoreError: the store cannot be read, and will not be without a change by a person.
        """
        self._running = True
        try:
            self._registry = await register(self._broker, self._contracts)
            producer = await self._broker.producer()
            try:
                self._outbound = Outbound(producer, self._clock, self._metrics)
                self._dead_letters = DeadLetters(self._outbound, self._metrics)
                telling = asyncio.create_task(self._tracers.run(), name="saga-log/tracers")
                try:
                    await self._consume()
                    await self._tracers.drain()
                finally:
                    telling.cancel()
                    await asyncio.wait((telling,))
            finally:
                await producer.close()
        finally:
            self._running = False
            self._ended.set()

    async def stop(self) -> None:
        """Finish the batch, save, leave the group, so that others take over at once. Returns when ``run`` has ended."""
        self._stopping = True
        if self._running:
            await self._ended.wait()

    def not_ready_because(self) -> str | None:
        """Why this instance does not do its part; ``None`` if it does, whether it has partitions or not."""
        if not self._running:
            return "the saga-log is not running"
        if self._own.held:
            return f"waiting for the store, to fold on: {', '.join(map(str, self._own.held))}"
        waiting = [str(tp) for tp in self._own.opening]
        waiting += [f"{each.tp} at {each.offset} of {each.end}" for each in self._own.shards.values() if not each.live]
        return f"folding the log again: {', '.join(waiting)}" if waiting else None

    def states(self) -> dict[str, SagaState]:
        """The states in memory by saga id; sagas that rest may have left it."""
        return {saga_id: state for shard in self._own.shards.values() for saga_id, state in shard.states().items()}

    def _contract(self, saga: str, version: int) -> Saga | None:
        return self._registry.get(saga, version)

    async def _consume(self) -> None:
        consumer = await self._broker.consumer(
            self._group, tuple(self._sagas), on_assigned=self._assigned, on_revoked=self._revoked
        )
        self._consumer = consumer
        last_poll = self._metrics.last_poll.labels(self._group)
        try:
            while not self._stopping:
                await self._own.open(consumer)
                messages = await consumer.poll(timeout_s=self._pause_s(), records_max=self._records_max)
                last_poll.set(self._clock.now_ms() / 1_000)
                async with self._busy:
                    try:
                        await self._batch(consumer, messages)
                        if not messages or self._clock.monotonic() >= self._timers_due_s:
                            await self._fire_timers()
                        await self._drop_old()
                        await self._own.learn()
                    except StoreConflict:  # the store was begun anew while it was read
                        self._own.reload(tuple(self._own.shards))
                    if self._clock.monotonic() >= self._save_due_s:
                        await self._save(consumer)
                        self._show(consumer)
                if self._own.held:
                    await self._clock.sleep(STORE_PAUSE_S)
            async with self._busy:
                await self._save(consumer)
        finally:
            await consumer.close()
            self._own.drop(tuple(self._own.shards))
            self._accounts.show(())

    async def _assigned(self, tps: Collection[TopicPartition]) -> None:
        self._metrics.consumer_rebalances.labels(self._group, "assigned").inc()
        self._own.assign(tps)

    async def _revoked(self, tps: Collection[TopicPartition]) -> None:
        self._metrics.consumer_rebalances.labels(self._group, "revoked").inc()
        self._own.leaving.update(tps)
        try:
            async with self._busy:
                if self._consumer is not None:
                    await self._save(self._consumer)
                self._own.drop(tps)
        finally:
            self._own.leaving.difference_update(tps)

    def _pause_s(self) -> float:
        """How long a poll may wait: until the next timer, at most."""
        pause_s, now_s = self._poll_timeout_s, self._clock.monotonic()
        if self._uncommitted:
            pause_s = min(pause_s, self._save_due_s - now_s)
        live = [shard for shard in self._own.shards.values() if shard.live]
        if any(shard.has_untimed for shard in live):
            pause_s = min(pause_s, self._timers_due_s - now_s)
        dues = [due_ms for shard in live if (due_ms := shard.timers.next_ms()) is not None]
        if dues:
            pause_s = min(pause_s, (min(dues) - self._clock.now_ms()) / 1_000)
        return max(pause_s, 0.0)

    def _wanted(self, tp: TopicPartition) -> Wanted:
        return lambda: not self._stopping and tp not in self._own.leaving

    async def _batch(self, consumer: Consumer, messages: Sequence[Message]) -> None:
        applied: list[tuple[Shard, Applied]] = []
        for tp, part in _by_partition(messages).items():
            shard = self._own.shards.get(tp)  # none where a rebalance took it, or has just given it: then it is sought
            if shard is None:
                continue
            try:
                if await self._own.is_of_this_log(shard, part[0]):
                    applied.append((shard, await self._apply(shard, part)))
                self._own.held.discard(tp)
            except StoreUnavailable as error:
                self._own.hold(consumer, shard, error)
        applied += await self._retry_parked()
        worked = {shard.tp: shard for shard, _ in applied}
        if ours := [(shard.tp, each.entry.offset) for shard, of in applied for each in of.seen if each.folded.owed]:
            consumer.worked_on(ours)
        for shard in self._own.shards.values():
            self._go_live(consumer, shard, worked)
        letters = [(shard, *letter) for shard, each in applied for letter in each.refused]
        left = await self._append(letters)
        self._own.drop(left)  # or the store would be ahead of the dead letters, and nobody would write them any more
        for tp, shard in worked.items():
            if tp not in left:
                self._own.account(shard)
        self._uncommitted |= worked
        if letters:
            self._save_due_s = 0.0  # the committed offset is what keeps a letter from being written twice

    async def _apply(self, shard: Shard, messages: Sequence[Message]) -> Applied:
        await self._admit(shard, messages)
        self._accounts.polled(shard.tp, len(messages), muted=not shard.live)
        applied = shard.apply(messages)
        seen = [each for each in applied.seen if each.entry.offset >= shard.accounted]
        self._accounts.folded(shard.saga, seen)
        fresh = [(message, why) for message, why in applied.refused if message.offset >= shard.accounted]
        if any(why is not None for _, why in applied.parked):
            self._parked_retry_due_s = 0.0  # the contract may have been published just before the record
            self._accounts.parked(shard, applied)
        return applied._replace(refused=fresh)

    async def _admit(self, shard: Shard, messages: Sequence[Message]) -> None:
        """Load the sagas of these messages that have left the memory.

        Raises:
            StoreConflict: the store is not where we left it, so that its states do not belong to our place in the log.
        """
        if missing := shard.missing(messages):
            states = await self._store.load(shard.tp, missing)
            await self._own.believe_store(shard)
            shard.admit(states.values())

    async def _retry_parked(self) -> list[tuple[Shard, Applied]]:
        """Fold what waited for a contract that is registered by now (rule 18)."""
        waiting = [shard for shard in self._own.shards.values() if shard.parked]
        if not waiting:
            return []
        if self._clock.monotonic() >= self._parked_retry_due_s:
            self._parked_retry_due_s = self._clock.monotonic() + PARKED_RETRY_S
            try:
                await self._registry.refresh()
            except BrokerUnavailable as error:
                logger.warning("cannot look for contracts now: %s", error)
        known = len(self._registry.contracts)
        found = []
        for shard in waiting:
            if shard.contracts_tried == known:
                continue
            try:
                for saga_id in sorted(shard.parked):
                    messages = await self._store.load_parked(shard.tp, saga_id)
                    await self._admit(shard, messages)
                    applied = shard.release(saga_id, messages)
                    self._accounts.folded(shard.saga, applied.seen)
                    found.append((shard, applied))
            except StoreUnavailable as error:
                self._own.complain(f"cannot load what waits in {shard.tp}, trying again", error)
            else:
                shard.contracts_tried = known
        return found

    def _go_live(self, consumer: Consumer, shard: Shard, worked: Collection[TopicPartition]) -> None:
        if shard.live or shard.tp in self._own.held:
            return
        if shard.tp not in worked and consumer.lag(shard.tp) == 0:
            shard.verified = True  # nothing came, and nothing will: what is missing to the end are holes of the log
        elif not shard.verified or shard.offset < shard.end:
            return
        shard.live = True
        self._accounts.caught_up(shard)

    async def _append(self, letters: Sequence[tuple[Shard, Message, Refused]]) -> set[TopicPartition]:
        """Append what is owed and what is refused, sagas side by side. Returns where a letter had to be left.

        That is only where the next owner will write it: partitions that are given up, or all of them at a stop.
        """
        written = await side_by_side(
            [
                partial(self._dead_letters.put, shard.saga, message, why, self._wanted(shard.tp))
                for shard, message, why in letters
            ]
        )
        owed: list[tuple[Unsent, Wanted]] = []
        for shard in self._own.shards.values():
            if shard.live and (unsent := shard.unsent()):
                wanted = self._wanted(shard.tp)
                owed += [(each, wanted) for each in unsent]
        if owed:
            await self._outbound.all(owed)
        return {shard.tp for (shard, _, _), done in zip(letters, written, strict=True) if not done}

    async def _save(self, consumer: Consumer) -> None:
        """Save what has changed, then commit the group's offsets."""
        self._save_due_s = self._clock.monotonic() + self._save_interval_s
        await self._own.save()
        await self._commit(consumer)

    async def _commit(self, consumer: Consumer) -> None:
        shards = self._own.shards
        self._uncommitted = {tp: shard for tp, shard in self._uncommitted.items() if shards.get(tp) is shard}
        # A rebuild is behind what an earlier owner has committed: that mark must not move back.
        places = {
            tp: Committed(shard.offset) for tp, shard in self._uncommitted.items() if shard.accounted == shard.offset
        }
        if places:
            try:
                await consumer.commit(places)
            except (CommitRefused, BrokerUnavailable) as error:
                # Kept for the next turn, with or without records: on a quiet topic a lag would show for ever.
                logger.info("the group's offsets cannot be committed now, trying again: %s", error)
            else:
                for tp in places:
                    del self._uncommitted[tp]

    async def _fire_timers(self) -> None:
        self._timers_due_s = self._clock.monotonic() + TIMERS_INTERVAL_S
        now_ms = self._clock.now_ms()
        await side_by_side(
            [
                partial(self._fire, shard, state, timers, now_ms)
                for shard in self._own.shards.values()
                if shard.live
                for state, timers in shard.due(now_ms, TIMERS_AT_ONCE)
            ]
        )

    async def _fire(self, shard: Shard, state: SagaState, timers: Sequence[Timer], now_ms: int) -> bool:
        for timer in timers:
            appended = await self._outbound.timer(state, timer.record, self._wanted(shard.tp))
            if appended is None:
                shard.postpone(state.saga_id, timer.at_ms, now_ms)
                return False
            self._metrics.timers_fired.labels(shard.saga).inc()
            shard.timers.fired(state.saga_id, now_ms, appended.offset)
        return True

    async def _drop_old(self) -> None:
        if self._clock.monotonic() < self._dropping_due_s:
            return
        try:
            dropped = await self._store.drop_resting(self._clock.now_ms() - self._retention_ms)
        except StoreConflict:
            raise
        except StoreError as error:
            logger.warning("cannot drop old sagas from the store now: %s", error)
            dropped = 0
        if not dropped:  # otherwise there may be more, for the next turn
            self._dropping_due_s = self._clock.monotonic() + DROPPING_S

    def _show(self, consumer: Consumer) -> None:
        self._accounts.show(self._own.shards.values(), self._clock.now_ms())
        for tp in self._own.shards:
            if (lag := consumer.lag(tp)) is not None:
                self._metrics.consumer_lag.labels(tp.topic, str(tp.partition), self._group).set(lag)


def _by_partition(messages: Sequence[Message]) -> dict[TopicPartition, list[Message]]:
    """The messages of each partition, which a poll delivers one partition after the other."""
    parts: dict[TopicPartition, list[Message]] = {}
    part: list[Message] = []
    partition, topic = -1, ""
    for message in messages:
        if message.partition != partition or message.topic != topic:
            partition, topic = message.partition, message.topic
            part = parts.setdefault(message.tp, [])
        part.append(message)
    return parts
