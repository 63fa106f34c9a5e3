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


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = interval(values, np.ones(400))
    error = values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def test_it_covers_the_truth_about_as_often_as_it_says():
    """Of 200 samples of 60 rows with 1 to 9 tokens each."""
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        tokens = rng.integers(1, 10, 60)
        losses = rng.exponential(1.0, 60) * tokens
        low, high = interval(losses, tokens, seed)
        covered += low <= 1.0 <= high
    assert 0.85 <= covered / 200 <= 0.99


def test_of_the_fewest_rows_it_covers_the_truth_in_nine_cases_of_ten():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        low, high = interval(rng.normal(0.0, 1.0, FEWEST_ROWS), [1] * FEWEST_ROWS)
        covered += low <= 0.0 <= high
    assert 0.86 <= covered / 300 <= 0.97


def test_an_interval_has_no_negative_zero():
    assert describe_gain("loss", 0.5, -0.00001, 1.0) == ("0.500 lower", "0.000 to 1.000")
    assert describe_gain("exact_match", -0.2, -0.6, 0.0) == ("20.0 points lower", "0.0 to 60.0 points")


def test_it_is_the_same_each_time_and_however_many_are_drawn_at_once(monkeypatch):
    values, tokens = [1.0, 2.0, 8.0, 1.5], [1, 2, 4, 1]
    first = interval(values, tokens)
    assert interval(values, tokens) == first
    monkeypatch.setattr(comparison, "AT_ONCE", 40)
    assert interval(values, tokens) == first
    assert interval([2.0, 4.0], [1, 2]) == (2.0, 2.0)


def row(category, length, losses, *, trained=1, right=(0, 0), matches=None):
    return ScoredRow(category, length, trained, losses, right, matches)


def test_a_measure_weighs_tokens_and_its_gain_has_an_interval():
    rows = [row("", 9, (2.0, 1.0)), row("", 9, (2.0, 1.0), trained=3, right=(0, 3))] * 5
    loss = compare(rows, "loss")
    assert (loss["rows"], loss["base"], loss["adapter"], loss["gain"]) == (10, 1.0, 0.5, 0.5)
    assert 1 / 3 <= loss["low"] < 0.5 < loss["high"] <= 1.0
    accuracy = compare(rows, "token_accuracy")
    assert (accuracy["base"], accuracy["adapter"], accuracy["gain"]) == (0.0, 0.75, 0.75)


def test_only_rows_that_were_answered_count_for_exact_matches():
    answered = [row("", 9, (1.0, 1.0), matches=(False, True)), row("", 9, (1.0, 1.0), matches=(True, True))]
    one = compare([*answered, row("", 9, (1.0, 1.0))], "exact_match")
    assert (one["rows"], one["base"], one["adapter"], one["gain"]) == (2, 0.5, 1.0, 0.5)
    assert compare([row("", 9, (1.0, 1.0))], "exact_match") is None


def test_all_rows_together_weigh_tokens_and_count_matches():
    one = {"losses": (2.0, 2.0), "trained": 1, "right": (1, 1)}, {"losses": (1.0, 4.0), "trained": 3, "right": (1, 3)}
    matches = [(True, False), (False, False), (False, True), (True, True)]
    made = overall([row("", 9, matches=matches[n], **one[n % 2]) for n in range(4)])
    assert made["base"] == {
        "loss": 0.75, "perplexity": round(math.exp(0.75), 4), "token_accuracy": 0.5, "exact_match": 0.5,
    }  # fmt: skip
    assert made["adapter"]["loss"] == 1.5 and made["adapter"]["token_accuracy"] == 1.0
    assert made["difference"]["loss"] == -0.75 and made["difference"]["exact_match"] == 0.0
    unasked = overall([row("", 9, (2.0, 1.0))])
    assert unasked["base"]["exact_match"] is None and "exact_match" not in unasked["difference"]


def test_answers_that_are_all_alike_have_no_interval():
    """32 that are wrong before and after may still be a few right ones of 100: drawn again they are always the same."""
    alike = [row("", 9, (1.0, 1.0), matches=(False, False))] * 32
    assert (compare(alike, "exact_match")["gain"], compare(alike, "exact_match")["low"]) == (0.0, None)
    assert compare([*alike, row("", 9, (1.0, 1.0), matches=(False, True))], "exact_match")["low"] == 0.0
    assert compare(alike, "loss")["low"] == 0.0


def test_few_rows_have_no_interval_and_the_headline_says_so():
    few = [row("", 9, (2.0, 1.0))] * (FEWEST_ROWS - 1)
    assert compare(few, "loss")["low"] is None and compare([*few, few[0]], "loss")["low"] == 1.0
    results = {"rows": 9, "base": {"loss": 2.0}, "adapter": {"loss": 1.0, "exact_match": None}}
    assert headline(results | {"difference": overall(few)["difference"]}) == (
        "The adapter seems better than its base: validation loss 1.000 against 2.000 (1.000 lower, on 9 rows, too few "
        "for an interval)."
    )


def test_measures_by_kind_and_by_length():
    rows = [
        row("b", 90, (4.0, 1.0), matches=(False, True)), row("a", 5, (2.0, 3.0), trained=2, right=(1, 2)),
        row("b", 9, (2.0, 2.0), matches=(False, False)), row("", 10, (7.0, 1.0)),
    ]  # fmt: skip
    made = by_group(rows)
    assert list(made["loss_by_category"]) == ["a", "b"] and set(made["exact_match_by_category"]) == {"b"}
    assert made["loss_by_category"]["b"] | {"low": 0, "high": 0} == {
        "rows": 2, "base": 3.0, "adapter": 1.5, "gain": 1.5, "low": 0, "high": 0,
    }  # fmt: skip
    assert made["loss_by_category"]["a"]["gain"] == -0.5 and made["token_accuracy_by_category"]["a"]["gain"] == 0.5
    assert made["exact_match_by_category"]["b"]["adapter"] == 0.5
    assert list(made["loss_by_length"]) == [f"up to {top} tokens" for top in (5, 9, 10, 90)]
    assert list(made["exact_match_by_length"]) == ["up to 9 tokens", "up to 90 tokens"]


def test_lengths_are_grouped_by_quarters_of_the_rows():
    assert length_groups([5, 9, 10, 90]) == [f"up to {top} tokens" for top in (5, 9, 10, 90)]
    assert length_groups([7, 7, 7]) == ["up to 7 tokens"] * 3
