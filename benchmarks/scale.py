"""What a deployment needs for many sagas a second, from what the benchmark measured: ``docs/scale.md``.

    python -m benchmarks.scale                     write the page again, from docs/performance/costs.json
    python -m benchmarks.scale --results FILE      take the costs from a run of the benchmark first

Counts (cores, brokers, disks) are arithmetic. Latency, use and recovery come from the model in ``queueing``, in which a
slice of the deployment is simulated: as many processes of each kind as stand for the whole, each with the load that it
has there. What is assumed and not measured is a constant below, and the page says so.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.queueing import Down, Group, Simulated, simulate
from benchmarks.report import Result, read
from choreo.broker.registry import PARTITIONS_DEFAULT

PAGE = Path("docs/scale.md")
COSTS = Path("docs/performance/costs.json")
BEGIN, END = "<!-- simulated: written by python -m benchmarks.scale -->", "<!-- simulated: end -->"

SIZES = (1_000, 100_000, 1_000_000)
CELL = 100_000  # sagas a second of one whole deployment; above, there are several side by side
STEPS, RECORDS = 3, 5
USE = 0.6  # of a core, when all is well
SLICE = 4  # services' processes of a kind that are simulated
SECONDS = 3.0
LOST_AT_S, LOST_SECONDS = 5.0, 60.0
SEED = 20_260_101

# Assumed, not measured.
RECORD_BYTES = 1_000
COPIES = 3
COPY_CPU = 0.5  # of what an append costs its leader, for each further copy
BROKER_CORES, BROKER_TB, BROKER_READS = 16, 10, 300e6
RETENTION_S = 7 * 86_400
STORE_ROWS = 1.5  # for a saga: states are saved four times a second, and it is over sooner
STORE_ROWS_PER_S = 20_000
DETECTED_S = 10.0  # session_timeout_ms
REBALANCED_S = 3.0  # the next heartbeat of all others
CORE_HOUR, TB_HOUR = 0.04, 0.1

HOPS = 5  # sends in a row of the wire limit's chain
PER_SERVICE = "Kafka, process per service"
UNDER_LOAD, ALONE = "200 in flight", "1 in flight"


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured.

    Attributes:
        service_us, saga_log_us, broker_us, client_us: CPU for a saga of three steps under load, of one service's
            process, and of the others, all of them.
        dropped_share: what a record that is not for a service costs it, in parts of one that is.
        hop_ms: from a send to its delivery, when nothing else is going on.
        machine: on what.
    """

    service_us: float
    saga_log_us: float
    broker_us: float
    client_us: float
    dropped_share: float
    hop_ms: float
    machine: str


class Plan(NamedTuple):
    """Counts for a load, by arithmetic."""

    sagas_per_s: int
    cells: int
    services: int
    saga_logs: int
    partitions: int
    brokers: int
    bound_by: str
    stores: int
    disk_tb: float
    cores: float

    @property
    def hourly(self) -> float:
        return self.cores * CORE_HOUR + self.disk_tb * TB_HOUR


def costs_of(found: Sequence[Result]) -> Costs:
    """The costs in a run's results.

    Raises:
        ValueError: the run has not measured them.
    """
    under_load = _one(found, "3 steps", UNDER_LOAD)["cpu_us_each"]
    alone = _one(found, "wire limit", ALONE)
    machine = next((each for each in found if each.get("benchmark") == "machine"), {})
    by_itself = next((each for each in found if each.get("benchmark") == "service by itself"), None)
    others = ("saga-log", "broker", "load")
    services = [used for name, used in under_load.items() if name not in others]
    return Costs(
        service_us=round(sum(services) / len(services), 1),
        saga_log_us=under_load["saga-log"],
        broker_us=under_load["broker"],
        client_us=under_load["load"],
        dropped_share=round(by_itself["cpu_us_dropped"] / by_itself["cpu_us_handled"], 3) if by_itself else 0.1,
        hop_ms=round(alone["p50_ms"] / HOPS, 2),
        machine=f"{machine.get('cores', '?')} cores, Python {machine.get('python', '?')}",
    )


