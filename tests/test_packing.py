import numpy as np
import pytest
import torch
from conftest import plain_base
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.tokens.packing import (
    IGNORED,
    add_loss_positions,
    collate,
    pack_best_fit,
    read_sequences,
    rows_of_loss_positions,
    write_sequences,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=80), st.integers(64, 128))
def test_every_example_is_packed_once_and_no_sequence_is_too_long(lengths, max_length):
    packed = pack_best_fit(lengths, max_length)
    assert sorted(index for sequence in packed for index in sequence) == list(range(len(lengths)))
    sizes = [sum(lengths[index] for index in sequence) for sequence in packed]
    assert all(0 < size <= max_length for size in sizes)
    # No two sequences fit into one: otherwise best fit would have combined them.
    assert all(a + b > max_length for n, a in enumerate(sizes) for b in sizes[:n])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 32), max_size=40))
def test_packing_matches_a_simple_best_fit_decreasing_loop(lengths):
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rooms = [32 - sum(lengths[i] for i in indices) for indices in bins]
        fitting = [room for room in rooms if room >= lengths[index]]
        if fitting:
            bins[len(rooms) - 1 - rooms[::-1].index(min(fitting))].append(index)
        else:
            bins.append([index])
    # Equally full sequences are interchangeable, so compare only how full they are.
    packed = pack_best_fit(lengths, 32)
    assert sorted(sum(lengths[i] for i in indices) for indices in packed) == sorted(
        sum(lengths[i] for i in indices) for indices in bins
    )


def test_lengths_with_a_long_tail_fill_the_sequences():
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 0.6, 5000), 1, 1024).astype(int).tolist()
    packed = pack_best_fit(lengths, 1024)
    assert sum(lengths) / (len(packed) * 1024) > 0.99


def example(length, mask_start, first_id=0, row=0):
    return np.arange(first_id, first_id + length), np.arange(length) >= mask_start, row


@pytest.mark.parametrize(("vocab_size", "dtype"), [(400, "uint16"), (1 << 16, "uint16"), (70_000, "uint32")])
def test_sequences_round_trip_through_arrow_in_the_narrowest_dtype(tmp_path, vocab_size, dtype):
    path = tmp_path / "s.arrow"
    write_sequences(path, [[example(3, 1), example(2, 0, 9, row=70_000)], [example(4, 2, row=5)]], vocab_size)
    rows = read_sequences(path)
    assert rows[0]["input_ids"].tolist() == [0, 1, 2, 9, 10]
    assert rows.features["input_ids"].feature.dtype == dtype
    assert rows[0]["completion_mask"].tolist() == [False, True, True, True, True]
    assert rows[1]["seq_lengths"].tolist() == [4]
    assert [row["rows"].tolist() for row in rows] == [[0, 70_000], [5]]


def test_collate_marks_borders_and_ignores_first_tokens(tmp_path):
    write_sequences(tmp_path / "s.arrow", [[example(3, 1), example(2, 0, 9)], [example(2, 0, 5)]], 400)
    batch = collate([*read_sequences(tmp_path / "s.arrow")], pad_token_id=7)
    i = IGNORED
    assert batch["input_ids"].tolist() == [[0, 1, 2, 9, 10], [5, 6, 7, 7, 7]]
    assert batch["labels"].tolist() == [[i, 1, 2, i, 10], [i, 6, i, i, i]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert add_loss_positions(batch)["loss_positions"].tolist() == [0, 1, 3, 5]  # each before a label
    assert {tensor.dtype for tensor in add_loss_positions(batch).values()} == {torch.int64}


def test_the_row_of_each_loss_position_is_known(tmp_path):
    examples = [[example(3, 1, row=4), example(2, 0, 9, row=7)], [example(2, 0, 5, row=2)]]
    write_sequences(tmp_path / "s.arrow", examples, 400)
    sequences = [*read_sequences(tmp_path / "s.arrow")]
    batch = add_loss_positions(collate(sequences, pad_token_id=7))
    assert rows_of_loss_positions(sequences, 5, batch["loss_positions"]).tolist() == [4, 4, 7, 2]


@pytest.mark.parametrize("packed", [True, False], ids=["by_document", "sdpa"])
def test_packed_examples_have_the_same_logits_as_separate_examples(tiny_base, packed):
    """Independent of the other examples in the sequence, and of the padding."""

    model = plain_base(tiny_base, 0).eval()
    separate_model = model
    if packed:
        model = plain_base(tiny_base, 0, packed=True).eval()
        assert model.config._attn_implementation == "by_document"
    rng = np.random.default_rng(3)
    lengths = [1, 2, 31, 17, 5, 64]
    examples = [(rng.integers(1, 300, n), np.ones(n, bool)) for n in lengths]
    rows = [
        {
            "input_ids": np.concatenate([ids for ids, _ in part]),
            "completion_mask": np.concatenate([mask for _, mask in part]),
            "seq_lengths": [len(ids) for ids, _ in part],
        }
        for part in (examples, examples[3:])
    ]
    batch = collate(rows, pad_token_id=0)
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        separate = [separate_model(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0] for ids, _ in examples]
    for row, part in ((0, separate), (1, separate[3:])):
        start = 0
        for logits in part:
            torch.testing.assert_close(packed[row, start : start + len(logits)], logits, rtol=1e-5, atol=1e-5)
            start += len(logits)
