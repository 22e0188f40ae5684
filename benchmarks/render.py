"""Tables and plots from results: into a directory, or into ``docs/performance.md`` between its two marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report import Result, read

DOCS = Path("docs")
PAGE = "performance.md"
PLOTS = "performance"
BEGIN, END = "<!-- measured: written by make bench -->", "<!-- measured: end -->"

Column = tuple[str, Callable[[Result], object]]


def render(results: Path, out: Path) -> str:
    """Write tables and plots. ``out/performance.md`` keeps what stands outside of the marks, if there is such a page.

    Returns:
        The tables.
    """
    found = read(results)
    plots = plot_all(found, out / PLOTS)
    text = "\n\n".join([*tables(found), *(f"![{title}]({PLOTS}/{name})" for name, title in plots)])
    page = out / PAGE
    before, after = "# Measured\n\n", ""
    if page.exists() and BEGIN in (old := page.read_text()) and END in old:
        before, after = old.partition(BEGIN)[0], old.partition(END)[2]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after or chr(10)}")
    return text


def tables(found: Sequence[Result]) -> list[str]:
    """All tables, each with a line of words above it."""
    texts: list[str] = []
    machine = next((result for result in found if result.get("benchmark") == "machine"), None)
    if machine is not None:
        texts.append(
            f"{machine['cores']} cores, which broker, services, saga-log and load share; Python {machine['python']}; "
            f"{machine['system']}."
        )
    wire = [result for result in found if result.get("benchmark") == "wire limit"]
    sagas = [result for result in found if "load" in result and result not in wire]
    if wire:
        texts.append("The wire limit, each time just before the sagas under the same load:")
        texts.append(table(wire, (*_LOAD, _CPU)))
    if sagas:
        texts.append("Sagas. Ratios are to the wire limit's line before; CPU is of all processes, broker and load too:")
        texts.append(table(sagas, _SAGA + _LOAD + _RATIOS + (_CPU,)))
        texts.append("CPU microseconds for each saga, by process, and resident MiB:")
        texts.append(table(sagas, (*_SAGA, ("load", _field("load")), ("CPU, µs", _by_process("cpu_us_each")), _RSS)))
    starts = [result for result in found if result.get("benchmark") == "first saga after start"]
    if starts:
        texts.append("From the start of all parts to the end of the first saga:")
        texts.append(table(starts, (("layout", _field("layout")), ("sagas", _field("of")), ("ms", _field("ms")))))
    growth = [result for result in found if str(result.get("benchmark", "")).startswith("growth")]
    if growth:
        texts.append("The saga-log by itself, over a broker that costs nothing, its store in a file:")
        texts.append(table(growth, _GROWTH))
    texts += [
        f"A service by itself takes {result['cpu_us_handled']} µs of CPU for a record that is for it, and "
        f"{result['cpu_us_dropped']} µs for one that is not."
        for result in found
        if result.get("benchmark") == "service by itself"
    ]
    texts += [
        f"Replay decodes and folds {result['per_second']:,} records a second on one core."
        for result in found
        if result.get("benchmark") == "replay"
    ]
    texts += [f"**{result['section']} failed**: {result['error']}" for result in found if "error" in result]
    return texts


def table(rows: Sequence[Result], columns: Sequence[Column]) -> str:
    """A Markdown table."""
    lines = [" | ".join(name for name, _ in columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_shown(value(row)) for _, value in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def plot_all(found: Sequence[Result], directory: Path) -> list[tuple[str, str]]:
    """An SVG for each kind of growth: its file's name and title."""
    made = []
    for kind, field, axis, title in (
        ("finished sagas", "cpu_us_each", "CPU µs a saga", "Cost of a saga by finished sagas in the store"),
        ("unfinished sagas", "cpu_us_each", "CPU µs a saga", "Cost of a saga by unfinished sagas beside it"),
        ("unfinished sagas", "bytes_each", "bytes each", "Memory of an unfinished saga"),
        ("partitions", "cpu_us_each", "CPU µs a saga", "Cost of a saga by partitions"),
    ):
        points = [(row["number"], row[field]) for row in found if row.get("benchmark") == f"growth: {kind}"]
        if points:
            name = f"{kind.replace(' ', '-')}-{field.partition('_')[0]}.svg"
            plot(points, directory / name, x=kind, y=axis, title=title, is_log=kind != "partitions")
            made.append((name, title))
    return made


def plot(points: Sequence[tuple[float, float]], path: Path, *, x: str, y: str, title: str, is_log: bool) -> None:
    """One line with dots, the y axis from 0. The same points give the same bytes."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "choreo", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure, axes = plt.subplots(figsize=(6, 3))
        axes.plot(*zip(*sorted(points), strict=True), marker="o")
        if is_log:
            axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.grid(visible=True, alpha=0.3)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _field(name: str) -> Callable[[Result], object]:
    return lambda row: row.get(name)


def _ratio(name: str) -> Callable[[Result], object]:
    return lambda row: row.get("ratio_to_wire", {}).get(name)


def _by_process(name: str) -> Callable[[Result], object]:
    return lambda row: ", ".join(f"{process} {value:g}" for process, value in row[name].items())


def _cpu(row: Result) -> object:
    return sum(row["cpu_us_each"].values())


def _shown(value: object) -> str:
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 1_000):
        return f"{value:,.0f}"
    return "" if value is None else str(value)


_CPU: Column = ("CPU, µs", _cpu)
_RSS: Column = ("MiB", _by_process("rss_mib"))
_SAGA: tuple[Column, ...] = (("sagas", _field("benchmark")), ("layout", _field("layout")))
_LOAD: tuple[Column, ...] = (
    ("load", _field("load")),
    ("per second", _field("per_second")),
    ("p50, ms", _field("p50_ms")),
    ("p99, ms", _field("p99_ms")),
)
_RATIOS: tuple[Column, ...] = (
    ("throughput of the wire limit", _ratio("throughput")),
    ("p50, times", _ratio("p50")),
    ("CPU, times", _ratio("cpu")),
)
_GROWTH: tuple[Column, ...] = (
    ("what", _field("benchmark")),
    ("number", _field("number")),
    ("CPU µs a saga", _field("cpu_us_each")),
    ("bytes each", _field("bytes_each")),
    ("MiB", _field("rss_mib")),
)
