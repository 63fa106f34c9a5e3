"""The record of every optimizer step: which rows, with which losses; and the report about the training."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import alpaca, plain_base, toy_rows
from hypothesis import given
from hypothesis import strategies as st

from recipe.core.errors import TrainingError
from recipe.model.load import load_base
from recipe.tokens.packing import read_sequences
from recipe.tokens.tokenizer import load_tokenizer
from recipe.train.ledger import row_texts, worst_rows
from recipe.train.params import LoraParams
from recipe.train.report import find_spikes, last_losses

GARBLED = 41  # the row whose answer is not like the others


def rows_with_a_garbled_answer():
    rows = toy_rows(60)
    rows[GARBLED] = alpaca("Say number 41 and nothing else.", "Q~#`\\|" * 6)
    return rows


def ledger_of(folder):
    return [json.loads(line) for line in (folder / "training" / "ledger.jsonl").read_text().splitlines()]


def test_each_row_is_in_one_step_of_an_epoch_with_its_number_of_loss_tokens(trained, tmp_path):
    records = ledger_of(trained(num_epochs=2))
    metrics = json.loads((tmp_path / "train.json").read_text())
    assert [record["step"] for record in records] == list(range(1, metrics["steps"] + 1))
    sequences = read_sequences(tmp_path / "prepared" / "train.arrow")
    loss_tokens = {}
    for sequence in sequences:
        starts = np.cumsum([0, *sequence["seq_lengths"]])
        for row, start, end in zip(sequence["rows"], starts, starts[1:], strict=False):
            loss_tokens[int(row)] = int(sequence["completion_mask"][start + 1 : end].sum())
    half = len(records) // 2
    for epoch in (records[:half], records[half:]):
        seen = {row: count for record in epoch for row, _, count in record["rows"]}
        assert seen == loss_tokens
        assert sum(len(record["rows"]) for record in epoch) == len(loss_tokens)


def test_the_losses_of_the_rows_are_those_of_the_model_alone(trained, fetched_base, tmp_path):
    """In the first step, the adapter is still the identity, so the base model's loss of each row is known."""
    lora = LoraParams(r=4, alpha=8, dropout=0.1, target_modules="all-linear", untrained_tokens="ignore")
    folder = trained(lora=lora)
    [first, *_] = ledger_of(folder)
    manifest = json.loads((fetched_base / "manifest.json").read_text())
    model = plain_base(fetched_base / manifest["path"], len(load_tokenizer(fetched_base / "tokenizer"))).eval()
    facts = read_sequences(folder / "prepared" / "rows.arrow")
    examples = {}
    for sequence in read_sequences(folder / "prepared" / "train.arrow"):
        starts = np.cumsum([0, *sequence["seq_lengths"]])
        for row, start, end in zip(sequence["rows"], starts, starts[1:], strict=False):
            examples[int(row)] = (sequence["input_ids"][start:end], sequence["completion_mask"][start:end])
    total, count = 0.0, 0
    for row, loss, num_tokens in first["rows"]:
        ids, mask = (torch.tensor(np.asarray(values, dtype=np.int64)) for values in examples[row])
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")[mask[1:].bool()]
        assert losses.mean().item() == pytest.approx(loss, rel=1e-4), facts[row]["place"]
        total, count = total + losses.sum().item(), count + num_tokens
    assert first["loss"] == pytest.approx(total / count, rel=1e-5)


def test_row_numbers_lead_to_the_rows_of_the_file_even_if_rows_were_dropped(prepared, tmp_path):
    rows = [alpaca("Say it.", "y " * (400 if n % 3 == 0 else 4 + n)) for n in range(12)]  # every third is too long
    folder = prepared(rows, [alpaca("Tell.", "x")], on_overlong="drop", max_length=256)
    facts = read_sequences(folder / "rows.arrow")
    seen = []
    for sequence in read_sequences(folder / "train.arrow"):
        for row, length in zip(sequence["rows"], sequence["seq_lengths"], strict=True):
            assert facts[int(row)]["num_tokens"] == length and facts[int(row)]["split"] == "train"
            seen.append(facts[int(row)]["place"])
    assert sorted(seen) == sorted(f"line {n + 1}" for n in range(12) if n % 3)


def test_the_report_names_the_hardest_row_by_file_line_and_text(trained):
    folder = trained(rows_with_a_garbled_answer(), num_epochs=6)
    facts = read_sequences(folder / "prepared" / "rows.arrow")
    row, loss, _ = last_losses(ledger_of(folder))[0]
    place = facts[row]["place"]
    assert loss > 1 and facts[row]["file"] == "train.jsonl"
    page = (folder / "training" / "index.html").read_text()
    assert f"train.jsonl, {place}" in page and "The hardest rows" in page
    garbled = [number for number in range(len(facts)) if facts[number]["place"] == f"line {GARBLED + 1}"]
    assert garbled == [row]
    assert "Q~#`\\|" in page


def test_texts_are_the_end_of_the_prompt_and_the_start_of_the_completion(prepared, fetched_base, tmp_path):
    folder = prepared([alpaca(f"Now, please, say number {n}.", f"{n} now") for n in range(30)])
    sequences, facts = read_sequences(folder / "train.arrow"), read_sequences(folder / "rows.arrow")
    train = [row for row in range(len(facts)) if facts[row]["split"] == "train"]
    texts = row_texts(sequences, train, load_tokenizer(fetched_base / "tokenizer"))
    for row, text in zip(train, texts, strict=True):
        number = int(facts[row]["place"].removeprefix("line ")) - 1
        assert text.startswith("…") and f"say number {number}." in text
        assert text.split(" → ")[1].startswith(f"{number} now")


def test_a_loss_that_is_not_finite_is_reported_with_its_rows(trained, monkeypatch):
    import recipe.train.stage

    def load_broken_base(*args, **kwargs):
        model = load_base(*args, **kwargs)
        with torch.no_grad():  # the embedding of a single token
            model.model.embed_tokens.weight[rare] = math.nan
        return model

    rows = rows_with_a_garbled_answer()
    [rare] = {ids for ids in _ids("~") if len(_ids("~")) == 1}
    monkeypatch.setattr(recipe.train.stage, "load_base", load_broken_base)
    with pytest.raises(TrainingError) as error:
        trained(rows, num_epochs=1)
    message = str(error.value)
    assert "the loss is nan" in message and "The rows with the highest loss in this step:" in message
    assert message.splitlines()[1] == f"  train.jsonl, line {GARBLED + 1}: nan"


def _ids(text):
    from tokenizers import pre_tokenizers

    return [sorted(pre_tokenizers.ByteLevel.alphabet()).index(text) + 1]


def test_nan_is_the_worst_and_unknown_losses_are_left_out():
    records = [[1, 0.5, 3], [2, math.nan, 3], [3, 9.0, 3], [4, None, 3], [5, math.inf, 1]]
    assert [row for row, _, _ in worst_rows(records, 3)] == [2, 5, 3]


def test_a_spike_is_found_and_noise_is_not():
    rng = np.random.default_rng(1)
    noise = (2 * np.exp(-np.arange(300) / 80) + 1 + rng.normal(0, 0.05, 300)).tolist()
    assert find_spikes(noise) == []
    assert find_spikes([*noise[:200], noise[200] + 1, *noise[201:]]) == [200]
    assert find_spikes([5.0, 1.0, 9.0]) == []  # too few steps before it


@given(st.lists(st.floats(0, 1e6), max_size=80))
def test_spikes_never_fail_and_never_include_the_first_steps(values):
    assert all(index >= 10 and values[index] > max(values[max(0, index - 50) : index]) for index in find_spikes(values))
