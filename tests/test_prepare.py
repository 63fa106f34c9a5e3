import gc
import json
import shutil

import numpy as np
import pytest
from conftest import alpaca, no_progress, paths_in, toy_rows

from recipe.core.errors import DataError
from recipe.core.io import sha256_tree
from recipe.prepare.examples import in_validation
from recipe.prepare.stage import prepare
from recipe.prepare.tokenize import tokenize
from recipe.prepare.tokenized_rows import infrequent_gc
from recipe.text.alpaca import alpaca_turns
from recipe.tokens.packing import read_sequences
from recipe.tokens.tokenizer import load_tokenizer


def meta(folder):
    return json.loads((folder / "meta.json").read_text())


def documents(path):
    """Every example in a file of sequences, as (ids, completion_mask)."""
    for row in read_sequences(path):
        ends = np.cumsum(row["seq_lengths"])
        for start, end in zip(ends - row["seq_lengths"], ends, strict=True):
            yield row["input_ids"][start:end].tolist(), row["completion_mask"][start:end].tolist()


@pytest.fixture
def tokenizer(fetched_base):
    return load_tokenizer(fetched_base / "tokenizer")


def test_the_mask_excludes_exactly_the_prompt_and_includes_the_end_token(prepared, tokenizer):
    rows = toy_rows(40)
    folder = prepared(rows)
    expected = {alpaca_turns(row)[0].prompt: row["output"] for row in rows}
    num_examples = 0
    for name in ("train", "validation"):
        for ids, mask in documents(folder / f"{name}.arrow"):
            start = mask.index(True)
            assert not any(mask[:start]) and all(mask[start:])
            assert ids[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id
            assert tokenizer.decode(ids[start:-1]) == expected.pop(tokenizer.decode(ids[:start]))
            num_examples += 1
    assert num_examples == 40 and not expected


def test_loss_on_all_includes_the_prompt(prepared):
    folder = prepared(toy_rows(40), loss_on="all")
    assert all(all(mask) for _, mask in documents(folder / "train.arrow"))


def test_an_end_token_spelled_out_in_a_row_is_plain_text(prepared, tokenizer):
    folder = prepared([alpaca(f"{n}?", "before<|endoftext|>after") for n in range(40)])
    for ids, _ in documents(folder / "train.arrow"):
        assert ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(ids).endswith("before<|endoftext|>after<|endoftext|>")


def test_a_text_column_is_entirely_in_the_loss(prepared, tokenizer):
    rows = [{"text": f"row {n}"} for n in range(40)]
    folder = prepared(rows, template="text", columns={"text": "text"})
    texts = {tokenizer.decode(ids[:-1]) for ids, mask in documents(folder / "train.arrow") if all(mask)}
    assert texts and texts < {row["text"] for row in rows}


def test_the_begin_token_appears_once_before_the_prompt(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    [(ids, mask, *_)] = tokenize([alpaca_turns(alpaca("a", "b"))], tokenizer, loss_on="completion")
    assert ids.tolist().count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert not mask[0]


def prompts(path):
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]


def test_split_is_stable_when_rows_are_reordered_or_added(prepared):
    rows = toy_rows(60)
    first = set(prompts(prepared(rows) / "validation.jsonl"))
    assert 4 <= len(first) <= 22
    assert set(prompts(prepared(rows[::-1]) / "validation.jsonl")) == first
    added = [alpaca(f"Another {n}", "x") for n in range(30)]
    assert first < set(prompts(prepared(added + rows) / "validation.jsonl"))


def test_equal_prompts_are_never_in_both_splits(prepared, tokenizer):
    rows = [alpaca(f"{n % 20}?", f"answer {n}") for n in range(60)]
    folder = prepared(rows)
    validation = prompts(folder / "validation.jsonl")
    train = [tokenizer.decode(ids[: mask.index(True)]) for ids, mask in documents(folder / "train.arrow")]
    assert len(validation) + len(train) == 60 and validation and not set(validation) & set(train)


def test_the_validation_fraction_is_respected():
    digests = [
        n.to_bytes(8, "big") for n in np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64).tolist()
    ]
    assert abs(sum(in_validation(digest, 0.05) for digest in digests) / 20_000 - 0.05) < 0.006


def test_a_leak_between_given_splits_is_reported_with_both_places(prepared):
    with pytest.raises(DataError) as raised:
        prepared([alpaca("a", "1"), alpaca("b", "1")], [alpaca("c", "1"), alpaca("b", "2")])
    assert "found 1 validation rows whose prompts are also in the training rows" in str(raised.value)
    assert "validation.jsonl, line 2 has the same prompt as train.jsonl, line 2" in str(raised.value)


def test_a_given_validation_split_is_used_completely(prepared):
    folder = prepared(toy_rows(10), [alpaca("c", "1"), alpaca("d", "2")])
    assert meta(folder)["rows"] | {"read": 12, "train": 10, "validation": 2} == meta(folder)["rows"]


def test_too_few_rows_to_split_are_an_error(prepared):
    with pytest.raises(DataError, match="the validation split is empty"):
        prepared([alpaca("a", "1")], validation_fraction=0.0001)


LONG = [alpaca(f"{n}?", "word " * 200) for n in range(3)]


