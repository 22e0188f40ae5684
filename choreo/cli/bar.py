"""A bar for what takes long: how far, how fast, how long still. On a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from choreo.saga_log.replay import Progress


@contextmanager
def progress_bar(doing: str) -> Iterator[Callable[[Progress], None]]:
    """Show a bar on standard error while the block runs; the function that it gives moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} records/s" if task.speed else "")

    console = Console(stderr=True)
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(doing, total=None)

        def move(done: Progress) -> None:
            bar.update(task, completed=done.records_read, total=done.records_total)

        yield move
