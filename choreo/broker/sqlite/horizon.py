"""What this process has heard of the log: how far each partition reaches, and each group's generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from choreo.broker.embedded.changes import Changes
from choreo.broker.port import TopicPartition


class News(NamedTuple):
    """A part of what is known: the next offset of partitions, the generation of groups."""

    ends: Mapping[TopicPartition, int]
    generations: Mapping[str, int]


class Horizon:
    """The sum of all news. Lives on the event loop; news may arrive late, but never turn anything back."""

    def __init__(self, changes: Changes) -> None:
        self.ends: dict[TopicPartition, int] = {}
        self.generations: dict[str, int] = {}
        self._changes = changes

    def hear(self, news: News) -> None:
        """Take the news in, and wake those who wait if there is something new in it."""
        grown = False
        for tp, end in news.ends.items():
            if self.ends.get(tp, -1) < end:
                self.ends[tp] = end
                grown = True
        for group, generation in news.generations.items():
            if self.generations.get(group, 0) < generation:
                self.generations[group] = generation
                grown = True
        if grown:
            self._changes.notify()
