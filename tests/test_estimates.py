"""The tokens that plan estimates for local rows, compared with what prepare counts, for each template and format."""

import csv
import json

import pytest
from conftest import data_params, no_progress, paths_in

from recipe.planning import token_sample
from recipe.planning.token_estimate import local_text, text_tokens
from recipe.planning.token_sample import local_tokens, sample_tokens

FORMATS = ("json", "jsonl", "csv", "parquet")
FACTOR = 1.6  # without a tokenizer, the estimate is between 1 / FACTOR and FACTOR of the real number
WORDS = "the river under an old bridge carries small boats to every town that buys salt and paper in spring".split()
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Return the weather of a city.",
          "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]  # fmt: skip


def text(number, length):
    return " ".join(WORDS[(number * 7 + place * (number % 5 + 1)) % len(WORDS)] for place in range(length))


def messages(number, keys=("role", "content"), roles=("user", "assistant")):
    return [{keys[0]: roles[turn % 2], keys[1]: text(number + turn, 3 + number % 7)} for turn in range(4)]


ROWS = {
    "alpaca": ({}, lambda n: {"instruction": text(n, 9), "input": text(n, n % 3), "output": text(n + 1, 12)}),
    "alpaca_chat": ({"chat_template": "plain"}, lambda n: {"instruction": text(n, 9), "output": text(n + 1, 12)}),
    "text": ({"columns": {"text": "text"}}, lambda n: {"text": text(n, 60)}),
    "prompt_completion": ({}, lambda n: {"prompt": text(n, 20), "completion": text(n + 1, 20)}),
    "prompt_completion_chat": (
        {"chat_template": "plain"}, lambda n: {"prompt": text(n, 5), "completion": text(n + 1, 7)}
    ),
    "chat": ({"chat_template": "plain"}, lambda n: {"messages": messages(n)}),
    "sharegpt": (
        {"template": "chat", "chat_template": "chatml", "columns": {"messages": "conversations"}},
        lambda n: {"conversations": messages(n, ("from", "value"), ("human", "gpt"))},
    ),
    "tools": (
        {"template": "chat", "chat_template": "plain", "columns": {"messages": "messages", "tools": "tools"}},
        lambda n: {"messages": messages(n), "tools": json.dumps(TOOLS)},
    ),
}  # fmt: skip
COLUMNS = {"alpaca": ("instruction", "input", "output"), "alpaca_chat": ("instruction", "output"),
           "chat": ("messages",)}  # fmt: skip


def write(folder, rows, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    path = folder / f"train.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
                for row in rows
            )
    return path


@pytest.fixture(scope="module")
def gpt2(shared, tmp_path_factory):
    """A folder with GPT-2's tokenizer, as fetch writes it."""
    from recipe.fetch.xgen_tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("gpt2")
    for source, name in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (folder / name).symlink_to(shared / "gpt2" / source)
    tokenizer = build_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.mark.parametrize("name", ROWS)
def test_the_estimate_is_exact_with_the_tokenizer_and_within_a_factor_without(name, gpt2, sequence_params, tmp_path):
    from types import SimpleNamespace

    from recipe.fetch.stage import fetch_data
    from recipe.prepare.stage import prepare

    settings, make = ROWS[name]
    columns = COLUMNS.get(name, ("prompt", "completion"))
    sequence = sequence_params(**{"template": name, "columns": {key: key for key in columns}, **settings})
    files = [write(tmp_path / suffix, [make(number) for number in range(120)], suffix) for suffix in FORMATS]
    paths = paths_in(tmp_path, folder=tmp_path, base=gpt2)
    fetch_data(data_params("jsonl"), paths)
    tokens = prepare(sequence, paths, no_progress)["tokens"]
    counted = tokens["train"] + tokens["validation"]
    params = {"sequence": sequence, "model": SimpleNamespace(source="hub")}
    for path in files:
        assert local_tokens(params, [path], paths) == counted
        rows, size, _ = local_text([path], set(sequence.columns.values()))
        estimate = text_tokens(sequence.template, rows, size)
        print(f"{path.name}: {estimate:,} estimated, {counted:,} counted")
        assert counted / FACTOR < estimate < counted * FACTOR


def test_a_sample_of_many_rows_is_tokenized_and_long_rows_are_cut(gpt2, sequence_params, tmp_path, monkeypatch):
    from recipe.tokens.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(gpt2 / "tokenizer")
    rows = [{"text": text(n, 400 if n % 2 else 20)} for n in range(400)]
    path = write(tmp_path / "rows", rows, "jsonl")

    def estimate(**changes):
        return sample_tokens(sequence_params(template="text", columns={"text": "text"}, **changes), [path], tokenizer)

    exact = estimate(max_length=2048)
    assert estimate(max_length=64) < 400 * 64 and estimate(max_length=64, on_overlong="drop") < exact / 10
    assert estimate(max_length=64, on_overlong="error") == exact
    monkeypatch.setattr(token_sample, "NUM_ROWS", 100)
    assert exact / 1.2 < estimate(max_length=2048) < exact * 1.2 and estimate(max_length=2048) != exact


def test_without_a_fetched_tokenizer_a_local_model_is_used_and_a_hub_model_is_not(tiny_base, sequence_params, tmp_path):
    from types import SimpleNamespace

    path = write(tmp_path / "rows", [ROWS["alpaca"][1](number) for number in range(120)], "jsonl")
    paths = paths_in(tmp_path, base=tmp_path / "none")
    local = {"sequence": sequence_params(), "model": SimpleNamespace(source=str(tiny_base))}
    assert local_tokens(local, [path], paths) > 120
    assert local_tokens({**local, "model": SimpleNamespace(source="hub")}, [path], paths) is None
