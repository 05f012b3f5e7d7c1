"""The plots of a report: SVG for the inside of a page, in the colours that its style sheet names.

matplotlib is imported when a plot is drawn. It draws without a window and without pyplot. Text stays text, so that it
can be searched and read aloud. Text sizes suit a plot as wide as a phone.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

from chunkd.errors import ChunkdError
from chunkd.figures import words
from chunkd.report.svg import FIRST, GRID, INK, SECOND, THIRD, tidied

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from chunkd.report.data import Pulls

Rows = Sequence[Mapping[str, Any]]
# The label, the colour and the bytes of each row.
Bars = Sequence[tuple[str, str, Sequence[int]]]

WIDTH_INCHES = 4.8
BAR_INCHES = 0.3
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.use": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.handlelength": 1.2,
    "lines.linewidth": 1.8,
    "timezone": "UTC",
}
# Of rules in the plots of a sweep.
SERIES = ("chunkd's", "of streams", "of files")
TWICE = (("uncompressed_bytes", "in all layers", SECOND), ("unique_bytes", "unique", FIRST))
SHARES = (("exclusive", FIRST), ("shared", SECOND), ("repeated", THIRD))


class MatplotlibMissing(ChunkdError):
    def __init__(self) -> None:
        super().__init__(
            "plots: matplotlib is not installed beside chunkd; add it with `pip install 'matplotlib>=3.8'` in chunkd's"
            " virtual environment, or with `pipx inject chunkd matplotlib` if pipx installed chunkd"
        )


def needed() -> None:
    """Raises MatplotlibMissing if matplotlib is not installed."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise MatplotlibMissing from None


# --- the plots ----------------------------------------------------------------------------------------------------


def saving(stats: Mapping[str, Any]) -> Element:
    """What the layers take now, above what they would take as chunks; `net` must be known."""
    now_bytes = stats["layer_stored_bytes"]
    chunks_bytes, index_bytes = stats["recompressed_bytes"], stats["index_overhead_bytes"]
    unit_bytes, unit = _unit(max(now_bytes, chunks_bytes + index_bytes))
    with _drawing(1.9) as (figure, axes):
        for place, size_bytes, start_bytes, colour, label in (
            ("now", now_bytes, 0, SECOND, "layers"),
            ("as chunks", chunks_bytes, 0, FIRST, "chunks"),
            ("as chunks", index_bytes, chunks_bytes, THIRD, "the store's index"),
        ):
            axes.barh([place], [size_bytes / unit_bytes], left=[start_bytes / unit_bytes], color=colour, label=label)
        axes.invert_yaxis()
        if error_bytes := stats["recompressed_error_bytes"]:
            axes.errorbar(
                [(chunks_bytes + index_bytes) / unit_bytes], ["as chunks"], xerr=[error_bytes / unit_bytes],
                color=INK, capsize=4, linewidth=1.2,
            )  # fmt: skip
        axes.set_xlabel(f"on disk, {unit}")
        axes.grid(axis="x")
        _legend(figure, axes)
        said = f"Now {words.bytes_text(now_bytes)}; as chunks {words.bytes_text(chunks_bytes)} and an index of "
        return _finished(
            figure, "saving", "What the layers take, as layers and as chunks", said + words.bytes_text(index_bytes)
        )


def sizes_over_time(rows: Rows, times: Sequence[dt.datetime]) -> Element:
    """What the layers took, and what they would have taken as chunks. The last time is the end of the last row."""
    now = [row["layer_stored_bytes"] for row in rows]
    chunks = [None if row["net_bytes"] is None else row["layer_stored_bytes"] - row["net_bytes"] for row in rows]
    unit_bytes, unit = _unit(max(*now, *(size for size in chunks if size is not None), 1))
    with _drawing(3.0) as (figure, axes):
        _steps(axes, times, now, 1 / unit_bytes, color=SECOND, label="as layers", linestyle="--")
        _steps(axes, times, chunks, 1 / unit_bytes, color=FIRST, label="as chunks, with index")
        axes.set_ylabel(f"on disk, {unit}")
        axes.set_ylim(bottom=0)
        _over_time(figure, axes)
        said = (
            f"From {_minute(times[0])} to {_minute(times[-1])}, UTC. At the end: as layers {words.bytes_text(now[-1])}"
        )
        said += "." if chunks[-1] is None else f", as chunks {words.bytes_text(chunks[-1])}."
        return _finished(figure, "sizes-over-time", "What the layers take on disk, over time", said)


