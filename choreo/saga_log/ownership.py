"""The partitions that this instance owns: loaded when they come, saved after every batch, dropped when they go.

A store that is away is waited for: what cannot be saved stays in memory, what cannot be loaded is not folded yet, and
all the other sagas go on. The log knows everything, so nothing is lost by that.

The store is doubted at every turn. A checkpoint that does not fit the log (beyond its end, before its start, or
behind a record that is not there) is of another log and is wiped; a save that another instance was faster with drops
the shard, which is then loaded again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from choreo.broker.port import Broker, Consumer, Message, TopicPartition
from choreo.errors import BrokerUnavailable, StoreConflict, StoreError, StoreUnavailable
from choreo.saga_log.intake import Contracts
from choreo.saga_log.shard import Shard
from choreo.store.port import Advance, Checkpoint, Store

logger = logging.getLogger("choreo.saga_log")


class Ownership:
    """The shards of this instance. Its methods are not for use side by side.

    Attributes:
        shards: loaded, and verified or about to be.
        opening: assigned and not loaded yet; each assignment has a value of its own.
        leaving: about to be given up: nothing may wait for a broker that is away.
        held: their next records need states that cannot be loaded now.
    """

    def __init__(
        self,
        broker: Broker,
        store: Store,
        sagas: Mapping[str, str],
        contracts: Contracts,
        *,
        resting_max: int,
        active_max: int,
        on_dropped: Callable[[TopicPartition], None],
    ) -> None:
        """Own nothing yet.

        Args:
            sagas: topic → name of the saga.
            resting_max: how many resting sagas a shard keeps in memory.
            active_max: how many of the others it keeps as values and not as bytes.
            on_dropped: told about each shard that is gone from here.
        """
        self.shards: dict[TopicPartition, Shard] = {}
        self.opening: dict[TopicPartition, object] = {}
        self.leaving: set[TopicPartition] = set()
        self.held: set[TopicPartition] = set()
        self._broker = broker
        self._store = store
        self._sagas = sagas
        self._contracts = contracts
        self._resting_max = resting_max
        self._active_max = active_max
        self._on_dropped = on_dropped
        self._accounted: dict[TopicPartition, int] = {}
        self._trouble = ""

    def assign(self, tps: Collection[TopicPartition]) -> None:
        """These are ours; ``open`` loads them."""
        for tp in tps:
            self.opening[tp] = object()

    def drop(self, tps: Collection[TopicPartition]) -> None:
        """Forget what is in memory of these."""
        for tp in tps:
            self.opening.pop(tp, None)
            self.held.discard(tp)
            if self.shards.pop(tp, None) is not None:
                self._on_dropped(tp)

    def reload(self, tps: Collection[TopicPartition]) -> None:
        """Forget what is in memory of these and load what is stored."""
        for tp in tps:
            self.held.discard(tp)
            if self.shards.pop(tp, None) is not None:
                self.opening[tp] = object()

    def account(self, shard: Shard) -> None:
        """All that the shard has folded was counted, and dead-lettered where it was unreadable."""
        shard.accounted = max(shard.accounted, shard.offset)
        self._accounted[shard.tp] = shard.accounted

    async def open(self, consumer: Consumer) -> None:
        """Load what was assigned, and have it read from its checkpoint on. What cannot be read yet is left for later.

        Raises:
            StoreError: the store cannot be read, and will not be without a change by a person.
        """
        for tp, assignment in list(self.opening.items()):
            try:
                shard = await self._load(consumer, tp)
            except BrokerUnavailable as error:
                logger.warning("%s cannot be opened yet, trying again: %s", tp, error)
                continue
            except StoreUnavailable as error:
                self.complain("cannot load what is assigned, trying again", error)
                return
            except StoreConflict:  # the store was begun anew, so that what others have loaded is void
                self.reload(tuple(self.shards))
                return
            if self.opening.get(tp) is assignment and tp in consumer.assignment():
                del self.opening[tp]
                self.shards[tp] = shard
                self._seek(consumer, shard)

    def hold(self, consumer: Consumer, shard: Shard, error: StoreUnavailable) -> None:
        """The records that were just read for this shard cannot be folded yet; they are read again."""
        self.complain(f"cannot load states of {shard.tp}, trying again", error)
        self.held.add(shard.tp)
        self._seek(consumer, shard)

    def complain(self, what: str, error: StoreError) -> None:
        """Log a trouble with the store, once for as long as it stays the same."""
        if str(error) != self._trouble:
            self._trouble = str(error)
            logger.error("%s: %s", what, error)

    async def learn(self) -> None:
        """Read one more page of what the store has of some shard, for it to know later what is not there.

        A store that was away is not asked until it could be written again: to wait for its answer would hold up all.

        Raises:
            StoreConflict: the store is not where we left it.
        """
        if self._trouble:
            return
        for shard in self.shards.values():
            if shard.known.read_after is None:
                continue
            try:
                saga_ids = await self._store.saga_ids(shard.tp, after=shard.known.read_after)
                await self.believe_store(shard)
            except StoreUnavailable as error:
                self.complain(f"cannot read which sagas of {shard.tp} are stored, trying again later", error)
            else:
                shard.known.take(saga_ids)
            return

    async def believe_store(self, shard: Shard) -> None:
        """See that what was just read from the store belongs to our place in the log.

        Raises:
            StoreConflict: the store is not where we left it (a backup was put in its place, or another instance writes
                to it).
        """
        stored = await self._store.checkpoint(shard.tp)
        if stored != shard.checkpoint:
            raise StoreConflict(f"{shard.tp}: the store is at {stored}, not at {shard.checkpoint}")

    async def is_of_this_log(self, shard: Shard, first: Message) -> bool:
        """Whether the shard may fold on from ``first``. If not it is wiped, and loaded again empty."""
        if shard.verified or shard.is_same_log(first):
            return True
        logger.warning(
            "the record before offset %s of %s is not the one that the store knows: it is another log's; rebuilding "
            "from the log",
            shard.offset,
            shard.tp,
        )
        await self._store.wipe(shard.tp)
        self.reload([shard.tp])
        return False

    async def save(self) -> None:
        """Save every shard that has changed, all in one transaction.

        On a conflict, shard by shard: those that another instance has moved are loaded again. A store that cannot be
        written now is written later: the changes stay in memory, and the log knows everything.
        """
        changed = [(shard, advance) for shard in self.shards.values() if (advance := shard.advance()) is not None]
        if not changed or await self._save(changed):
            return
        for each in changed:
            if not await self._save([each]):
                self.reload([each[0].tp])

    async def _save(self, changed: Sequence[tuple[Shard, Advance]]) -> bool:
        """False on a conflict. A store that cannot be written otherwise is waited for."""
        try:
            await self._store.save([advance for _, advance in changed])
        except StoreConflict as conflict:
            logger.warning("%s: what another instance has saved is loaded", conflict)
            return False
        except StoreError as error:
            self.complain("cannot save, trying again with the next batch", error)
            return True
        if self._trouble:
            self._trouble = ""
            logger.info("the store can be used again")
        for shard, advance in changed:
            shard.saved(advance, resting_max=self._resting_max)
        return True

    def _seek(self, consumer: Consumer, shard: Shard) -> None:
        # The record before the checkpoint is read once more: it shows whether this is the same log.
        consumer.seek(shard.tp, shard.offset if shard.verified else shard.offset - 1)

    async def _load(self, consumer: Consumer, tp: TopicPartition) -> Shard:
        committed = await consumer.committed(tp)
        first, end = (await self._broker.offsets([tp]))[tp]
        checkpoint = await self._store.checkpoint(tp)
        active = await self._store.load_active(tp) if checkpoint is not None else ()  # the first page
        if checkpoint is not None and (checkpoint.offset > end or (checkpoint.offset < first and active)):
            logger.warning(
                "the store has %s up to offset %s, the log has %s to %s: it is another log's; rebuilding from the log",
                tp,
                checkpoint.offset,
                first,
                end,
            )
            await self._store.wipe(tp)
            checkpoint, active = None, ()
        shard = Shard(
            tp,
            self._sagas[tp.topic],
            self._contracts,
            checkpoint=checkpoint,
            offset=first if checkpoint is None else max(checkpoint.offset, first),
            end=end,
            accounted=max(committed.offset if committed is not None else 0, self._accounted.get(tp, 0)),
            verified=_needs_no_proof(checkpoint, first),
            active_max=self._active_max,
        )
        while active:
            shard.admit(active)  # most become bytes at once, so that values of all are never in memory
            active = await self._store.load_active(tp, after=active[-1].saga_id)
        if checkpoint is not None:
            shard.parked.update(await self._store.parked_sagas(tp))
        return shard


def _needs_no_proof(checkpoint: Checkpoint | None, first: int) -> bool:
    """There is no checkpoint, or retention has deleted the record before it."""
    return checkpoint is None or checkpoint.offset <= first
