"""Self-contained HTML pages and their figures: no script, no font and no picture from elsewhere, the same bytes always.

page("Title", "The one thing to know.", [Part("Heading", table(["a"], [[1]]))])
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment
from markupsafe import Markup

LONG_TAIL = 10
NUMBER = re.compile(r"-|-?[\d,]+(\.\d+)?(e-?\d+)?%?")
CURVE_POINTS = 200
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6168; --line: #d9dce0; --paper: #fff; --card: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #a3abb3; --line: #3a3f45; --paper: #16181b; --card: #1f2226; }
}
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
.lead { font-size: 1.1rem; margin: 0; }
.note { color: var(--soft); margin: .25rem 0 .75rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  white-space: pre-wrap; overflow-wrap: anywhere; min-width: 4rem; }
th, td.number { overflow-wrap: normal; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--card); padding: .75rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
figure { margin: .5rem 0; background: #fff; border-radius: 4px; padding: .25rem; }
figure svg { max-width: 100%; height: auto; display: block; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
{% for part in parts %}
<section>
<h2>{{ part.heading }}</h2>
{% if part.note %}<p class="note">{{ part.note }}</p>{% endif %}
{{ part.body }}
</section>
{% endfor %}
</body>
</html>
"""
TABLE = """<div class="scroll"><table>
<thead><tr>
{%- for name in header %}<th{{ number if loop.index0 in numeric }}>{{ name }}</th>{% endfor -%}
</tr></thead>
<tbody>
{% for row in rows %}<tr>
{%- for value in row %}<td{{ number if loop.index0 in numeric }}>{{ value }}</td>{% endfor -%}
</tr>
{% endfor %}</tbody>
</table></div>"""


@dataclass(frozen=True)
class Part:
    """A section of a page: its heading, its body as HTML, and a sentence between the two."""

    heading: str
    body: Markup
    note: str = ""


def page(title: str, lead: str, parts: Sequence[Part]) -> str:
    """One page; everything but the parts' bodies is escaped."""
    return Environment(autoescape=True).from_string(PAGE).render(title=title, lead=lead, parts=parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """A table; columns that hold numbers and shares alone are set to the right."""
    numeric = {index for index in range(len(header)) if rows and all(NUMBER.fullmatch(str(row[index])) for row in rows)}
    shown = [[f"{value:,}" if isinstance(value, int) else value for value in row] for row in rows]
    template, number = Environment(autoescape=True).from_string(TABLE), Markup(' class="number"')
    return Markup(template.render(header=header, rows=shown, numeric=numeric, number=number))


def preformatted(text: str) -> Markup:
    """Text as it stands, in a box."""
    return Markup("<pre>{}</pre>").format(text)


def histogram_edges(values: Sequence[int], num_bins: int) -> tuple[list[float], bool]:
    """The edges of the bars, and whether they are spaced by ratio.

    They are where the longest value is over LONG_TAIL times the median: else it would press all others into one bar.
    """
    import numpy as np

    low, high = max(1, min(values)), max(values) + 1
    logarithmic = high > LONG_TAIL * float(np.median(values))
    space = np.geomspace if logarithmic else np.linspace
    return space(low, high, num_bins + 1).tolist(), logarithmic


def histogram(values: Sequence[int], num_bins: int, label: str, mark: tuple[int, str] | None = None) -> Markup:
    """An SVG histogram and its cumulative curve, with a line at `mark` (value, what it is)."""
    import numpy as np
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.figure import Figure

    # A user's matplotlibrc must not show. The backend stays: no screen is used.
    defaults = {name: value for name, value in rcParamsDefault.items() if not name.startswith("backend")}
    # Fixed ids and no date, so that the same values give the same bytes; text stays text.
    with rc_context({**defaults, "svg.hashsalt": "recipe", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(7.5, 2.6), layout="constrained")
        axes = figure.subplots()
        edges, logarithmic = histogram_edges(values, num_bins)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.hist(values, bins=edges, color="#3b6fb6")
        if mark:
            axes.axvline(mark[0], color="#b3261e", linewidth=1.2)
            axes.text(mark[0], axes.get_ylim()[1] / 2, f" {mark[1]}", color="#b3261e", va="center", fontsize=9)
        axes.set_xlabel(label)
        axes.set_ylabel("rows")
        shares, ordered = axes.twinx(), np.sort(values)
        places = np.unique(np.linspace(0, len(ordered) - 1, CURVE_POINTS).astype(int))
        shares.step(ordered[places], (places + 1) / len(ordered), where="post", color="#3d4248", linewidth=1.2)
        shares.set_ylim(0, 1.02)
        shares.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        shares.set_ylabel("share up to here")
        for one in (axes, shares):
            one.spines["top"].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return Markup('<figure role="img" aria-label="Histogram and cumulative curve of {}">{}</figure>').format(
        label, Markup(svg[svg.index("<svg") :])
    )
