import json
import re

import pytest
from conftest import alpaca, no_progress, paths_in, toy_rows

from recipe.analyze.params import AnalyzeParams
from recipe.analyze.report import format_row, list_places
from recipe.analyze.stage import analyze, quantiles, share_above
from recipe.analyze.stage import run as run_analyze
from recipe.cli.show import mask_text, rows_text
from recipe.core.errors import DataError
from recipe.core.io import sha256_tree
from recipe.core.services import Services
from recipe.prepare.stage import prepare
from recipe.prepare.stage import run as run_prepare
from recipe.report.html import Part, page, preformatted, table
from recipe.report.svg import cumulative, histogram, histogram_edges, pairs_of_bars


def test_quantiles_use_the_nearest_rank():
    values = list(range(1, 101))
    assert quantiles(values) == {"mean": 50.5, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    assert quantiles([7]) == {"mean": 7.0, "p50": 7, "p90": 7, "p95": 7, "p99": 7, "max": 7}
    result = quantiles([7, 8])
    assert result["p50"] == 7 and all(isinstance(value, int) for name, value in result.items() if name != "mean")


def test_share_above_a_limit_excludes_the_limit():
    assert share_above([1, 2, 3, 4], 3) == 0.25


def test_full_row_is_wrapped_at_50_characters_below_the_rule_of_the_tutorial():
    text = format_row({"instruction": "word " * 30, "output": "a\n\nb"})
    assert text.splitlines()[0] == "---" * 15
    assert max(map(len, text.splitlines())) == 50 - 1  # nine words of five characters, without the last space
    assert text.endswith("output:\na\n\nb")


@pytest.fixture
def report(prepared, fetched_base, tmp_path):
    def make(rows, validation=None, **changes):
        prepared(rows, validation, **changes)
        summary = analyze(AnalyzeParams(num_rows=5, num_bins=10), paths_in(tmp_path, base=fetched_base), no_progress)
        return summary, tmp_path / "report"

    return make


def test_report_describes_the_data(report):
    rows = [*toy_rows(38), alpaca("long", "x " * 700), alpaca("<script>alert(1)</script> & co", "y")]
    summary, folder = report(rows)
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["num_rows"] == 40
    assert {name: column["types"] for name, column in summary["columns"].items()} == {
        name: {"str": 40} for name in ("instruction", "input", "output")
    }
    assert summary["columns"]["input"] == {"types": {"str": 40}, "empty": 10, "missing": 0}
    assert summary["branches"] == {"with input": 30, "without input": 10} and summary["scripts"] == {"Latin": 40}
    assert summary["share_over_1024_chars"] == 1 / 40
    assert summary["share_over_max_length_tokens"] >= 1 / 40
    assert summary["prepared"]["rows"]["train"] + summary["prepared"]["rows"]["validation"] <= 40
    current = next(limit for limit in summary["limits"] if limit["max_length"] == 256)
    assert current["cost"] == 1.0
    counts = summary["prepared"]["rows"]
    assert counts["truncated"] == 1 and current["rows_cut"] == pytest.approx(1 / counts["train"], abs=1e-6)
    assert counts["dropped_without_answer"] == 0 and current["rows_dropped"] == 0
    assert summary["recommended_max_length"] in [limit["max_length"] for limit in summary["limits"]]
    html = (folder / "index.html").read_text()
    assert html.count("<svg") == 2 and "max_length 256" in html and "256 (current)" in html
    assert summary["recommended_because"] in html and "% of the training tokens are loss positions" in html
    assert not re.search(r"""(src|href)=["'](?!#)""", html) and "url(http" not in html and "<link" not in html


def test_possible_problems_are_counted_and_located(report):
    story = "Once there was a fox that ran over the hill and under the bridge to see an old friend of his. " * 3
    rows = [
        alpaca("mail", "write to jane@mail.org"),  # line 1
        *toy_rows(30),
        alpaca("again", "the same"),
        alpaca("again", "the same"),  # line 33
        alpaca("again", "another"),  # line 34
        alpaca("tell", story),  # line 35
        alpaca("tell", story.replace("hill", "dale", 1)),  # line 36
    ]
    summary, folder = report(rows, [alpaca("tell me", story), alpaca("held", "out")])
    flaws = {name: (flaw["rows"], flaw["places"]) for name, flaw in summary["flaws"].items()}
    assert flaws["e-mail addresses"] == (1, ["train.jsonl, line 1"])
    assert flaws["rows that occur more than once"] == (1, ["train.jsonl, line 33"])
    assert flaws["repeated questions with a different answer"][1] == ["train.jsonl, line 34", "train.jsonl, line 36"]
    assert "train.jsonl, line 36" in flaws["near duplicates of an earlier row"][1]
    assert flaws["validation rows that nearly match a training row"] == (1, ["validation.jsonl, line 1"])
    html = (folder / "index.html").read_text()
    assert "train.jsonl, line 1</td>" in html
    assert "jane@mail.org" not in html and "write to [e-mail addresses]" in html.replace("<br>", " ")
    assert "Duplicates side by side" in html and "possible problems were found" in html


def test_answers_that_max_length_cuts_or_removes_are_a_possible_problem(raw, fetched_base, sequence_params, tmp_path):
    chats = [
        {"messages": [{"role": role, "content": f"{text} {n}"} for text in ("one two three " * 9, "four five " * 9)
                      for role in ("user", "assistant")]} for n in range(30)
    ]  # fmt: skip
    paths = paths_in(tmp_path, raw=raw(chats), base=fetched_base)
    params = {"template": "chat", "columns": {"messages": "messages"}, "chat_template": "plain", "max_length": 256}
    services = Services(no_progress, None, None, None, None, None)
    printed = run_prepare({"sequence": sequence_params(**params)}, paths, services)
    cut = "possible problem: the last answer is missing or cut in 30 of 30 rows, because sequence.max_length is 256. "
    assert cut + "Set sequence.max_length to 512 to keep at least 99%" in printed
    [line] = [line for line in mask_text(paths.prepared).splitlines() if "2 answers" in line]
    assert "max_length cuts off the last " in line and "(256 tokens, " in line
    printed = run_analyze({"analyze": AnalyzeParams(num_rows=5, num_bins=10)}, paths, services)
    assert "possible problems: the last answer is missing or cut at max_length (30)" in printed
    assert "recommended sequence.max_length: 512 (currently 256)" in printed
    summary = json.loads((paths.analysis / "summary.json").read_text())
    flaw = summary["flaws"]["the last answer is missing or cut at max_length"]
    assert flaw["rows"] == 30 and len(set(flaw["places"])) == 30 and summary["recommended_max_length"] == 512
    page = (paths.analysis / "index.html").read_text()
    assert "missing or cut in 30 of 30 rows" in page and "The recommended max_length is 512" in page
    printed = run_prepare({"sequence": sequence_params(**{**params, "max_length": 512})}, paths, services)
    assert "possible problem" not in printed and "cuts off" not in mask_text(paths.prepared)


def test_rows_dropped_by_prepare_do_not_shift_line_numbers(report):
    rows = [{"instruction": "", "output": "x", "input": ""}, *toy_rows(20), {"instruction": 7}, *toy_rows(40)[20:],
            alpaca("mail", "write to jane@mail.org")]  # fmt: skip
    summary, _ = report(rows, on_bad_row="drop")
    assert summary["num_rows"] == 43 and summary["columns"]["output"]["missing"] == 1
    assert summary["flaws"]["e-mail addresses"]["places"] == ["train.jsonl, line 43"]
    assert sum(summary["branches"].values()) == 41


def test_files_with_the_same_name_in_different_folders_are_distinguished(raw, fetched_base, sequence_params, tmp_path):
    story = "Once there was a fox that ran over the hill and under the bridge to see an old friend of his. " * 3
    validation = [{"instruction": "lost", "output": None}, alpaca("tell me", story)]
    data = raw([*toy_rows(20), alpaca("tell", story)], validation)
    manifest = json.loads((data / "manifest.json").read_text())
    for file in manifest["files"]:
        (data / file["split"]).mkdir()
        (data / file["name"]).rename(data / file["split"] / "0.jsonl")
        file["name"] = f"{file['split']}/0.jsonl"
    (data / "manifest.json").write_text(json.dumps(manifest))
    paths = paths_in(tmp_path, raw=data, base=fetched_base)
    prepare(sequence_params(on_bad_row="drop"), paths, no_progress)
    summary = analyze(AnalyzeParams(num_rows=5, num_bins=10), paths, no_progress)
    assert summary["flaws"]["validation rows that nearly match a training row"]["places"] == [
        "validation/0.jsonl, line 2"
    ]
    html = (tmp_path / "report" / "index.html").read_text()
    assert toy_rows(1)[0]["instruction"] in html.split("First rows</h2>")[1].split("Three rows")[0]


def test_unnamed_column_is_not_used_as_input(report):
    columns = {"instruction": "instruction", "output": "output"}
    rows = [{"": str(number), **row} for number, row in enumerate([*toy_rows(20), *toy_rows(1)])]
    summary, _ = report(rows, columns=columns)
    assert summary["branches"] == {"without input": 21}
    assert summary["flaws"]["rows that occur more than once"]["rows"] == 1


def test_chats_and_plain_texts_are_analyzed(report):
    chats = [{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Say {n}"},
                           {"role": "assistant", "content": f"{n}"}]} for n in range(30)]  # fmt: skip
    summary, _ = report(chats, template="chat", chat_template="plain", columns={"messages": "messages"})
    assert summary["branches"] == {"1 answer, system message": 30}
    summary, folder = report([{"text": f"text {n}"} for n in range(30)], template="text", columns={"text": "text"})
    assert summary["branches"] == {"text": 30} and summary["flaws"] == {}
    assert "No problems were found:" in (folder / "index.html").read_text()


