import json
import re

import pytest
from conftest import alpaca, toy_rows

from recipe.analyze import AnalyzeParams, analyze, quantiles, share_above, show, wrapped
from recipe.errors import DataError
from recipe.files import sha256_tree
from recipe.pages import Part, histogram_edges, page, preformatted, table


def test_quantiles_are_by_nearest_rank():
    values = list(range(1, 101))
    assert quantiles(values) == {"mean": 50.5, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    assert quantiles([7]) == {"mean": 7.0, "p50": 7, "p90": 7, "p95": 7, "p99": 7, "max": 7}


def test_the_share_above_a_limit_leaves_out_the_limit():
    assert share_above([1, 2, 3, 4], 3) == 0.25


def test_a_row_in_full_is_wrapped_at_50_after_the_tutorials_rule():
    text = wrapped({"instruction": "word " * 30, "output": "a\n\nb"})
    assert text.splitlines()[0] == "---" * 15
    assert max(map(len, text.splitlines())) == 50 - 1  # nine words of five, less the last space
    assert text.endswith("output:\na\n\nb")


@pytest.fixture
def report(prepared, tmp_path):
    def make(rows, **changes):
        made = prepared(rows, **changes)
        summary = analyze(AnalyzeParams(num_rows=5, num_bins=10), tmp_path / "raw", made, tmp_path / "report")
        return summary, tmp_path / "report"

    return make


def test_the_report_says_what_is_there(report):
    rows = [*toy_rows(38), alpaca("long", "x " * 700), alpaca("<script>alert(1)</script> & co", "y")]
    summary, folder = report(rows)
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["num_rows"] == 40
    assert summary["columns"] == {name: {"str": 40} for name in ("instruction", "input", "output")}
    assert summary["share_over_1024_chars"] == 1 / 40
    assert summary["share_over_max_length_tokens"] >= 1 / 40
    assert summary["prepared"]["rows"]["train"] + summary["prepared"]["rows"]["validation"] <= 40
    chosen = next(one for one in summary["limits"] if one["max_length"] == 256)
    assert chosen["cost"] == 1.0 and 0 < chosen["rows_cut"] < 0.1
    assert summary["recommended_max_length"] in [one["max_length"] for one in summary["limits"]]
    html = (folder / "index.html").read_text()
    assert html.count("<svg") == 2 and "max_length 256" in html and "256 (set)" in html
    assert summary["recommended_because"] in html and "% of the training tokens are trained" in html
    assert not re.search(r"""(src|href)=["'](?!#)""", html) and "url(http" not in html and "<link" not in html


def test_one_very_long_row_does_not_press_the_others_into_one_bar():
    assert histogram_edges(list(range(50, 150)), 20)[1] is False
    edges, logarithmic = histogram_edges([*range(50, 150), 9000], 20)
    assert logarithmic and edges[0] == 50 and edges[-1] == pytest.approx(9001) and len(edges) == 21
    assert sum(edge < 150 for edge in edges) >= 5


def test_what_a_row_holds_is_never_html(report):
    _, folder = report([alpaca(f"<b>{n}</b><script>", "x") for n in range(40)])
    html = (folder / "index.html").read_text()
    assert "&lt;script&gt;" in html and "<script" not in html


def test_the_same_rows_give_the_same_report(report):
    _, folder = report(toy_rows(40))
    first = sha256_tree(folder)
    report(toy_rows(40))
    assert sha256_tree(folder) == first


def test_a_table_sets_numbers_right_and_escapes():
    assert table(["a"], [["1.5%"], ["-"], [0.25]]).count('class="number"') == 4
    assert 'class="number"' not in table(["a"], [["12"], ["twelve"]])
    html = table(["a", "b"], [["<x>", 12345], ["y", 2]])
    assert '<td class="number">12,345</td>' in html and "&lt;x&gt;" in html
    assert "<pre>a &amp; b</pre>" in preformatted("a & b")
    assert "<title>&lt;t&gt;</title>" in page("<t>", "", [Part("h", html)])


def test_bytes_that_are_not_utf8_in_a_row_that_was_dropped_do_not_stop_the_report(report):
    rows = [{"instruction": "caf\udce9", "output": "x", "input": ""}, *toy_rows(30)]
    _, folder = report(rows, on_bad_row="drop")
    assert "caf\\udce9" in (folder / "index.html").read_text()


def test_show_prints_the_first_rows_after_the_rule(raw, tmp_path):
    rows = [alpaca(f"question {n}", "word " * 30) for n in range(4)]
    text = show(raw(rows), 3)
    assert text.splitlines()[:2] == ["4 rows", "  instruction  str (4)"]
    assert text.count("---" * 15) == 4 and "question 2" in text and "question 3" not in text
    with pytest.raises(DataError, match="recipe fetch data"):
        show(tmp_path / "nothing", 3)
