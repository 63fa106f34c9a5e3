import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.analyze import max_length as module
from recipe.analyze.max_length import candidates, limits, recommend


def of(rows, chosen):
    """Limits of rows whose answers begin at the tenth token."""
    return limits(rows, [9] * len(rows), chosen)


def test_candidates_are_powers_of_two_until_few_rows_are_cut_and_the_chosen_limit():
    assert candidates([854], 1024) == [64, 128, 256, 512, 1024]
    assert candidates([30], 100) == [64, 100]
    assert candidates([64], 64) == [64] and candidates([65], 64) == [64, 128]
    assert candidates([100] * 199 + [10**6], 512) == [64, 128, 256, 512]  # however long the longest is


def test_what_a_limit_cuts_loses_and_costs_is_counted():
    made = {one.max_length: one for one in limits([64, 128, 128, 192], [9] * 4, chosen=128)}
    assert list(made) == [64, 128, 256]
    assert made[64].rows_cut == 0.75 and made[64].tokens_lost == 0.5 and made[64].filled == 1.0
    assert made[64].cost == 0.5  # four sequences of 64 in place of four of 128
    assert made[128].rows_cut == 0.25 and made[128].tokens_lost == 0.125
    assert made[128].filled == 448 / 512 and made[128].cost == 1.0
    assert made[256].rows_cut == made[256].tokens_lost == 0.0
    assert made[256].filled == 1.0 and made[256].cost == 1.0  # 192 + 64 and 128 + 128


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60), st.integers(8, 2048))
def test_shares_are_shares_and_the_longest_limit_cuts_nothing_of_what_it_holds(rows, chosen):
    made = limits(rows, [min(7, row) for row in rows], chosen)
    for one in made:
        assert 0 <= one.tokens_lost < 1 and 0 <= one.rows_cut <= 1 and 0 < one.filled <= 1 and not one.rows_dropped
    assert [one.rows_cut for one in made] == sorted((one.rows_cut for one in made), reverse=True)
    assert recommend(made)[0].rows_cut <= 0.01
    assert next(one for one in made if one.max_length == chosen).cost == 1.0


def test_a_row_whose_prompt_fills_the_limit_is_dropped_and_so_is_a_longer_one_where_asked():
    rows, before = [64, 128, 128, 192], [9, 9, 64, 128]
    made = {one.max_length: one for one in limits(rows, before, chosen=128)}
    assert (made[64].rows_cut, made[64].rows_dropped) == (0.25, 0.5)
    assert made[64].tokens_lost == (64 + 128 + 192) / 512 and made[64].filled == 1.0 and made[64].cost == 0.333333
    assert (made[128].rows_cut, made[128].rows_dropped, made[128].tokens_lost) == (0.0, 0.25, 192 / 512)
    made = {one.max_length: one for one in limits(rows, [9] * 4, chosen=128, drops=True)}
    assert (made[64].rows_cut, made[64].rows_dropped, made[64].tokens_lost) == (0.0, 0.75, 448 / 512)
    assert made[64].cost == 0.166667
    # A limit that leaves no row is none of those to choose from.
    assert [one.max_length for one in limits([128] * 3, [100] * 3, chosen=128)] == [128]


def test_the_recommended_limit_is_the_shortest_that_cuts_few_rows():
    best, why = recommend(of([100] * 300 + [600], 1024))
    assert best.max_length == 128 and best.tokens_lost == 0.015425  # one long row is no reason
    best, why = recommend(of([100] * 95 + [600] * 5, 1024))
    assert best.max_length == 1024 and best.rows_cut == 0.0
    best, why = recommend(of([100] * 3000 + [130], 1024))
    assert best.max_length == 128 and why.startswith("128 is the shortest")
    assert "of the rows: 0.03%, with 0.00% of the tokens" in why


def test_of_many_rows_a_sample_is_packed(monkeypatch):
    rows = [10, 20, 30, 64] * 50
    whole = of(rows, 64)
    monkeypatch.setattr(module, "SAMPLE", 60)
    part = of(rows, 64)
    assert [one.rows_cut for one in part] == [one.rows_cut for one in whole]
    assert part[0].filled == pytest.approx(whole[0].filled, abs=0.15)