def test_packed_sequence_marks_context_loss_positions_and_end_tokens(report):
    _, folder = report([alpaca(f"say {n}", f"<b>{n}</b>") for n in range(60)])
    html = (folder / "index.html").read_text()
    packed = html.split('aria-label="Packed sequence"')[1].split("</section>")[0]
    assert 2 <= packed.count('class="row"') <= 4
    assert packed.count('class="row"') == packed.count('<span class="end">')
    assert "### Response:" in packed.split('<span class="trained">')[0] and "&lt;b&gt;" in packed


def test_vocabulary_usage_is_counted(report):
    summary, _ = report(toy_rows(40))
    used = summary["vocabulary"]
    assert 0 < used["used"] < used["size"] and 0.5 < used["top_share"] <= 1


def test_length_distribution_for_dvc_ends_with_all_rows(report):
    summary, folder = report(toy_rows(40))
    lines = (folder / "lengths.csv").read_text().splitlines()
    assert lines[0] == "tokens,rows,share_up_to_here" and len(lines) == 11
    top, _, share = lines[-1].split(",")
    assert int(top) == summary["tokens"]["max"] and float(share) == 1.0
    assert sum(rows for _, rows, _ in cumulative([0, 1, 5, 900], 7)) == 4
    assert {path.name for path in folder.iterdir()} == {
        "index.html", "summary.json", "lengths.csv", "characters.svg", "tokens.svg",
    }  # fmt: skip


