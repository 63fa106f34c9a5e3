"""Creates self-contained HTML pages without scripts or external resources.

The same content always produces the same bytes.

page("Title", "The main result.", [Part("Heading", table(["a"], [[1]]))])
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment
from markupsafe import Markup

NUMBER = re.compile(r"-|-?[\d,]+(\.\d+)?(e-?\d+)?%?")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6168; --line: #d9dce0; --paper: #fff; --card: #f5f6f8;
  --link: #1f5aa6; --trained: #d6f0dc; --end: #ffe3b8; --rule: #4c8a5c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #a3abb3; --line: #3a3f45; --paper: #16181b; --card: #1f2226;
    --link: #8ab8f0; --trained: #1d4a2b; --end: #5a3d0c; --rule: #6fae80; }
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
th.number, td.number { min-width: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--card); padding: .75rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
figure { margin: .5rem 0; background: #fff; border-radius: 4px; padding: .25rem; }
figure svg { max-width: 100%; height: auto; display: block; }
nav { columns: 14rem; margin: 1.25rem 0 0; font-size: .9rem; }
nav a { display: block; padding: .1rem 0; }
a { color: var(--link); }
.packed { background: var(--card); padding: .75rem; font: .85rem/1.7 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.packed .row { border-left: 3px solid var(--line); padding-left: .6rem; margin: .4rem 0; }
.packed .trained { background: var(--trained); border-bottom: 2px solid var(--rule); }
.packed .role { color: var(--soft); font-style: italic; padding-right: .4rem; }
.packed .end { background: var(--end); border: 1px solid var(--rule); border-radius: 3px; padding: 0 .2rem; }
@media (max-width: 30rem) { table { font-size: .75rem; } th, td { padding-right: .4rem; min-width: 3.5rem; } }
@media print { nav { display: none; } section { break-inside: avoid-page; } .scroll { overflow: visible; }
  body { max-width: none; padding: 0; } }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
<nav aria-label="Sections">
{% for part in parts %}<a href="#{{ part.anchor }}">{{ part.heading }}</a>
{% endfor %}</nav>
{% for part in parts %}
<section id="{{ part.anchor }}">
<h2>{{ part.heading }}</h2>
{% if part.note %}<p class="note">{{ part.note }}</p>{% endif %}
{{ part.body }}
</section>
{% endfor %}
</main>
</body>
</html>
"""
# Tables can receive keyboard focus, so that keyboard users can scroll wide tables.
TABLE = """<div class="scroll" tabindex="0" role="group" aria-label="{{ header | join(', ') }}"><table>
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
    """A section of a page: the heading, the body as HTML, and an optional note between them."""

    heading: str
    body: Markup
    note: str = ""

    @property
    def anchor(self) -> str:
        """The fragment identifier for links to the section."""
        return re.sub(r"\W+", "-", self.heading.lower()).strip("-")


def page(title: str, lead: str, parts: Sequence[Part]) -> str:
    """Return a complete HTML page. All text except the bodies of `parts` is escaped."""
    return Environment(autoescape=True).from_string(PAGE).render(title=title, lead=lead, parts=parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """Return an HTML table. Columns that contain only numbers and percentages are right-aligned."""
    numeric = {index for index in range(len(header)) if rows and all(NUMBER.fullmatch(str(row[index])) for row in rows)}
    formatted = [[f"{value:,}" if isinstance(value, int) else value for value in row] for row in rows]
    template, number = Environment(autoescape=True).from_string(TABLE), Markup(' class="number"')
    return Markup(template.render(header=header, rows=formatted, numeric=numeric, number=number))


def preformatted(text: str) -> Markup:
    """Return a `<pre>` element that contains the text."""
    return Markup("<pre>{}</pre>").format(text)


def figure(svg: str, label: str) -> Markup:
    """Return an HTML figure that contains an SVG image and a text alternative for screen readers."""
    return Markup('<figure role="img" aria-label="{}">{}</figure>').format(label, Markup(svg[svg.index("<svg") :]))