def plan(sagas_per_s: int, costs: Costs) -> Plan:
    """What is needed, with each process used to ``USE`` of a core."""
    cells = math.ceil(sagas_per_s / CELL)
    each = sagas_per_s / cells
    services = _processes(each, costs.service_us)
    saga_logs = max(2, _processes(each, costs.saga_log_us))
    cpu = each * costs.broker_us / 1e6 * (1 + (COPIES - 1) * COPY_CPU)
    written = each * RECORDS * RECORD_BYTES
    disk_tb = written * COPIES * RETENTION_S / 1e12
    needed = {
        "disks": disk_tb / BROKER_TB,
        "CPU": cpu / (BROKER_CORES * USE),
        "reads": written * (STEPS + 2) / BROKER_READS,
        "copies": float(COPIES),
    }
    bound_by = max(needed, key=lambda name: needed[name])
    brokers = math.ceil(needed[bound_by])
    cores = STEPS * services + saga_logs + cpu / USE
    return Plan(
        sagas_per_s=sagas_per_s,
        cells=cells,
        services=services,
        saga_logs=saga_logs,
        # So many that the larger group is spread evenly, and can grow by half.
        partitions=max(PARTITIONS_DEFAULT, math.ceil(1.5 * max(services, saga_logs))),
        brokers=brokers,
        bound_by=bound_by,
        stores=math.ceil(each * STORE_ROWS / STORE_ROWS_PER_S),
        disk_tb=disk_tb * cells,
        cores=cores * cells,
    )


def headroom(made: Plan, costs: Costs) -> list[tuple[float, str]]:
    """By how much the load may grow until each part is fully used, the first to break first."""
    each = made.sagas_per_s / made.cells
    found = [
        (made.services / (each * costs.service_us / 1e6), "step services"),
        (made.saga_logs / (each * costs.saga_log_us / 1e6), "saga-log"),
        (made.stores * STORE_ROWS_PER_S / (each * STORE_ROWS), "store"),
        (made.brokers * BROKER_TB * made.cells / made.disk_tb, "disks"),
        (
            made.brokers * BROKER_CORES / (each * costs.broker_us / 1e6 * (1 + (COPIES - 1) * COPY_CPU)),
            "brokers' CPU",
        ),
        (made.brokers * BROKER_READS / (each * RECORDS * RECORD_BYTES * (STEPS + 2)), "brokers' reads"),
    ]
    return sorted(found)


def groups_of(services: int, saga_logs: int, costs: Costs) -> list[Group]:
    """Each service handles one record of a saga and drops the others; the saga-log folds all of them alike."""
    handled_s = costs.service_us / 1e6 / (1 + (RECORDS - 1) * costs.dropped_share)
    steps = [
        Group(f"service {number}", services, handled_s, handled_s * costs.dropped_share, frozenset({number}))
        for number in range(STEPS)
    ]
    fold_s = costs.saga_log_us / 1e6 / RECORDS
    return [*steps, Group("saga-log", saga_logs, fold_s, fold_s, frozenset({STEPS}))]


def simulate_plan(made: Plan, costs: Costs, *, growth: float = 1.0, down: bool = False) -> Simulated:
    """A slice of a plan's cell under its load times ``growth``: each process has the load that it has in the whole.

    Args:
        down: one process of the saga-log is lost; then the slice is what that process reads.
    """
    slices = made.saga_logs if down else max(1.0, made.services / SLICE)
    services, saga_logs = (max(1, round(number / slices)) for number in (made.services, made.saga_logs))
    # A slice has whole processes: their costs make up for what was rounded, so that their use is as in the whole.
    costs = msgspec.structs.replace(
        costs,
        service_us=costs.service_us * services * slices / made.services,
        saga_log_us=costs.saga_log_us * saga_logs * slices / made.saga_logs,
    )
    return simulate(
        groups_of(services, saga_logs, costs),
        records=RECORDS,
        sagas_per_s=made.sagas_per_s / made.cells / slices * growth,
        seconds=LOST_SECONDS if down else SECONDS,
        wire_s=costs.hop_ms / 1e3,
        seed=SEED,
        down=Down("saga-log", LOST_AT_S, LOST_AT_S + DETECTED_S + REBALANCED_S) if down else None,
    )