def shares_over_time(rows: Rows, times: Sequence[dt.datetime]) -> Element:
    """Redundancy and net saving in percent. The last time is the end of the last row."""
    redundancy, net = ([row[name] for row in rows] for name in ("redundancy", "net"))
    with _drawing(3.0) as (figure, axes):
        _steps(axes, times, redundancy, 100, color=SECOND, label="redundancy", linestyle="--")
        _steps(axes, times, net, 100, color=FIRST, label="net saving")
        axes.set_ylabel("%")
        lowest = min((part for part in net if part is not None), default=0)
        axes.set_ylim(top=100)
        if lowest >= 0:
            axes.set_ylim(bottom=0)
        _over_time(figure, axes)
        said = [f"From {_minute(times[0])} to {_minute(times[-1])}, UTC. At the end:"]
        named = (("redundancy", redundancy[-1]), ("net saving", net[-1]))
        said += [f"{name} {100 * part:.1f} %" for name, part in named if part is not None]
        return _finished(figure, "shares-over-time", "Redundancy and net saving, over time", " ".join(said))


def copies(rows: Rows, labels: Sequence[str]) -> Element:
    """For each row of the histogram by copies: its bytes in all layers, and with each of its chunks counted once."""
    bars = [(label, colour, [row[name] for row in rows]) for name, label, colour in TWICE]
    return _bars("copies", "Bytes by how often their chunk occurs", labels, bars, "uncompressed", "copies of a chunk")


def sizes(rows: Rows) -> Element:
    """The same by size of chunk."""
    unit_bytes, unit = _unit(max(row["uncompressed_bytes"] for row in rows))
    width = (rows[0]["to_bytes"] - rows[0]["from_bytes"] + 1) / 1024
    with _drawing(3.0) as (figure, axes):
        for shift, (name, label, colour) in zip((0.25, 0.75), TWICE, strict=True):
            axes.bar(
                [width * (place + shift) for place in range(len(rows))], [row[name] / unit_bytes for row in rows],
                width=0.5 * width, color=colour, label=label,
            )  # fmt: skip
        axes.set_xticks([width * place for place in range(0, len(rows) + 1, 4)])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("size of a chunk, KiB")
        axes.set_ylabel(f"uncompressed, {unit}")
        axes.grid(axis="y")
        _legend(figure, axes)
        return _finished(figure, "sizes", "Bytes by the size of their chunk")


def layers(found: Rows, labels: Sequence[str], name: str) -> Element:
    """The bytes that each of these layers decompresses to, in three parts."""
    parts = [(part, colour, [layer[f"{part}_bytes"] for layer in found]) for part, colour in SHARES]
    return _stacked(name, "What these layers have alone, share with others, and repeat", labels, parts, "uncompressed")


def repositories(found: Rows, labels: Sequence[str]) -> Element:
    """The fair share of each of these repositories on disk: what it alone holds, and its part of what it shares."""
    alone = [row["stored"]["exclusive_bytes"] for row in found]
    shared = [row["stored"]["fair_share_bytes"] - own for row, own in zip(found, alone, strict=True)]
    parts = [("only here", FIRST, alone), ("part of what is shared", SECOND, shared)]
    return _stacked("repositories", "Fair shares of repositories", labels, parts, "fair share on disk")


