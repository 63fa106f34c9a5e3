import gc
import json
import shutil

import numpy as np
import pytest
from conftest import alpaca, no_progress, paths_in, toy_rows

from recipe.core.errors import DataError
from recipe.core.io import sha256_tree
from recipe.prepare.examples import in_validation
from recipe.prepare.stage import collector_spared, prepare, tokenize
from recipe.text.templates import alpaca_turns
from recipe.tokens.packing import read_sequences
from recipe.tokens.tokenizer import load_tokenizer


def meta(folder):
    return json.loads((folder / "meta.json").read_text())


def documents(path):
    """Every example in a file of sequences as (ids, trained)."""
    for row in read_sequences(path):
        ends = np.cumsum(row["seq_lengths"])
        for start, end in zip(ends - row["seq_lengths"], ends, strict=True):
            yield row["input_ids"][start:end].tolist(), row["completion_mask"][start:end].tolist()


@pytest.fixture
def tokenizer(fetched_base):
    return load_tokenizer(fetched_base / "tokenizer")


def test_masked_tokens_are_exactly_the_prompt_and_the_end_token_is_trained(prepared, tokenizer):
    rows = toy_rows(40)
    made = prepared(rows)
    wanted = {alpaca_turns(row)[0].prompt: row["output"] for row in rows}
    seen = 0
    for name in ("train", "validation"):
        for ids, trained in documents(made / f"{name}.arrow"):
            split = trained.index(True)
            assert not any(trained[:split]) and all(trained[split:])
            assert ids[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id
            assert tokenizer.decode(ids[split:-1]) == wanted.pop(tokenizer.decode(ids[:split]))
            seen += 1
    assert seen == 40 and not wanted


def test_loss_on_all_trains_the_prompt_too(prepared):
    made = prepared(toy_rows(40), loss_on="all")
    assert all(all(trained) for _, trained in documents(made / "train.arrow"))


def test_the_end_token_spelled_out_in_a_row_is_plain_text(prepared, tokenizer):
    made = prepared([alpaca(f"{n}?", "before<|endoftext|>after") for n in range(40)])
    for ids, _ in documents(made / "train.arrow"):
        assert ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(ids).endswith("before<|endoftext|>after<|endoftext|>")


def test_a_ready_text_column_is_trained_whole(prepared, tokenizer):
    rows = [{"text": f"row {n}"} for n in range(40)]
    made = prepared(rows, template="text", columns={"text": "text"})
    found = sorted(tokenizer.decode(ids[:-1]) for ids, trained in documents(made / "train.arrow") if all(trained))
    assert found and set(found) < {row["text"] for row in rows}


def test_a_begin_token_stands_once_before_the_prompt(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    [(ids, trained)] = tokenize([alpaca_turns(alpaca("a", "b"))], tokenizer, loss_on="completion")
    assert ids.tolist().count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert not trained[0]


def prompts(path):
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]


def test_split_is_stable_when_rows_are_reordered_or_added(prepared):
    rows = toy_rows(60)
    first = set(prompts(prepared(rows) / "validation.jsonl"))
    assert 4 <= len(first) <= 22
    assert set(prompts(prepared(rows[::-1]) / "validation.jsonl")) == first
    more = [alpaca(f"Another {n}", "x") for n in range(30)]
    assert first < set(prompts(prepared(more + rows) / "validation.jsonl"))


def test_equal_prompts_never_stand_on_both_sides(prepared, tokenizer):
    rows = [alpaca(f"{n % 20}?", f"answer {n}") for n in range(60)]
    made = prepared(rows)
    held = prompts(made / "validation.jsonl")
    trained = [tokenizer.decode(ids[: t.index(True)]) for ids, t in documents(made / "train.arrow")]
    assert len(held) + len(trained) == 60 and held and not set(held) & set(trained)


def test_the_share_of_validation_is_as_asked():
    digests = [
        n.to_bytes(8, "big") for n in np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64).tolist()
    ]
    assert abs(sum(in_validation(one, 0.05) for one in digests) / 20_000 - 0.05) < 0.006


def test_a_leak_between_given_splits_is_an_error_with_both_places(prepared):
    with pytest.raises(DataError) as raised:
        prepared([alpaca("a", "1"), alpaca("b", "1")], [alpaca("c", "1"), alpaca("b", "2")])
    assert "1 validation rows leak" in str(raised.value)
    assert "validation.jsonl, line 2 has the prompt of train.jsonl, line 2" in str(raised.value)


def test_a_given_validation_split_is_used_whole(prepared):
    made = prepared(toy_rows(10), [alpaca("c", "1"), alpaca("d", "2")])
    assert meta(made)["rows"] | {"read": 12, "train": 10, "validation": 2} == meta(made)["rows"]


def test_too_few_rows_to_split_are_an_error(prepared):
    with pytest.raises(DataError, match="no row fell into validation"):
        prepared([alpaca("a", "1")], validation_fraction=0.0001)


LONG = [alpaca(f"{n}?", "word " * 200) for n in range(3)]


