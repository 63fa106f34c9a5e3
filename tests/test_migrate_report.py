"""The report of `recipe migrate` says what the recipe contains, and errors name the user's file and keys."""

import itertools
import json
import re

import pytest
from conftest import toy_rows, write_jsonl
from test_formats import openai
from test_migrate import migrate, repository  # noqa: F401 - a fixture

AXOLOTL = """
base_model: {base}
adapter: lora
datasets:
  - path: rows.jsonl
    type: chat_template
    message_field_training: weight
    roles_to_train: [assistant]
    train_on_eos: turn
test_datasets:
  - path: others.jsonl
    type: chat_template
lora_r: 4
lora_alpha: 8
peft_use_rslora: true
max_steps: -1
"""
TRL = """
model_name_or_path: {base}
use_peft: true
packing: true
packing_strategy: wrapped
max_steps: 0
datasets:
  - path: json
    data_files: rows.jsonl
"""
LLAMA_FACTORY = """
model_name_or_path: {base}
stage: sft
dataset: mine
eval_dataset: mine
neat_packing: true
warmup_steps: 20
"""


def section(output, title):
    """Return the lines of a section of the report."""
    lines = iter(output.splitlines())
    assert f"{title}:" in lines
    return [line.strip() for line in itertools.takewhile(lambda line: line.startswith("  "), lines)]


def test_the_report_on_an_axolotl_file_says_what_the_recipe_contains(repository, tiny_base):  # noqa: F811
    write_jsonl(repository / "rows.jsonl", [openai(n) for n in range(40)])
    result, params = migrate(repository, AXOLOTL, tiny_base)
    assert params["lora"].alpha == 16 and params["sequence"].columns["system"] == "system"
    taken = section(result.output, "taken over")
    assert "lora_alpha: 8.0 -> lora.alpha: 16.0" in taken
    assert "datasets[1].message_field_training: weight -> recognized" in taken
    assert "train_on_inputs: false (the default of axolotl) -> sequence.loss_on: completion" in taken
    assert any(line.startswith('datasets[1].roles_to_train: ["assistant"]') for line in taken)
    assert any(line.startswith("datasets[1].train_on_eos: turn") for line in taken)
    assert "max_steps: -1" in section(result.output, "the same here")
    assert "warning: these rows are left out: test_datasets (see above)." in result.output.splitlines()[-2:]
    assert "the validation rows are left out, so sequence.validation_fraction is 0.05" in result.output


def test_the_report_on_a_trl_file_says_what_the_recipe_contains(repository, tiny_base):  # noqa: F811
    write_jsonl(repository / "rows.jsonl", [openai(n) for n in range(40)])
    result, params = migrate(repository, TRL, tiny_base)
    assert result.exit_code == 0 and params["data"].source.endswith("rows.jsonl")
    assert result.output.splitlines()[-1].endswith("cd presets/theirs && recipe plan")  # nothing is on the Hub
    assert "max_length cuts off the end of longer rows -> sequence.on_overlong: truncate" in result.output
    assert "completion_only_loss: null (the default of trl sft)" in result.output
    assert any(
        line.startswith("packing_strategy: wrapped, but") for line in section(result.output, "different in meaning")
    )
    same = section(result.output, "the same here")
    assert "max_steps: 0" in same and "packing_strategy: wrapped" not in same
    assert "For rows with prompt and completion, the loss is already the same" in result.output


@pytest.mark.parametrize("place", ["data/dataset_info.json", "dataset_info.json"])
def test_a_dataset_info_is_found_in_its_folder_or_beside_the_file(repository, tiny_base, place):  # noqa: F811
    write_jsonl((repository / place).parent / "mine.jsonl", toy_rows(40))
    (repository / place).write_text(json.dumps({"mine": {"file_name": "mine.jsonl"}}))
    result, params = migrate(repository, LLAMA_FACTORY, tiny_base)
    assert result.exit_code == 0 and params["data"].source.endswith("mine.jsonl")
    assert "neat_packing: true -> sequence.packing: true" in result.output
    assert "warning: these rows are left out: eval_dataset (see above)." in result.output
    assert "warmup_steps: 20 is a number of steps" in result.output and "Divide 20 by" in result.output


def test_an_error_says_where_a_dataset_info_was_looked_for(repository, tiny_base):  # noqa: F811
    result, _ = migrate(repository, LLAMA_FACTORY, tiny_base)
    assert result.exit_code == 2
    assert "neither data/dataset_info.json nor dataset_info.json was found in the current folder" in result.output


@pytest.mark.parametrize("name", ["train.py", "run.sh"])
def test_code_is_not_read(repository, name):  # noqa: F811
    from click.testing import CliRunner

    from recipe.cli.commands import main

    (repository / name).write_text("trl sft --config a.yml")
    result = CliRunner().invoke(main, ["migrate", name])
    assert result.exit_code == 2 and f"{name} is not a YAML file. Only YAML files are read" in result.output


def test_values_that_can_not_be_used_are_named_by_the_keys_of_the_file(repository, tiny_base):  # noqa: F811
    write_jsonl(repository / "rows.jsonl", [openai(n) for n in range(40)])
    text = AXOLOTL.replace("lora_r: 4", "lora_r: 0") + "sequence_len: 4\n"
    result, _ = migrate(repository, text, tiny_base)
    assert result.exit_code == 2 and "params.yaml" not in result.output
    assert re.search(r"^  lora_r: 0 becomes lora\.r: found 0\.", result.output, re.MULTILINE)
    assert re.search(r"^  sequence_len: 4 becomes sequence\.max_length: found 4\.", result.output, re.MULTILINE)
