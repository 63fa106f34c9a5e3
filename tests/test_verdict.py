import re

import pytest

from recipe.evaluate.report import about, report_page
from recipe.report.score_tables import pictures

RESULTS = {
    "rows": 2,
    "prompts": 2,
    "base": {"loss": 2.0, "perplexity": 7.389, "token_accuracy": 0.5, "exact_match": 0.0},
    "adapter": {"loss": 1.0, "perplexity": 2.718, "token_accuracy": 0.75, "exact_match": 0.5},
    "difference": {
        "loss": 1.0, "loss_low": 0.9, "loss_high": 1.1,
        "exact_match": 0.5, "exact_match_low": None, "exact_match_high": None,
    },
}  # fmt: skip
GROUPS = {
    "loss_by_category": {"sum": {"rows": 9, "base": 2.0, "adapter": 1.0, "gain": 1.0, "low": 0.9, "high": 1.1}},
    "exact_match_by_category": {
        "sum": {"rows": 2, "base": 0.0, "adapter": 0.5, "gain": 0.5, "low": None, "high": None}
    },
    "loss_by_length": {
        "up to 9 tokens": {"rows": 9, "base": 1.0, "adapter": 2.0, "gain": -1.0, "low": -1.1, "high": -0.9},
    },
    "token_accuracy_by_length": {
        "up to 9 tokens": {"rows": 9, "base": 0.5, "adapter": 0.25, "gain": -0.25, "low": -0.5, "high": 0.125},
    },
}  # fmt: skip
GENERATIONS = [
    {"prompt": "Say <b>.", "completion": "<b>", "base": "no", "adapter": "<b>", "base_matches": False,
     "adapter_matches": True, "category": "sum"},
]  # fmt: skip
ABOUT = about("tiny", {"rows": {"train": 7}}, {"trainable_parameters": 40, "parameters": 1040, "steps": 3})


def test_report_begins_with_whether_the_adapter_is_better():
    html = report_page(RESULTS, GROUPS, GENERATIONS, pictures(GROUPS), ABOUT)
    lead = html.split('class="lead">')[1].split("<")[0]
    assert lead.startswith("The adapter is better than its base: validation loss 1.000 against 2.000")
    assert html.count("<svg") == 3 and "50.0%" in html and "✓ &lt;b&gt;" in html and "<td>no</td>" in html
    assert lead.endswith(
        "The adapter adds 40 parameters to tiny, which has 1,000 parameters, and was trained on 7 rows in 3 steps."
    )
    assert "Tasks" not in html


def cells(html, heading):
    """The rows of the table in a section."""
    rows = html.split(f"{heading}</h2>")[1].split("</section>")[0].split("<tr>")[1:]
    return [re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", row) for row in rows]


def test_measures_are_listed_by_category_and_length_with_intervals():
    html = report_page(RESULTS, GROUPS, GENERATIONS, pictures(GROUPS), ABOUT)
    header = ["rows", "base", "adapter", "gain", "95% interval"]
    assert cells(html, "Loss by category") == [
        ["category", *header], ["sum", "9", "2.000", "1.000", "1.000 lower", "0.900 to 1.100"],
    ]  # fmt: skip
    assert cells(html, "Exact match by category") == [
        ["category", "prompts", *header[1:]], ["sum", "2", "0.0%", "50.0%", "50.0 points higher", "-"],
    ]  # fmt: skip
    note = "A group with fewer than 10 prompts, or with the same change for every prompt, has no interval."
    assert html.count(note) == 1
    assert cells(html, "Loss by length")[1][1:] == ["9", "1.000", "2.000", "1.000 higher", "0.900 to 1.100"]
    assert cells(html, "Token accuracy by length")[1][4:] == ["25.0 points lower", "-12.5 to 50.0 points"]
    assert html.count("with an interval that excludes zero, in these groups: up to 9 tokens.") == 1


def test_zero_gain_is_no_difference_and_further_worse_groups_are_counted():
    no_gain = GROUPS["exact_match_by_category"]["sum"] | {"gain": 0.0}
    worse = GROUPS["loss_by_length"]["up to 9 tokens"]
    groups = {
        "exact_match_by_category": {"sum": no_gain},
        "loss_by_category": {f"category {n}": worse for n in range(12)},
    }
    html = report_page(RESULTS, groups, [], {}, ABOUT)
    assert cells(html, "Exact match by category")[1][4:] == ["no difference", "-"]
    assert "category 8, category 9 and 2 more. (If there were no real difference" in html


def test_rows_without_categories_have_no_charts_by_category():
    plain = {name: {} if name.endswith("category") else results for name, results in GROUPS.items()}
    assert set(pictures(plain)) == {"loss_by_length"}
    assert "by category" not in report_page(RESULTS, plain, [], pictures(plain), ABOUT)


def exact_matches_of(*names):
    return {"exact_match_by_category": dict.fromkeys(names, GROUPS["exact_match_by_category"]["sum"])}


def test_hundreds_of_categories_are_listed_without_a_chart():
    many = exact_matches_of(*(f"category {n}" for n in range(100)))
    assert pictures(many) == {}
    assert ">category 99</td>" in report_page(RESULTS, many, [], {}, ABOUT)


def test_unusual_category_names_can_be_drawn():
    groups = exact_matches_of("cost $\\frac$", "price $5 and $6", "k" * 200, "tab\x0b and\nline")
    chart = pictures(groups)["exact_match_by_category"]
    assert "$\\frac$" in chart and "k" * 59 + "…" in chart and "\x0b" not in chart


@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        ({"acc": 0.25, "acc_stderr": 0.01}, "0.2500 ± 0.0100"),
        ({"acc": 0.25}, "0.2500"),
        ({"exact_match (strict-match)": 0.5, "exact_match_stderr (strict-match)": 0.125}, "0.5000 ± 0.1250"),
    ],
)
def test_task_scores_of_base_and_adapter_are_shown_with_standard_errors(scores, shown):
    results = RESULTS | {"tasks": {"hellaswag": {"base": scores, "adapter": scores}}}
    html = report_page(results, GROUPS, [], pictures(GROUPS), ABOUT)
    assert html.count(f">{shown}</td>") == 2 and html.count(">hellaswag</td>") == 1