def text(costs: Costs) -> str:
    """The tables of the page."""
    plans = [plan(size, costs) for size in SIZES]
    # A cell among ten has the load of one by itself.
    usual, lost = (
        [seen[each.services, each.saga_logs] for each in plans]
        for seen in (
            {(each.services, each.saga_logs): simulate_plan(each, costs, down=down) for each in plans[:2]}
            for down in (False, True)
        )
    )
    first = [headroom(each, costs) for each in plans]
    rows = [
        ("", [f"{each.sagas_per_s:,} a second" for each in plans]),
        ("cells of at most 100,000", [f"{each.cells}" for each in plans]),
        ("in each cell: processes (cores) of each service", [f"{each.services}" for each in plans]),
        ("processes (cores) of the saga-log", [f"{each.saga_logs}" for each in plans]),
        ("partitions", [f"{each.partitions}" for each in plans]),
        ("brokers, and what asks for them", [f"{each.brokers}, {each.bound_by}" for each in plans]),
        ("PostgreSQL stores", [f"{each.stores}" for each in plans]),
        ("all cells: disks, 7 days, 3 copies", [f"{each.disk_tb:,.0f} TB" for each in plans]),
        ("cores, brokers' included", [f"{each.cores:,.0f}" for each in plans]),
        ("an hour's cost", [f"{each.hourly:,.0f}" for each in plans]),
        ("a million sagas' cost", [f"{each.hourly / each.sagas_per_s / 3_600 * 1e6:.2f}" for each in plans]),
        ("use of the services, of the saga-log", [_use(each) for each in usual]),
        ("latency, half of all sagas", [_ms(each, 0.5) for each in usual]),
        ("latency, 99 of 100", [_ms(each, 0.99) for each in usual]),
        ("a saga-log is lost: its sagas are as quick as before after", [_seconds(each.recovered_s) for each in lost]),
        ("what breaks first, at how much more load", [_breaks(each, 0) for each in first]),
        ("then", [_breaks(each, 1) for each in first]),
        ("then", [_breaks(each, 2) for each in first]),
    ]
    table = "\n".join(f"| {name} | {' | '.join(cells)} |" for name, cells in rows)
    head, _, body = table.partition("\n")
    grown = "\n".join(
        f"| {growth:.2f} | {_use(seen)} | {_ms(seen, 0.5)} | {_ms(seen, 0.99)} |"
        for growth in (0.5, 1.0, 1.25, 1.5)
        for seen in [simulate_plan(plans[1], costs, growth=growth)]
    )
    measured = (
        f"Measured on {costs.machine} that everything shared, under {UNDER_LOAD}: CPU for a saga of three steps, of "
        f"each service {costs.service_us:g} µs, of the saga-log {costs.saga_log_us:g} µs, of the broker "
        f"{costs.broker_us:g} µs, of the client {costs.client_us:g} µs; a record that is not for a service costs it "
        f"{costs.dropped_share:g} of one that is; {costs.hop_ms:g} ms from a send to its delivery."
    )
    return f"""{measured}

{head}
| --- | --- | --- | --- |
{body}

The middle column's latency when the load is another one than it was made for:

| load | use of the services, of the saga-log | half of all sagas | 99 of 100 |
| --- | --- | --- | --- |
{grown}"""


def write(costs: Costs, page: Path = PAGE) -> None:
    """Write the tables into the page, between its marks."""
    old = page.read_text()
    before, after = old.partition(BEGIN)[0], old.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{text(costs)}\n\n{END}{after}")


def follow(results: Path) -> str:
    """Have costs and page follow a run of the benchmark; why not, if it has not measured what they need."""
    try:
        write(keep(results))
    except ValueError as error:
        return f"{PAGE} stays as it is: {error}"
    return f"{PAGE} is written"


def load(path: Path = COSTS) -> Costs:
    """The costs that are kept beside the pages."""
    return msgspec.json.decode(path.read_bytes(), type=Costs)


def keep(results: Path, path: Path = COSTS) -> Costs:
    """Take the costs from a run and keep them. Raises ``ValueError`` if it has not measured them."""
    costs = costs_of(read(results))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(msgspec.structs.asdict(costs), indent=2) + "\n")
    return costs


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.scale", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", type=Path, help="JSON lines of a run of the benchmark")
    options = parser.parse_args()
    write(load() if options.results is None else keep(options.results))
    return 0


def _one(found: Sequence[Result], benchmark: str, under: str) -> Result:
    for each in found:
        if (each.get("benchmark"), each.get("layout"), each.get("load")) == (benchmark, PER_SERVICE, under):
            return each
    raise ValueError(f"the results have no {benchmark!r} of {PER_SERVICE!r} with {under}; run the part kafka")


def _processes(sagas_per_s: float, cost_us: float) -> int:
    return math.ceil(sagas_per_s * cost_us / 1e6 / USE)


def _use(seen: Simulated) -> str:
    return f"{seen.busy['service 0']:.0%}, {seen.busy['saga-log']:.0%}"


def _ms(seen: Simulated, share: float) -> str:
    return f"{seen.percentile_s(share) * 1e3:,.1f} ms"


def _seconds(seconds: float | None) -> str:
    return f"not in {LOST_SECONDS - LOST_AT_S:.0f} s" if seconds is None else f"{seconds:.0f} s"


def _breaks(found: Sequence[tuple[float, str]], place: int) -> str:
    growth, name = found[place]
    return f"{name}, {growth:.2f} times"


if __name__ == "__main__":
    sys.exit(main())
