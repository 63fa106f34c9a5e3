import numpy as np
import pytest

from recipe import comparison
from recipe.comparison import interval, length_groups, loss_by


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


def test_it_is_the_same_each_time_and_however_many_are_drawn_at_once(monkeypatch):
    values, tokens = [1.0, 2.0, 8.0, 1.5], [1, 2, 4, 1]
    first = interval(values, tokens)
    assert interval(values, tokens) == first
    monkeypatch.setattr(comparison, "AT_ONCE", 40)
    assert interval(values, tokens) == first
    assert interval([2.0, 4.0], [1, 2]) == (2.0, 2.0)


def test_losses_by_kind_and_length_weigh_tokens():
    scores = {"adapter": [(1.0, 0, 1), (1.0, 0, 3), (5.0, 0, 1)], "base": [(2.0, 0, 1), (2.0, 0, 3), (5.0, 0, 1)]}
    assert loss_by(["b", "b", ""], scores) == {"b": {"rows": 2, "base": 1.0, "adapter": 0.5}}
    assert length_groups([5, 9, 10, 90]) == [f"up to {top} tokens" for top in (5, 9, 10, 90)]
    assert length_groups([7, 7, 7]) == ["up to 7 tokens"] * 3
