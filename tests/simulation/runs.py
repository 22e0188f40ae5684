"""Many seeds, side by side in several processes: each run is single-threaded and knows nothing of the others."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.world import Result, simulate

AT_ONCE = 4


def run(seeds: Iterable[int], sagas: int, jobs: int, *, inbox: bool = False, pauses: bool = False) -> Iterator[Result]:
    """The results of seeds, in their order."""
    if jobs <= 1:
        yield from map(partial(attempt, sagas=sagas, inbox=inbox, pauses=pauses), seeds)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(partial(attempt, sagas=sagas, inbox=inbox, pauses=pauses), seeds, chunksize=AT_ONCE)


def attempt(seed: int, *, sagas: int, inbox: bool = False, pauses: bool = False) -> Result:
    """Run a seed; an error of the simulation itself counts against it, so that one seed does not end the others."""
    try:
        return simulate(seed, sagas=sagas, inbox=inbox, pauses=pauses)
    except Exception as error:  # noqa: BLE001  # told with the seed
        return Result(seed, "", 0, 0, 0.0, [f"R0 the simulation: {error!r}\n{traceback.format_exc()[-2_000:]}"])