def test_list_of_places_has_each_file_once_and_counts_the_rest():
    places = [f"a.json, line {n}" for n in range(3)] + ["b.json, line 9"]
    assert list_places(places, 4) == "a.json, line 0, 1, 2; b.json, line 9"
    assert list_places([f"a, b.json, line {n}" for n in range(9)], 12) == "a, b.json, line 0, 1, 2, 3, 4; and 7 more"


def test_figures_ignore_user_settings_of_matplotlib(tmp_path, monkeypatch):
    import matplotlib

    first = histogram([1, 2, 3], 3, "tokens"), pairs_of_bars({"a": (1.0, 2.0)}, ("base", "adapter"), "loss")
    with matplotlib.rc_context({"figure.facecolor": "red", "font.size": 30}):
        assert (histogram([1, 2, 3], 3, "tokens"),
                pairs_of_bars({"a": (1.0, 2.0)}, ("base", "adapter"), "loss")) == first  # fmt: skip


def test_very_long_row_does_not_put_all_others_into_one_bar():
    assert histogram_edges(list(range(50, 150)), 20)[1] is False
    edges, logarithmic = histogram_edges([*range(50, 150), 9000], 20)
    assert logarithmic and edges[0] == 50 and edges[-1] == pytest.approx(9001) and len(edges) == 21
    assert sum(edge < 150 for edge in edges) >= 5


def test_row_contents_are_escaped_in_html(report):
    _, folder = report([alpaca(f"<b>{n}</b><script>", "x") for n in range(40)])
    html = (folder / "index.html").read_text()
    assert "&lt;script&gt;" in html and "<script" not in html


def test_same_rows_give_the_same_report(report):
    _, folder = report(toy_rows(40))
    first = sha256_tree(folder)
    report(toy_rows(40))
    assert sha256_tree(folder) == first


def test_table_right_aligns_numbers_and_escapes_text():
    assert table(["a"], [["1.5%"], ["-"], [0.25]]).count('class="number"') == 4
    assert 'class="number"' not in table(["a"], [["12"], ["twelve"]])
    html = table(["a", "b"], [["<x>", 12345], ["y", 2]])
    assert '<td class="number">12,345</td>' in html and "&lt;x&gt;" in html
    assert "<pre>a &amp; b</pre>" in preformatted("a & b")
    assert "<title>&lt;t&gt;</title>" in page("<t>", "", [Part("h", html)])


def test_invalid_utf8_in_a_dropped_row_does_not_break_the_report(report):
    rows = [{"instruction": "caf\udce9", "output": "x", "input": ""}, *toy_rows(30)]
    _, folder = report(rows, on_bad_row="drop")
    assert "caf\\udce9" in (folder / "index.html").read_text()


def test_show_prints_the_first_rows_below_the_rule(raw, tmp_path):
    rows = [alpaca(f"question {n}", "word " * 30) for n in range(4)]
    text = rows_text(raw(rows), 3)
    assert text.splitlines()[:2] == ["4 rows", "  instruction  str (4)"]
    assert text.count("---" * 15) == 4 and "question 2" in text and "question 3" not in text
    with pytest.raises(DataError, match="recipe fetch data"):
        rows_text(tmp_path / "nothing", 3)
