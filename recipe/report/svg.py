"""Draws SVG charts. The same values always produce the same bytes, regardless of the user's matplotlib settings.

histogram([3, 5, 8], num_bins=10, label="tokens in a row", mark=(4, "max_length 4"))
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from recipe.core.format import shorten

LONGEST_LABEL = 60
LONG_TAIL = 10
CURVE_POINTS = 200
SMOOTHED = 20
MOST_POINTS = 2000  # a browser draws more points slowly, and nobody sees them
BLUE, RED, INK, GRAY = "#3b6fb6", "#b3261e", "#3d4248", "#9aa2ab"


def histogram_edges(values: Sequence[int], num_bins: int) -> tuple[list[float], bool]:
    """Return the edges of the bars, and whether the edges are spaced logarithmically.

    The spacing is logarithmic if the largest value is at least LONG_TAIL times the median, because linear spacing would
    put at least half of the values into the first tenth of the range.
    """
    import numpy as np

    low, high = max(1, min(values)), max(values) + 1
    logarithmic = high > LONG_TAIL * float(np.median(values))
    space = np.geomspace if logarithmic else np.linspace
    return space(low, high, num_bins + 1).tolist(), logarithmic


def cumulative(values: Sequence[int], num_bins: int) -> list[tuple[int, int, float]]:
    """Return the largest value, the number of rows, and the cumulative share of rows for each bar of the histogram."""
    import numpy as np

    edges, _ = histogram_edges(values, num_bins)
    counts = np.histogram(np.maximum(values, 1), bins=edges)[0]
    shares = np.cumsum(counts) / len(values)
    tops = (int(np.ceil(edge)) - 1 for edge in edges[1:])
    return [(top, int(count), round(float(share), 6)) for top, count, share in zip(tops, counts, shares, strict=True)]


def histogram(values: Sequence[int], num_bins: int, label: str, mark: tuple[int, str] | None = None) -> str:
    """Draw a histogram with a cumulative curve and, optionally, a labeled vertical line. `mark` is (value, label)."""
    import numpy as np

    with _drawing(7.5, 2.6) as (axes, text):
        edges, logarithmic = histogram_edges(values, num_bins)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.hist(values, bins=edges, color=BLUE)
        if mark:
            axes.axvline(mark[0], color=RED, linewidth=1.2)
            axes.text(mark[0], axes.get_ylim()[1] / 2, f" {mark[1]}", color=RED, va="center", fontsize=9)
        axes.set_xlabel(label)
        axes.set_ylabel("rows")
        shares, ordered = axes.twinx(), np.sort(values)
        indices = np.unique(np.linspace(0, len(ordered) - 1, CURVE_POINTS).astype(int))
        shares.step(ordered[indices], (indices + 1) / len(ordered), where="post", color=INK, linewidth=1.2)
        shares.set_ylim(0, 1.02)
        shares.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        shares.set_ylabel("cumulative share")
        shares.spines["top"].set_visible(False)
    return text.getvalue()


def pairs_of_bars(
    groups: Mapping[str, tuple[float, float]], names: tuple[str, str], label: str, *, shares: bool = False
) -> str:
    """Draw a bar chart with two horizontal bars per group, one below the other. `groups` is {group: (first, second)}.

    `names` contains the legend entries for the first and second bars. If `shares` is true, values are shown as
    percentages.
    """
    with _drawing(7.5, 0.8 + 0.42 * len(groups)) as (axes, text):
        for side, (name, color) in enumerate(zip(names, (GRAY, BLUE), strict=True)):
            positions = [index + (side - 0.5) * 0.38 for index in range(len(groups))]
            bars = axes.barh(positions, [pair[side] for pair in groups.values()], 0.36, color=color, label=name)
            number_format = (lambda value: f"{value:.0%}") if shares else "%.3g"
            axes.bar_label(bars, fmt=number_format, padding=3, fontsize=8, color=INK)
        axes.set_yticks(range(len(groups)), [_label(name) for name in groups])
        axes.invert_yaxis()
        axes.margins(x=0.1, y=0.02)
        if not any(value for pair in groups.values() for value in pair):
            axes.set_xlim(0, 1)  # by default, matplotlib would center the zeros
        if shares:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel(label)
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
        axes.spines["right"].set_visible(False)
    return text.getvalue()


def step_curve(steps: Sequence[int], values: Sequence[float], label: str, marked: Sequence[int] = ()) -> str:
    """Draw a value by training step: a point per step, and the mean of the last SMOOTHED steps as a line.

    The values at the indices in `marked` are circled and labeled with their step.
    """
    import numpy as np

    with _drawing(7.5, 2.4) as (axes, text):
        sums = np.cumsum([0.0, *values])
        ends = np.arange(1, len(values) + 1)
        starts = np.maximum(ends - SMOOTHED, 0)
        shown = np.unique(np.linspace(0, len(values) - 1, MOST_POINTS).astype(int))
        at = np.asarray(steps)
        axes.plot(at[shown], np.asarray(values)[shown], ".", color=GRAY, markersize=3)
        axes.plot(at[shown], ((sums[ends] - sums[starts]) / (ends - starts))[shown], color=BLUE, linewidth=1.4)
        for index in marked:
            axes.plot(steps[index], values[index], "o", color=RED, markersize=6, fillstyle="none")
            axes.annotate(
                f"step {steps[index]:,}", (steps[index], values[index]), xytext=(6, 0), textcoords="offset points",
                color=RED, va="center", fontsize=8,
            )  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
        axes.spines["right"].set_visible(False)
    return text.getvalue()


def _label(name: str) -> str:
    """Return a group's name without line breaks or control characters, cut to LONGEST_LABEL characters."""
    printable = "".join(char if char.isprintable() else " " for char in name)
    return shorten(printable, LONGEST_LABEL)


@contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Any, io.StringIO]]:
    """Yield axes of `width` by `height` inches to draw on, and a buffer that contains the SVG when the block ends."""
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.figure import Figure

    # Ignore the user's matplotlibrc, except for the backend, which has no effect because no chart is shown on a screen.
    defaults = {name: value for name, value in rcParamsDefault.items() if not name.startswith("backend")}
    text = io.StringIO()
    # Fix the ids and omit the date, so that the bytes are reproducible. Do not convert text to paths. Make the
    # background white, so that a standalone figure is readable on a dark page.
    fixed = {"text.parse_math": False, "svg.hashsalt": "recipe", "svg.fonttype": "none", "font.family": "sans-serif"}
    with rc_context({**defaults, **fixed}):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        axes = figure.subplots()
        axes.spines["top"].set_visible(False)
        yield axes, text
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
