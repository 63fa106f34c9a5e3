"""The amount of text in a source: what plan estimates before a fetch, compared with what prepare counts."""

import json

import pytest
from conftest import data_params, no_progress, paths_in, write_jsonl

from recipe.core.errors import DataError
from recipe.planning.token_estimate import MESSAGE_CHARS, local_text, parquet_text, text_tokens

COLUMNS = {"instruction", "input", "output"}


@pytest.fixture
def parquet(shared, tmp_path):
    """Alpaca's first 999 rows in the Hub's format: Parquet, with the fourth column `text`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = json.loads((shared / "alpaca_en_999.json").read_text())
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "text": "not read " * 50} for row in rows]), path)
    return path


def test_the_estimated_tokens_of_alpaca_are_within_a_tenth(parquet, shared, sequence_params, tmp_path):
    """The estimate includes only the columns that the template reads, and the text that it adds."""
    from recipe.fetch.stage import fetch_data
    from recipe.fetch.xgen_tokenizer import build_tokenizer
    from recipe.prepare.stage import prepare

    for source, name in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (tmp_path / name).symlink_to(shared / "gpt2" / source)
    build_tokenizer(tmp_path).save_pretrained(tmp_path / "tokenizer")
    paths = paths_in(tmp_path, folder=tmp_path, base=tmp_path)
    fetch_data(data_params("train.parquet"), paths)
    sequence = sequence_params(max_length=2048, validation_fraction=0.05, on_bad_row="drop")
    meta = prepare(sequence, paths, no_progress)
    import pyarrow.parquet as pq

    rows, size = parquet_text(pq.read_metadata(parquet), COLUMNS)
    counted = meta["tokens"]["train"] * rows / meta["rows"]["train"]
    print(f"{rows} rows: {text_tokens('alpaca', rows, size):,} tokens estimated, {counted:,.0f} counted")
    assert rows == 999
    assert text_tokens("alpaca", rows, size) == pytest.approx(counted, rel=0.1)


def test_a_local_file_is_measured_row_by_row(tmp_path):
    turns = [{"role": "user", "content": "four"}, {"role": "assistant", "content": "twelve bytes"}]
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "aé", "output": "b", "other": "not read"}, {"messages": turns}])
    rows, size, columns = local_text([tmp_path / "a.jsonl"], {*COLUMNS, "messages"})
    assert (rows, size, columns) == (
        2,
        4 + 4 + 4 + 9 + 12 + 2 * MESSAGE_CHARS,
        {"instruction", "output", "other", "messages"},
    )


def test_a_file_that_is_not_parquet_is_rejected(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no footer")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable Parquet file"):
        local_text([tmp_path / "a.parquet"], COLUMNS)
    assert text_tokens("text", 0, 430) == 100
