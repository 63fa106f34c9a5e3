import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.analyze import max_length as module
from recipe.analyze.max_length import candidates, limits, recommend


def limits_of(rows, configured):
    """Limits of rows whose answers begin at the tenth token."""
    return limits(rows, [9] * len(rows), configured)


def by_limit(results):
    return {result.max_length: result for result in results}


def test_candidates_are_powers_of_two_until_few_rows_are_cut_and_the_configured_limit():
    assert candidates([854], 1024) == [64, 128, 256, 512, 1024]
    assert candidates([30], 100) == [64, 100]
    assert candidates([64], 64) == [64] and candidates([65], 64) == [64, 128]
    assert candidates([100] * 199 + [10**6], 512) == [
        64,
        128,
        256,
        512,
    ]  # the length of the longest row does not matter


def test_effect_of_a_limit_on_rows_tokens_and_cost():
    results = by_limit(limits([64, 128, 128, 192], [9] * 4, configured=128))
    assert list(results) == [64, 128, 256]
    assert results[64].rows_cut == 0.75 and results[64].tokens_lost == 0.5 and results[64].filled == 1.0
    assert results[64].cost == 0.5  # four sequences of 64 instead of four of 128
    assert results[128].rows_cut == 0.25 and results[128].tokens_lost == 0.125
    assert results[128].filled == 448 / 512 and results[128].cost == 1.0
    assert results[256].rows_cut == results[256].tokens_lost == 0.0
    assert results[256].filled == 1.0 and results[256].cost == 1.0  # 192 + 64 and 128 + 128


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60), st.integers(8, 2048))
def test_shares_are_in_range_and_longer_limits_do_not_cut_more_rows(rows, configured):
    results = limits(rows, [min(7, row) for row in rows], configured)
    for limit in results:
        assert 0 <= limit.tokens_lost < 1 and 0 <= limit.rows_cut <= 1 and 0 < limit.filled <= 1
        assert limit.rows_dropped == 0
    assert [limit.rows_cut for limit in results] == sorted((limit.rows_cut for limit in results), reverse=True)
    assert recommend(results, configured)[0].rows_cut <= 0.01
    assert by_limit(results)[configured].cost == 1.0


def test_row_is_dropped_if_its_prompt_fills_the_limit_or_if_overlong_rows_are_dropped():
    rows, loss_starts = [64, 128, 128, 192], [9, 9, 64, 128]
    results = by_limit(limits(rows, loss_starts, configured=128))
    assert (results[64].rows_cut, results[64].rows_dropped) == (0.25, 0.5)
    assert (
        results[64].tokens_lost == (64 + 128 + 192) / 512 and results[64].filled == 1.0 and results[64].cost == 0.333333
    )
    assert (results[128].rows_cut, results[128].rows_dropped, results[128].tokens_lost) == (0.0, 0.25, 192 / 512)
    results = by_limit(limits(rows, [9] * 4, configured=128, drop_overlong=True))
    assert (results[64].rows_cut, results[64].rows_dropped, results[64].tokens_lost) == (0.0, 0.75, 448 / 512)
    assert results[64].cost == 0.166667
    # A limit that leaves no rows is not a candidate.
    assert list(by_limit(limits([128] * 3, [100] * 3, configured=128))) == [128]


def test_recommended_limit_is_the_shortest_that_cuts_few_rows():
    best, reason = recommend(limits_of([100] * 300 + [600], 128), 128)
    assert best.max_length == 128 and best.tokens_lost == 0.015425  # a single long row does not justify a longer limit
    best, reason = recommend(limits_of([100] * 95 + [600] * 5, 1024), 1024)
    assert best.max_length == 1024 and best.rows_cut == 0.0
    best, reason = recommend(limits_of([125] * 3000 + [130], 1024), 1024)
    assert best.max_length == 128 and reason.startswith("128 tokens is the smallest")
    assert "it cuts or drops 0.03% of them and loses 0.00% of the tokens" in reason


def test_the_reason_for_a_limit_does_not_contradict_the_table():
    """A shorter limit may fill fewer positions, and a longer one may cost twice as much."""
    results = limits_of([75] * 12, 256)  # one row per sequence of 128, three per sequence of 256
    best, reason = recommend(results, 256)
    assert best.max_length == 256 and "128 also would, but it costs 1.50 times as much" in reason
    results = limits([100, 128, 120, 600], [9] * 4, 1024)
    best, reason = recommend(results, 1024)
    assert best.max_length == 1024 and "longer" not in reason
    results = limits_of([100, 130, 250], 256)
    best, reason = recommend(results, 256)
    longer = [f"{limit.cost:.2f}" for limit in results if limit.max_length > best.max_length]
    assert f"It costs {best.cost:.2f}" in reason if longer else "longer" not in reason
    results = limits_of([30] * 2, 512)
    best, reason = recommend(results, 512)
    assert best.max_length == 64 and "It costs 0.12, and longer limits cost 1.00." in reason


def test_only_a_sample_of_many_rows_is_packed(monkeypatch):
    rows = [10, 20, 30, 64] * 50
    complete = limits_of(rows, 64)
    packed = []
    pack = module.pack_best_fit
    monkeypatch.setattr(
        module, "pack_best_fit", lambda lengths, limit: packed.append(len(lengths)) or pack(lengths, limit)
    )
    monkeypatch.setattr(module, "SAMPLE", 60)
    sampled = limits_of(rows, 64)
    assert packed and max(packed) <= 60
    assert [limit.rows_cut for limit in sampled] == [limit.rows_cut for limit in complete]
    assert sampled[0].filled == pytest.approx(complete[0].filled, abs=0.15)
