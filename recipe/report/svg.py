"""Figures as SVG: the same values give the same bytes, whatever the machine's own settings of matplotlib.

histogram([3, 5, 8], num_bins=10, label="tokens in a row", mark=(4, "max_length 4"))
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

LONGEST_LABEL = 60
LONG_TAIL = 10
CURVE_POINTS = 200
BLUE, RED, INK, GREY = "#3b6fb6", "#b3261e", "#3d4248", "#9aa2ab"


def histogram_edges(values: Sequence[int], num_bins: int) -> tuple[list[float], bool]:
    """The edges of the bars, and whether they are spaced by ratio.

    They are where the longest value is over LONG_TAIL times the median: else it would press all others into one bar.
    """
    import numpy as np

    low, high = max(1, min(values)), max(values) + 1
    logarithmic = high > LONG_TAIL * float(np.median(values))
    space = np.geomspace if logarithmic else np.linspace
    return space(low, high, num_bins + 1).tolist(), logarithmic


def cumulative(values: Sequence[int], num_bins: int) -> list[tuple[int, int, float]]:
    """The bars of the histogram as (longest value, rows, share of the rows up to it)."""
    import numpy as np

    edges, _ = histogram_edges(values, num_bins)
    counts = np.histogram(np.maximum(values, 1), bins=edges)[0]
    shares = np.cumsum(counts) / len(values)
    tops = (int(np.ceil(edge)) - 1 for edge in edges[1:])
    return [(top, int(count), round(float(share), 6)) for top, count, share in zip(tops, counts, shares, strict=True)]


def histogram(values: Sequence[int], num_bins: int, label: str, mark: tuple[int, str] | None = None) -> str:
    """A histogram and its cumulative curve, with a line at `mark` (value, what it is)."""
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
        places = np.unique(np.linspace(0, len(ordered) - 1, CURVE_POINTS).astype(int))
        shares.step(ordered[places], (places + 1) / len(ordered), where="post", color=INK, linewidth=1.2)
        shares.set_ylim(0, 1.02)
        shares.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        shares.set_ylabel("share up to here")
        shares.spines["top"].set_visible(False)
    return text.getvalue()


def pairs_of_bars(
    groups: Mapping[str, tuple[float, float]], names: tuple[str, str], label: str, *, shares: bool = False
) -> str:
    """Two horizontal bars for each group, one under the other: {group: (first, second)}; shares are in percent."""
    with _drawing(7.5, 0.8 + 0.42 * len(groups)) as (axes, text):
        for side, (name, colour) in enumerate(zip(names, (GREY, BLUE), strict=True)):
            places = [number + (side - 0.5) * 0.38 for number in range(len(groups))]
            bars = axes.barh(places, [pair[side] for pair in groups.values()], 0.36, color=colour, label=name)
            number = (lambda value: f"{value:.0%}") if shares else "%.3g"
            axes.bar_label(bars, fmt=number, padding=3, fontsize=8, color=INK)
        axes.set_yticks(range(len(groups)), [_label(name) for name in groups])
        axes.invert_yaxis()
        axes.margins(x=0.1, y=0.02)
        if shares:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel(label)
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
        axes.spines["right"].set_visible(False)
    return text.getvalue()


def _label(name: str) -> str:
    """A name as it can be written into an SVG: on one line, without controls, and not wider than the bars."""
    printed = "".join(char if char.isprintable() else " " for char in name)
    return printed if len(printed) <= LONGEST_LABEL else f"{printed[: LONGEST_LABEL - 1]}…"


@contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Any, io.StringIO]]:
    """One pair of axes to draw on, `width` by `height` inches; afterwards the text holds the SVG."""
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.figure import Figure

    # A user's matplotlibrc must not show. The backend stays: no screen is used.
    defaults = {name: value for name, value in rcParamsDefault.items() if not name.startswith("backend")}
    text = io.StringIO()
    # Fixed ids and no date, so that the same values give the same bytes; text stays text. A picture of its own has to
    # show on a dark page, too: its paper is white.
    fixed = {"text.parse_math": False, "svg.hashsalt": "recipe", "svg.fonttype": "none", "font.family": "sans-serif"}
    with rc_context({**defaults, **fixed}):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        axes = figure.subplots()
        axes.spines["top"].set_visible(False)
        yield axes, text
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