def updates(found: Rows, labels: Sequence[str]) -> Element:
    """What the median update of each of these repositories moves, as layers and as chunks."""
    columns = (("layer", SECOND), ("chunk", FIRST))
    bars = [(f"as {one}s", colour, [row[f"median_{one}_bytes"] for row in found]) for one, colour in columns]
    return _bars("updates", "What updates of repositories move", labels, bars, "moved by the median update")


def ranges(found: Rows) -> Element:
    """The bytes of an update above how many requests it takes."""
    unit_bytes, unit = _unit(max(row["bytes"] for row in found))
    with _drawing(2.6) as (figure, axes):
        requests, sizes = [row["ranges"] for row in found], [row["bytes"] / unit_bytes for row in found]
        axes.plot(requests, sizes, color=FIRST, marker="o", markersize=4)
        axes.set_ylim(0, 1.1 * max(sizes) or 1)
        axes.set_xlabel("requests")
        axes.set_ylabel(f"bytes of chunks, {unit}")
        axes.grid()
        return _finished(figure, "ranges", "Requests and bytes of an update")


def pulls(days: Sequence[Pulls]) -> Element:
    """What was served on each day, and what would have moved. Days without a pull are not drawn."""
    dates = [dt.date.fromisoformat(day.name) for day in days]
    unit_bytes, unit = _unit(max(max(day.served_bytes, day.layers_bytes, day.chunks_bytes or 0) for day in days))
    chunks = [float("nan") if day.chunks_bytes is None else day.chunks_bytes / unit_bytes for day in days]
    with _drawing(3.0) as (figure, axes):
        look: dict[str, Any] = {"marker": "o", "markersize": 3}
        axes.plot(dates, [day.served_bytes / unit_bytes for day in days], color=THIRD, label="served", **look)  # type: ignore[arg-type]
        axes.plot(dates, [day.layers_bytes / unit_bytes for day in days], color=SECOND, label="as layers", **look)  # type: ignore[arg-type]
        axes.plot(dates, chunks, color=FIRST, label="as chunks", **look)  # type: ignore[arg-type]
        axes.set_ylabel(f"a day, {unit}")
        axes.set_ylim(bottom=0)
        _over_time(figure, axes)
        return _finished(figure, "pulls", "What was pulled, by day")


def over_mean_size(found: Rows, name: str, label: str, title: str, *, most_is_best: bool) -> Element:
    """A figure of rules over the mean size of their chunks, with its error where a row has one, such as `net_error`.
    What has the same `series` looks alike; those of the first one are joined.
    """
    known = [row for row in found if row[name] is not None]
    is_share = name == "net"
    unit_bytes, unit = (0.01, "") if is_share else (1, "")
    if name.endswith("_bytes"):
        unit_bytes, unit = _unit(max(row[name] for row in known))
    best = (max if most_is_best else min)(known, key=lambda row: row[name])
    with _drawing(3.0) as (figure, axes):
        looks = ((FIRST, "o", 1.2), (INK, "^", 0.0), (SECOND, "s", 0.0))
        for what, (colour, marker, line) in zip(SERIES, looks, strict=True):
            rows = sorted((row for row in known if row["series"] == what), key=lambda row: row["mean_chunk_bytes"])
            if rows:
                means = [row["mean_chunk_bytes"] / 1024 for row in rows]
                values = [row[name] / unit_bytes for row in rows]
                errors = [row.get(f"{name}_error", 0) / unit_bytes for row in rows]
                axes.errorbar(
                    means, values, yerr=errors if any(errors) else None, color=colour, marker=marker, markersize=4,
                    linewidth=line, elinewidth=0.8, label=what,
                )  # fmt: skip
        place = best["mean_chunk_bytes"] / 1024, best[name] / unit_bytes
        axes.plot(*place, color=THIRD, marker="o", markersize=11, fillstyle="none", linewidth=0, label="best")
        axes.annotate(best["name"], place, xytext=(0, 8), textcoords="offset points", ha="center")
        axes.margins(y=0.15)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("mean size of a chunk, KiB")
        axes.set_ylabel(f"{label}, {unit}" if unit else label)
        axes.grid()
        _legend(figure, axes)
        return _finished(figure, f"sweep-{name.replace('_', '-')}", title)


