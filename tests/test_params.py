from pathlib import Path

import pytest
from conftest import ROOT

from recipe.cli.context import sections
from recipe.core.config import dump_yaml, find_value, load_yaml, read_params
from recipe.core.errors import ParamsError

PARAMS_FILES = [ROOT / "params.yaml", *sorted(ROOT.glob("presets/*/params.yaml"))]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def read(tmp_path, *changes):
    text = TEXT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return read_params(path, sections())


def mistakes(tmp_path, *changes):
    with pytest.raises(ParamsError) as raised:
        read(tmp_path, *changes)
    return str(raised.value)


@pytest.mark.parametrize("path", PARAMS_FILES, ids=str)
def test_every_shipped_params_yaml_is_valid(path):
    read_params(path, sections())


def test_every_key_in_params_yaml_has_a_comment():
    uncommented = [line for line in TEXT.splitlines() if ": " in line and "#" not in line]
    assert uncommented == [f"    {name}: {name}" for name in ("instruction", "input", "output", "category")]


def test_default_params_match_the_tutorial():
    params = read_params(ROOT / "params.yaml", sections())
    lora, train = params["lora"], params["train"]
    assert (lora.r, lora.alpha, lora.dropout, lora.target_modules) == (16, 32, 0.05, "all-linear")
    assert (train.lr_schedule, train.warmup_ratio, train.num_epochs, train.global_batch_size) == ("linear", 0.1, 1, 4)


def test_numbers_with_exponents_are_read_as_numbers(tmp_path):
    assert read(tmp_path, ("learning_rate: 3e-3", "learning_rate: 2e-4"))["train"].learning_rate == 2e-4


def test_all_mistakes_are_reported_at_once_with_line_and_closest_key(tmp_path):
    text = mistakes(
        tmp_path,
        ("  r: 16", "  rank: 16"),
        ("learning_rate: 3e-3", "learning_rate: fast"),
        ("warmup_ratio: 0.1", "warmup_ratoi: 0.1"),
        ("on_bad_row: error", "on_bad_row: ignore"),
        ("registry:", "registri:"),
    )
    lines = text.splitlines()
    assert lines[0].endswith("params.yaml has 8 mistakes:")
    number = next(n for n, line in enumerate(TEXT.splitlines(), 1) if "learning_rate" in line)
    assert f'  line {number}, train.learning_rate: found "fast". Input should be a valid number' in lines
    assert any("lora.rank: no such key" in line for line in lines)
    assert any("train.warmup_ratoi: no such key; did you mean train.warmup_ratio?" in line for line in lines)
    assert any("registri: no such section; did you mean registry?" in line for line in lines)
    assert any("lora.r: the key is missing (rank of the update)" in line for line in lines)
    assert any("'error' or 'drop'" in line for line in lines)


def test_a_key_in_the_wrong_section_is_reported_with_the_right_section(tmp_path):
    text = mistakes(tmp_path, ("  r: 16", "  seed: 1\n  r: 16"))
    assert "lora.seed: no such key; did you mean train.seed?" in text


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (("r: 16", "r: 0"), "lora.r: found 0. Input should be greater than or equal to 1"),
        (("r: 16", "r: '16'"), 'lora.r: found "16". Input should be a valid integer'),
        (("packing: true", "packing: 'yes'"), "sequence.packing: found"),
        (("micro_batch_tokens: 1024", "micro_batch_tokens: 3"), "train.micro_batch_tokens: found 3. Input should be"),
        (("checkpointing: auto", "checkpointing: true"), "found true. Input should be 'auto', 'on' or 'off'"),
        (("dtype: auto", "dtype: fp16"), "train.dtype: found \"fp16\". Input should be 'auto' or 'bfloat16'"),
        (("template: alpaca", "template: text"), "columns: the template `text` requires text"),
        (("    category: category", "    catgory: category"), "columns: the template `alpaca` does not use catgory"),
        (("target_modules: all-linear", "target_modules: [q_proj, 3]"), "lora.target_modules"),
        (("dropout: 0.05", "dropout: .nan"), "lora.dropout"),
        (("num_epochs: 1 ", "num_epochs: .inf "), "train.num_epochs"),
        (("target_modules: all-linear", "target_modules: []"), "lora.target_modules"),
        (
            ("target_modules: all-linear", "target_modules: [q_proj, lm_head]"),
            "The output head is not trained",
        ),
    ],
)
def test_an_invalid_value_is_rejected_and_reported(tmp_path, change, part):
    assert part in mistakes(tmp_path, change)


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ("train_split: train ", "data.train"), ("validation_split: ", "data.validation"),
        ("on_overlong: ", "sequence.overlong"), ("global_batch_size: ", "train.batch_size"),
        ("max_generations: ", "evaluate.num_prompts"),
    ],
)  # fmt: skip
def test_the_error_for_a_renamed_key_contains_its_new_name(tmp_path, new, old):
    section, key = old.split(".")
    text = mistakes(tmp_path, (f"  {new}", f"  {key}:{new.partition(':')[2]}"))
    assert f"{old}: renamed to {section}.{new.partition(':')[0]}" in text


def test_unquoted_jinja_gives_one_error(tmp_path):
    """YAML reads double braces as a mapping whose key is a mapping."""
    text = mistakes(tmp_path, ("chat_template: null ", 'chat_template: {{ "x" }} '))
    assert "chat_template" in text and "Traceback" not in text


def test_target_modules_can_be_a_list(tmp_path):
    params = read(tmp_path, ("target_modules: all-linear", "target_modules: [q_proj, v_proj]"))
    assert params["lora"].target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("data: {a: 1\n", "not valid YAML"),
        ("data:\n  a: 1\n  a: 2\n", "line 3"),
        ("- 1\n", "expected a mapping, found CommentedSeq"),
        ("", "expected a mapping, found NoneType"),
        ("data: 3\n", "data: found 3"),
        ("data:\n  2026-01-01: 1\n3: 4\n", "no such section"),
    ],
)
def test_an_invalid_file_gives_one_error(tmp_path, text, part):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=part):
        read_params(path, sections())


def test_a_missing_or_binary_file_gives_one_error(tmp_path):
    with pytest.raises(ParamsError, match="recipe new NAME"):
        read_params(tmp_path / "params.yaml", sections())
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ParamsError, match="not UTF-8"):
        read_params(tmp_path / "params.yaml", sections())


def test_find_value_reads_a_dotted_key():
    assert find_value(ROOT / "params.yaml", "lora.r") == "16"
    assert find_value(ROOT / "params.yaml", "model.id") == "demo-base"
    with pytest.raises(ParamsError, match="no key"):
        find_value(Path(ROOT / "params.yaml"), "lora.rank")


@pytest.mark.parametrize("path", PARAMS_FILES, ids=str)
def test_written_yaml_is_the_text_that_was_read(path):
    """`recipe pin` and `recipe new` write what they read, with other values."""
    assert dump_yaml(load_yaml(path)) == path.read_text(encoding="utf-8")


def test_written_yaml_keeps_comments_quotes_long_lines_and_inline_mappings(tmp_path):
    text = (
        "# first\ndata: {id: 'a/b', revision: null} # inline\n\nsequence:\n"
        f'  chat_template: "{"{{ x }} " * 40}"  # long\n  text: |\n    two\n      lines\n# last\n'
    )
    (tmp_path / "params.yaml").write_text(text)
    document = load_yaml(tmp_path / "params.yaml")
    document["data"]["revision"] = "1234567890" * 4
    assert dump_yaml(document) == text.replace("revision: null", f"revision: '{'1234567890' * 4}'")
