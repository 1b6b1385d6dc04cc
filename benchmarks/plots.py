"""Plots and README.md from what the benchmarks wrote: python -m benchmarks.plots."""

import argparse
import json
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import _page, _report
from benchmarks._catalogue import PLOTS, Plot

_FOLDER = Path(__file__).parent
# Okabe and Ito's palette, distinguishable with every common colour blindness; lines differ in
# marker and dash as well, so that a grey print still tells them apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", "-.", ":")
_WIDTH, _HEIGHT, _DPI = 7.5, 4.6, 120
_SYMBOLS = {"lambda": "λ", "outputs": "C", "n_forget": "n_f", "statistics": "statistics stored"}

Row = dict[str, Any]


def main() -> None:
    """Draw every plot whose rows are there, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=_FOLDER / "results")
    parser.add_argument("--readme", type=Path, default=_FOLDER / "README.md")
    parser.add_argument("--findings", type=Path, default=_FOLDER / "findings.md")
    options = parser.parse_args()
    for path in make(options.results, options.readme, options.findings):
        print(path)


def make(results: Path, readme: Path, findings: Path) -> list[Path]:
    """Draw the plots beside the results, write the page, and return what was written."""
    reports = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    written: list[Path] = []
    links: dict[str, list[tuple[str, str]]] = {}
    for benchmark, report in reports.items():
        for plot in PLOTS.get(benchmark, ()):
            path = results / f"{benchmark}-{plot.name}.png"
            if draw(plot, report, path):
                written.append(path)
                link = Path(os.path.relpath(path, readme.parent)).as_posix()
                links.setdefault(benchmark, []).append((link, plot.caption))
    text = findings.read_text() if findings.exists() else ""
    _page.write_page(readme, reports, links, text)
    return [*written, readme]


def draw(plot: Plot, report: dict[str, Any], path: Path) -> bool:
    """Draw one plot as a PNG; say whether there was anything to draw."""
    rows = [point for row in report["rows"] for point in _points(plot, row)]
    if not rows:
        return False
    # Without pyplot there is no screen to ask for, and nothing global to close: PNG means Agg.
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    figure.suptitle(plot.caption, fontsize=12)
    axes.set_title(_report.where(report), fontsize=7, color="#555555")
    if plot.kind in {"bars", "dots"}:
        _draw_categories(axes, plot, rows)
    else:
        _draw_numbers(axes, plot, rows)
    _finish(axes, plot, shares=all(isinstance(row["y"], bool) for row in rows))
    # Without the version of matplotlib: a new one must not change files that look the same.
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return True


def _points(plot: Plot, row: Row) -> Iterator[Row]:
    # What of a row the plot shows: x, y and the series that it belongs to.
    if any(row.get(key) != wanted for key, wanted in plot.where.items()):
        return
    figures = plot.y if isinstance(plot.y, dict) else {plot.y: ""}
    for key, name in figures.items():
        x, y = row.get(plot.x), row.get(key)
        if x is None or y is None or (plot.log_y and y <= 0) or (plot.log_x and x <= 0):
            continue
        names = [name, *(_named(key, row.get(key)) for key in plot.series)]
        yield {"x": x, "y": y, "series": ", ".join(filter(None, names))}


def _grouped(points: list[Row]) -> dict[str, dict[Any, list[float]]]:
    groups: dict[str, dict[Any, list[float]]] = {}
    for point in points:
        groups.setdefault(point["series"], {}).setdefault(point["x"], []).append(point["y"])
    return groups


def _named(key: str, value: object) -> str:
    # A word speaks for itself; a number or a flag does not.
    return str(value) if isinstance(value, str) else f"{_SYMBOLS.get(key, key)} = {value}"


def _summary(values: list[float]) -> tuple[float, float, float]:
    # Middle, least and most.
    if all(isinstance(value, bool) for value in values):
        share = fmean(values)
        return share, share, share
    return median(values), min(values), max(values)


def _draw_numbers(axes: Axes, plot: Plot, rows: list[Row]) -> None:
    for index, (label, points) in enumerate(_grouped(rows).items()):
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        if plot.kind == "scatter":
            pairs = [(x, y) for x, found in points.items() for y in found]
            axes.plot(*zip(*pairs, strict=True), marker, color=colour, ms=4, alpha=0.5, label=label)
            continue
        xs = sorted(points)
        middle, least, most = zip(*(_summary(points[x]) for x in xs), strict=True)
        dash = _DASHES[index % len(_DASHES)]
        axes.plot(xs, middle, color=colour, marker=marker, ms=5, ls=dash, label=label)
        axes.fill_between(xs, least, most, color=colour, alpha=0.15, lw=0)


def _draw_categories(axes: Axes, plot: Plot, rows: list[Row]) -> None:
    groups = _grouped(rows)
    ticks = list(dict.fromkeys(row["x"] for row in rows))
    # Bars share the room between two ticks; dots need less to be told apart.
    width = (0.8 if plot.kind == "bars" else 0.5) / len(groups)
    for index, (label, points) in enumerate(groups.items()):
        places = [position for position, tick in enumerate(ticks) if tick in points]
        found = [_summary(points[ticks[place]]) for place in places]
        middle = [values[0] for values in found]
        spread = [[values[0] - values[1] for values in found], [v[2] - v[0] for v in found]]
        at = [place + width * (index - (len(groups) - 1) / 2) for place in places]
        colour = _COLOURS[index % len(_COLOURS)]
        if plot.kind == "bars":
            axes.bar(at, middle, 0.92 * width, yerr=spread, color=colour, label=label)
        else:
            marker = _MARKERS[index % len(_MARKERS)]
            axes.errorbar(at, middle, spread, fmt=marker, color=colour, ms=5, lw=1, label=label)
    axes.set_xticks(range(len(ticks)), [_wrapped(tick) for tick in ticks])
    axes.tick_params(axis="x", labelsize=8)


def _wrapped(tick: object) -> str:
    return "\n".join(textwrap.wrap(str(tick), 12))


def _finish(axes: Axes, plot: Plot, *, shares: bool) -> None:
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    if plot.log_x:
        axes.set_xscale("log")
    if plot.log_y:
        axes.set_yscale("log")
    elif shares:
        axes.set_ylim(-0.03, 1.05)
    for value, label in plot.lines:
        axes.axhline(value, color="#555555", lw=1, ls=(0, (1, 1)))
        axes.annotate(
            label, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
    if plot.diagonal:
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], color="#555555", lw=1, label="equal")
    axes.grid(visible=True, which="major", alpha=0.3)
    if (plot.series or plot.diagonal or isinstance(plot.y, dict)) and axes.figure:
        # Below the axes, where it hides nothing.
        axes.figure.legend(loc="outside lower center", ncols=3, fontsize=8)


if __name__ == "__main__":
    main()