def test_overlong_rows_are_truncated_dropped_or_rejected_and_counted(prepared):
    rows = toy_rows(40)
    for on_overlong, count in (("truncate", "truncated"), ("drop", "dropped_overlong")):
        folder = prepared(rows, [*LONG, alpaca("fits", "x")], on_overlong=on_overlong, max_length=256)
        assert meta(folder)["rows"][count] == 3
        assert all(len(ids) <= 256 for ids, _ in documents(folder / "validation.arrow"))
    with pytest.raises(DataError) as raised:
        prepared(rows, LONG, on_overlong="error", max_length=256)
    assert "3 rows exceed sequence.max_length (256 tokens)" in str(raised.value)
    assert "validation.jsonl, line 1: " in str(raised.value)


def test_a_row_whose_prompt_alone_is_too_long_is_dropped_and_counted(prepared):
    folder = prepared(toy_rows(40), [alpaca("word " * 300, "x"), alpaca("fits", "x")], max_length=256)
    assert meta(folder)["rows"]["dropped_without_answer"] == 1
    assert meta(folder)["rows"]["validation"] == 1


BAD = [{"instruction": "x"}, alpaca("x", ""), {"instruction": 3, "output": "x"}]


def test_bad_rows_are_reported_together_with_their_places(prepared):
    with pytest.raises(DataError) as raised:
        prepared([*toy_rows(20), *BAD])
    text = str(raised.value)
    assert text.startswith("3 rows are malformed:")
    for number, reason in ((21, "'output' is missing"), (22, "'output' is empty"), (23, "is a number")):
        assert any(f"train.jsonl, line {number}: " in line and reason in line for line in text.splitlines())


def test_dropped_bad_rows_are_written_to_quarantine(prepared):
    folder = prepared([*toy_rows(20), *BAD], on_bad_row="drop")
    quarantined = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert [row["place"] for row in quarantined] == ["line 21", "line 22", "line 23"]
    assert json.loads(quarantined[2]["content"]) == BAD[2]
    assert meta(folder)["rows"]["quarantined"] == 3 and meta(folder)["rows"]["read"] == 23


def test_a_batch_that_contains_only_bad_rows_is_dropped(prepared, monkeypatch):
    monkeypatch.setattr("recipe.prepare.tokenized_rows.BATCH_ROWS", 2)
    folder = prepared([*BAD[:2], *toy_rows(20), *BAD[:2]], on_bad_row="drop")
    assert meta(folder)["rows"]["quarantined"] == 4 and meta(folder)["rows"]["read"] == 24


def test_garbage_collector_settings_are_restored_after_an_error():
    before = gc.get_threshold(), gc.get_freeze_count()
    with pytest.raises(DataError), infrequent_gc():
        assert gc.get_threshold() != before[0]
        raise DataError("no")
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_the_same_rows_give_the_same_bytes(prepared, tmp_path):
    first = sha256_tree(prepared(toy_rows(40)))
    shutil.rmtree(tmp_path / "prepared")
    assert sha256_tree(prepared(toy_rows(40))) == first
    assert sha256_tree(prepared(toy_rows(41))) != first


def test_without_packing_each_row_is_a_separate_sequence(prepared):
    folder = prepared(toy_rows(40), packing=False)
    assert meta(folder)["sequences"]["train"] == meta(folder)["rows"]["train"]


def test_a_failed_prepare_keeps_the_previous_output(prepared, raw, fetched_base, sequence_params, tmp_path):
    folder = prepared(toy_rows(20))
    before = sha256_tree(folder)
    data = raw([*toy_rows(20), *BAD])
    with pytest.raises(DataError):
        prepare(sequence_params(), paths_in(tmp_path, raw=data, base=fetched_base, prepared=folder), no_progress)
    assert sha256_tree(folder) == before
    assert not list(tmp_path.glob(".prepared*"))


def test_a_misspelled_column_is_an_error_and_a_missing_optional_one_is_not(prepared):
    columns = {"instruction": "instruction", "output": "output", "input": "inptu"}
    with pytest.raises(DataError, match=r"sequence\.columns\.input is 'inptu', but no row"):
        prepared(toy_rows(20), columns=columns)
    rows = [{"instruction": row["instruction"], "output": "x"} for row in toy_rows(20)]
    prepared(rows, columns={**columns, "input": "input", "category": "category"})


def test_line_separators_and_unusual_categories_are_preserved(prepared):
    from recipe.core.io import read_json_lines

    columns = {"instruction": "instruction", "output": "output", "input": "input", "category": "category"}
    rows = [
        {**alpaca(f"{n}\u2028?", "a\u2029b\u0085c"), "category": category}
        for n, category in enumerate([0, "\ud800", None] * 10)
    ]
    answers = read_json_lines(prepared(rows, columns=columns) / "validation.jsonl")
    assert answers and all(row["completion"] == "a\u2029b\u0085c" for row in answers)
    assert {row["category"] for row in answers} <= {"0", "\\ud800", ""}


def test_a_reason_that_many_rows_share_is_listed_once(prepared):
    bad = [{"instruction": f"say {n}", "output": n} for n in range(30)]
    with pytest.raises(DataError) as raised:
        prepared([*bad, alpaca("x", ""), *toy_rows(20)])
    assert str(raised.value).splitlines()[:3] == [
        "31 rows are malformed:",
        "  train.jsonl, line 1: 'output' is a number, not a string (also train.jsonl, line 2; train.jsonl, line 3; and "
        "27 more rows)",
        "  train.jsonl, line 31: 'output' is empty",
    ]