def _bars(name: str, title: str, labels: Sequence[str], bars: Bars, what: str, rows: str = "") -> Element:
    """Two bars in each row, one above the other. `rows` says what the labels are."""
    unit_bytes, unit = _unit(max(max(sizes) for _, _, sizes in bars))
    with _drawing(1.1 + 1.3 * BAR_INCHES * len(labels)) as (figure, axes):
        for shift, (label, colour, sizes) in zip((-0.2, 0.2), bars, strict=True):
            places = [row + shift for row in range(len(labels))]
            axes.barh(places, [size / unit_bytes for size in sizes], height=0.4, color=colour, label=label)
        axes.set_ylabel(rows)
        _by_rows(figure, axes, labels, f"{what}, {unit}")
        return _finished(figure, name, title)


def _stacked(name: str, title: str, labels: Sequence[str], parts: Bars, what: str) -> Element:
    """A bar in each row, in parts that follow one another."""
    unit_bytes, unit = _unit(max(map(sum, zip(*(sizes for _, _, sizes in parts), strict=True))))
    ends = [0.0] * len(labels)
    with _drawing(1.1 + BAR_INCHES * len(labels)) as (figure, axes):
        for label, colour, sizes in parts:
            widths = [size / unit_bytes for size in sizes]
            axes.barh(range(len(labels)), widths, height=0.7, left=ends, color=colour, label=label)
            ends = [end + width for end, width in zip(ends, widths, strict=True)]
        _by_rows(figure, axes, labels, f"{what}, {unit}")
        return _finished(figure, name, title)


def _unit(most_bytes: float) -> tuple[int, str]:
    """The unit in which this many bytes have few digits."""
    unit = 0
    while unit + 1 < len(words.UNITS) and most_bytes >= 1024 ** (unit + 1):
        unit += 1
    return 1024**unit, words.UNITS[unit]


def _minute(time: dt.datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M}"


def _steps(
    axes: Axes, times: Sequence[dt.datetime], values: Sequence[float | None], times_what: float, **look: Any
) -> None:
    """Each value holds until the next. An unknown value leaves a gap."""
    shown = [float("nan") if value is None else value * times_what for value in values]
    axes.step(times, [*shown, shown[-1]], where="post", **look)  # type: ignore[arg-type]  # it takes times too


def _over_time(figure: Figure, axes: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    # With 6 ticks at most there is no step for some spans, such as 170 minutes, and matplotlib warns.
    locator = AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlabel("time, UTC")
    axes.margins(x=0)
    axes.grid(axis="y")
    _legend(figure, axes)


def _by_rows(figure: Figure, axes: Axes, labels: Sequence[str], what: str) -> None:
    """Bars to the right, the first row on top, and what their lengths are."""
    axes.set_yticks(range(len(labels)), labels=labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel(what)
    axes.grid(axis="x")
    _legend(figure, axes)


def _legend(figure: Figure, axes: Axes) -> None:
    """Above the plot, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))


# --- the frame ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _drawing(height_inches: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure with its axes, in our own style: the user's matplotlibrc has no effect."""
    # matplotlib warns if it has no home directory for its list of fonts.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(WIDTH_INCHES, height_inches))
        yield figure, figure.add_subplot()


def _finished(figure: Figure, name: str, title: str, said: str = "The table has the same figures.") -> Element:
    """The figure as `svg.tidied` returns it. `name` is unique among the plots of a page."""
    import matplotlib as mpl

    written = io.StringIO()
    mpl.rcParams["svg.hashsalt"] = name  # matplotlib hashes its ids with this, so no two plots share one
    with warnings.catch_warnings():
        # The text stays text: the reader's browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(written, format="svg")
    return tidied(written.getvalue(), title, said)