def test_overlong_rows_are_cut_dropped_or_refused_and_counted(prepared):
    rows = toy_rows(40)
    for overlong, counted in (("truncate", "truncated"), ("drop", "dropped_overlong")):
        made = prepared(rows, [*LONG, alpaca("fits", "x")], on_overlong=overlong, max_length=256)
        assert meta(made)["rows"][counted] == 3
        assert all(len(ids) <= 256 for ids, _ in documents(made / "validation.arrow"))
    with pytest.raises(DataError) as raised:
        prepared(rows, LONG, on_overlong="error", max_length=256)
    assert "3 rows are longer than sequence.max_length, 256 tokens" in str(raised.value)
    assert "validation.jsonl, line 1: " in str(raised.value)


def test_a_row_whose_prompt_alone_is_too_long_is_dropped_and_counted(prepared):
    made = prepared(toy_rows(40), [alpaca("word " * 300, "x"), alpaca("fits", "x")], max_length=256)
    assert meta(made)["rows"]["dropped_without_answer"] == 1
    assert meta(made)["rows"]["validation"] == 1


BAD = [{"instruction": "x"}, alpaca("x", ""), {"instruction": 3, "output": "x"}]


def test_bad_rows_are_refused_together_with_their_places(prepared):
    with pytest.raises(DataError) as raised:
        prepared([*toy_rows(20), *BAD])
    text = str(raised.value)
    assert text.startswith("3 rows are malformed:")
    for number, reason in ((21, "'output' is missing"), (22, "'output' is empty"), (23, "is a number")):
        assert any(f"train.jsonl, line {number}: " in line and reason in line for line in text.splitlines())


def test_dropped_bad_rows_stand_in_quarantine(prepared):
    made = prepared([*toy_rows(20), *BAD], on_bad_row="drop")
    kept = [json.loads(line) for line in (made / "quarantine.jsonl").read_text().splitlines()]
    assert [row["place"] for row in kept] == ["line 21", "line 22", "line 23"]
    assert json.loads(kept[2]["content"]) == BAD[2]
    assert meta(made)["rows"]["quarantined"] == 3 and meta(made)["rows"]["read"] == 23


def test_a_batch_of_bad_rows_alone_is_dropped_like_any_other(prepared, monkeypatch):
    monkeypatch.setattr("recipe.prepare.stage.BATCH_ROWS", 2)
    made = prepared([*BAD[:2], *toy_rows(20), *BAD[:2]], on_bad_row="drop")
    assert meta(made)["rows"]["quarantined"] == 4 and meta(made)["rows"]["read"] == 24


def test_the_garbage_collector_is_as_it_was_after_an_error():
    before = gc.get_threshold(), gc.get_freeze_count()
    with pytest.raises(DataError), collector_spared():
        assert gc.get_threshold() != before[0]
        raise DataError("no")
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_the_same_rows_give_the_same_bytes(prepared, tmp_path):
    first = sha256_tree(prepared(toy_rows(40)))
    shutil.rmtree(tmp_path / "prepared")
    assert sha256_tree(prepared(toy_rows(40))) == first
    assert sha256_tree(prepared(toy_rows(41))) != first


def test_without_packing_each_row_is_a_sequence(prepared):
    made = prepared(toy_rows(40), packing=False)
    assert meta(made)["sequences"]["train"] == meta(made)["rows"]["train"]


def test_a_failed_prepare_leaves_what_was_there(prepared, raw, fetched_base, sequence_params, tmp_path):
    made = prepared(toy_rows(20))
    before = sha256_tree(made)
    data = raw([*toy_rows(20), *BAD])
    with pytest.raises(DataError):
        prepare(sequence_params(), paths_in(tmp_path, raw=data, base=fetched_base, prepared=made), no_progress)
    assert sha256_tree(made) == before
    assert not list(tmp_path.glob(".prepared*"))


def test_a_misspelled_column_is_an_error_and_a_missing_optional_one_is_not(prepared):
    columns = {"instruction": "instruction", "output": "output", "input": "inptu"}
    with pytest.raises(DataError, match=r"sequence\.columns\.input names the column 'inptu', which no row"):
        prepared(toy_rows(20), columns=columns)
    rows = [{"instruction": row["instruction"], "output": "x"} for row in toy_rows(20)]
    prepared(rows, columns={**columns, "input": "input", "category": "category"})


def test_line_separators_and_odd_categories_survive(prepared):
    from recipe.core.io import read_json_lines

    columns = {"instruction": "instruction", "output": "output", "input": "input", "category": "category"}
    rows = [
        {**alpaca(f"{n}\u2028?", "a\u2029b\u0085c"), "category": kind}
        for n, kind in enumerate([0, "\ud800", None] * 10)
    ]
    found = read_json_lines(prepared(rows, columns=columns) / "validation.jsonl")
    assert found and all(row["completion"] == "a\u2029b\u0085c" for row in found)
    assert {row["category"] for row in found} <= {"0", "\\ud800", ""}
