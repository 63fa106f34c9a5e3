import math

import numpy as np
import pytest

from recipe.report import comparison
from recipe.report.comparison import (
    FEWEST_ROWS,
    ScoredRow,
    by_group,
    compare,
    describe_gain,
    headline,
    interval,
    length_groups,
    overall,
)


def test_interval_of_a_mean_is_about_two_standard_errors_on_each_side():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = interval(values, np.ones(400))
    error = values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def test_interval_covers_the_true_value_about_as_often_as_stated():
    """200 samples of 60 rows with 1 to 9 tokens each."""
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        tokens = rng.integers(1, 10, 60)
        losses = rng.exponential(1.0, 60) * tokens
        low, high = interval(losses, tokens, seed)
        covered += low <= 1.0 <= high
    assert 0.85 <= covered / 200 <= 0.99


def test_interval_of_the_fewest_rows_covers_the_true_value_in_nine_of_ten_cases():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        low, high = interval(rng.normal(0.0, 1.0, FEWEST_ROWS), [1] * FEWEST_ROWS)
        covered += low <= 0.0 <= high
    assert 0.86 <= covered / 300 <= 0.97


def test_interval_text_has_no_negative_zero():
    assert describe_gain("loss", 0.5, -0.00001, 1.0) == ("0.500 lower", "0.000 to 1.000")
    assert describe_gain("exact_match", -0.2, -0.6, 0.0) == ("20.0 points lower", "0.0 to 60.0 points")


def test_interval_is_reproducible_and_independent_of_the_step_size(monkeypatch):
    values, tokens = [1.0, 2.0, 8.0, 1.5], [1, 2, 4, 1]
    first = interval(values, tokens)
    assert interval(values, tokens) == first
    monkeypatch.setattr(comparison, "AT_ONCE", 40)
    assert interval(values, tokens) == first
    assert interval([2.0, 4.0], [1, 2]) == (2.0, 2.0)


def row(category, length, losses, *, loss_tokens=1, right=(0, 0), matches=None):
    return ScoredRow(category, length, loss_tokens, losses, right, matches)


def test_measure_weights_tokens_and_its_gain_has_an_interval():
    rows = [row("", 9, (2.0, 1.0)), row("", 9, (2.0, 1.0), loss_tokens=3, right=(0, 3))] * 5
    loss = compare(rows, "loss")
    assert (loss["rows"], loss["base"], loss["adapter"], loss["gain"]) == (10, 1.0, 0.5, 0.5)
    assert 1 / 3 <= loss["low"] < 0.5 < loss["high"] <= 1.0
    accuracy = compare(rows, "token_accuracy")
    assert (accuracy["base"], accuracy["adapter"], accuracy["gain"]) == (0.0, 0.75, 0.75)


def test_exact_match_counts_only_rows_with_generated_answers():
    answered = [row("", 9, (1.0, 1.0), matches=(False, True)), row("", 9, (1.0, 1.0), matches=(True, True))]
    result = compare([*answered, row("", 9, (1.0, 1.0))], "exact_match")
    assert (result["rows"], result["base"], result["adapter"], result["gain"]) == (2, 0.5, 1.0, 0.5)
    assert compare([row("", 9, (1.0, 1.0))], "exact_match") is None


def test_overall_scores_weight_tokens_and_count_matches():
    scores = [
        {"losses": (2.0, 2.0), "loss_tokens": 1, "right": (1, 1)},
        {"losses": (1.0, 4.0), "loss_tokens": 3, "right": (1, 3)},
    ]
    matches = [(True, False), (False, False), (False, True), (True, True)]
    results = overall([row("", 9, matches=matches[n], **scores[n % 2]) for n in range(4)])
    assert results["base"] == {
        "loss": 0.75, "perplexity": round(math.exp(0.75), 4), "token_accuracy": 0.5, "exact_match": 0.5,
        "chrf": None,
    }  # fmt: skip
    assert results["adapter"]["loss"] == 1.5 and results["adapter"]["token_accuracy"] == 1.0
    assert results["difference"]["loss"] == -0.75 and results["difference"]["exact_match"] == 0.0
    no_answers = overall([row("", 9, (2.0, 1.0))])
    assert no_answers["base"]["exact_match"] is None and "exact_match" not in no_answers["difference"]


def test_identical_exact_match_results_have_no_interval():
    """If base and adapter are wrong in all 32 rows, every resample is the same, but more rows might show a gain."""
    identical = [row("", 9, (1.0, 1.0), matches=(False, False))] * 32
    assert (compare(identical, "exact_match")["gain"], compare(identical, "exact_match")["low"]) == (0.0, None)
    assert compare([*identical, row("", 9, (1.0, 1.0), matches=(False, True))], "exact_match")["low"] == 0.0
    assert compare(identical, "loss")["low"] == 0.0


def test_headline_says_that_there_are_too_few_rows_for_an_interval():
    rows = [row("", 9, (2.0, 1.0))] * (FEWEST_ROWS - 1)
    assert compare(rows, "loss")["low"] is None and compare([*rows, rows[0]], "loss")["low"] == 1.0
    results = {"rows": 9, "base": {"loss": 2.0}, "adapter": {"loss": 1.0, "exact_match": None}}
    assert headline(results | {"difference": overall(rows)["difference"]}) == (
        "The adapter seems better than its base: validation loss 1.000 against 2.000 (1.000 lower, on 9 rows, too few "
        "for an interval)."
    )


def test_measures_are_grouped_by_category_and_by_length():
    rows = [
        row("b", 90, (4.0, 1.0), matches=(False, True)), row("a", 5, (2.0, 3.0), loss_tokens=2, right=(1, 2)),
        row("b", 9, (2.0, 2.0), matches=(False, False)), row("", 10, (7.0, 1.0)),
    ]  # fmt: skip
    groups = by_group(rows)
    assert list(groups["loss_by_category"]) == ["a", "b"] and set(groups["exact_match_by_category"]) == {"b"}
    assert groups["loss_by_category"]["b"] | {"low": 0, "high": 0} == {
        "rows": 2, "base": 3.0, "adapter": 1.5, "gain": 1.5, "low": 0, "high": 0,
    }  # fmt: skip
    assert groups["loss_by_category"]["a"]["gain"] == -0.5 and groups["token_accuracy_by_category"]["a"]["gain"] == 0.5
    assert groups["exact_match_by_category"]["b"]["adapter"] == 0.5
    assert list(groups["loss_by_length"]) == [f"up to {top} tokens" for top in (5, 9, 10, 90)]
    assert list(groups["exact_match_by_length"]) == ["up to 9 tokens", "up to 90 tokens"]


def test_lengths_are_grouped_by_quartile():
    assert length_groups([5, 9, 10, 90]) == [f"up to {top} tokens" for top in (5, 9, 10, 90)]
    assert length_groups([7, 7, 7]) == ["up to 7 tokens"] * 3
