import pytest

from recipe.verdict import about, pictures, report_page

RESULTS = {
    "rows": 2,
    "prompts": 2,
    "base": {"loss": 2.0, "perplexity": 7.389, "token_accuracy": 0.5, "exact_match": 0.0},
    "adapter": {"loss": 1.0, "perplexity": 2.718, "token_accuracy": 0.75, "exact_match": 0.5},
    "difference": {
        "loss": 1.0, "loss_low": 0.9, "loss_high": 1.1,
        "exact_match": 0.5, "exact_match_low": 0.0, "exact_match_high": 1.0,
    },
    "by_kind": {"sum": {"prompts": 2, "base": 0.0, "adapter": 0.5}},
    "loss_by_kind": {"sum": {"rows": 2, "base": 2.0, "adapter": 1.0}},
    "loss_by_length": {"up to 9 tokens": {"rows": 2, "base": 2.0, "adapter": 1.0}},
}  # fmt: skip
GENERATIONS = [
    {"prompt": "Say <b>.", "completion": "<b>", "base": "no", "adapter": "<b>", "base_matches": False,
     "adapter_matches": True, "kind": "sum"},
]  # fmt: skip
ABOUT = about("tiny", {"rows": {"train": 7}}, {"trainable_parameters": 40, "parameters": 1040, "steps": 3})


def test_the_report_says_first_whether_the_adapter_is_better():
    html = report_page(RESULTS, GENERATIONS, pictures(RESULTS), ABOUT)
    first = html.split('class="lead">')[1].split("<")[0]
    assert first.startswith("The adapter is better than its base: validation loss 1.000 against 2.000")
    assert html.count("<svg") == 3 and "50.0%" in html and "✓ &lt;b&gt;" in html and "<td>no</td>" in html
    assert first.endswith("It has 40 parameters beside the 1,000 of tiny, and was trained on 7 rows in 3 steps.")
    assert "Tasks" not in html


def test_rows_without_kinds_have_no_pictures_by_kind():
    plain = RESULTS | {"by_kind": {}, "loss_by_kind": {}}
    assert set(pictures(plain)) == {"loss_by_length"}
    assert "by kind" not in report_page(plain, [], pictures(plain), ABOUT)


def test_hundreds_of_kinds_stand_in_the_table_alone():
    many = RESULTS | {"by_kind": {f"kind {n}": {"prompts": 1, "base": 0.0, "adapter": 1.0} for n in range(100)}}
    assert "exact_match_by_kind" not in pictures(many)
    assert ">kind 99</td>" in report_page(many, [], pictures(many), ABOUT)


def test_any_name_of_a_kind_can_be_drawn():
    names = ("cost $\\frac$", "price $5 and $6", "k" * 200, "tab\x0b and\nline")
    odd = RESULTS | {"by_kind": {name: {"prompts": 1, "base": 0.0, "adapter": 0.5} for name in names}}
    drawn = pictures(odd)["exact_match_by_kind"]
    assert "$\\frac$" in drawn and "k" * 59 + "…" in drawn and "\x0b" not in drawn


@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        ({"acc": 0.25, "acc_stderr": 0.01}, "0.2500 ± 0.0100"),
        ({"acc": 0.25}, "0.2500"),
        ({"exact_match (strict-match)": 0.5, "exact_match_stderr (strict-match)": 0.125}, "0.5000 ± 0.1250"),
    ],
)
def test_a_tasks_scores_stand_beside_each_other(scores, shown):
    results = RESULTS | {"tasks": {"hellaswag": {"base": scores, "adapter": scores}}}
    html = report_page(results, [], pictures(results), ABOUT)
    assert html.count(f">{shown}</td>") == 2 and html.count(">hellaswag</td>") == 1
