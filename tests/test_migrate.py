"""`recipe migrate`: configuration files with the keys of axolotl, LLaMA-Factory and TRL become recipes."""

import json
import os

import pytest
from click.testing import CliRunner
from conftest import edit, small_repository, toy_rows, write_jsonl
from test_formats import STAGES, llama_factory, openai

from recipe.cli.commands import main
from recipe.cli.context import sections
from recipe.core.config import read_params
from recipe.migrate.migration import Migration, is_off, is_on

AXOLOTL = """
base_model: {base}
load_in_4bit: true
adapter: qlora
strict: false
datasets:
  - path: rows.jsonl
    ds_type: json
    type: chat_template
    field_messages: messages
    field_tools: tools
    roles_to_train: [assistant]
    shards: 4
  - path: someone/else
    type: alpaca
chat_template: chatml
val_set_size: 0.2
sequence_len: 512
sample_packing: true
eval_sample_packing: true
lora_r: 4
lora_alpha: 8
lora_dropout: 0.1
lora_target_linear: true
peft_use_rslora: true
wandb_project:
gradient_accumulation_steps: 2
micro_batch_size: 3
num_epochs: 2
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 1e-3
bf16: auto
tf32: yes
gradient_checkpointing: true
logging_steps: 1
warmup_steps: 10
saves_per_epoch: 1
special_tokens:
  pad_token: "<|pad|>"
an_unknown_key: 7
"""
LLAMA_FACTORY = """
model_name_or_path: {base}
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 4
lora_target: q_proj,v_proj
dataset: mine,identity
template: llama3
cutoff_len: 256
max_samples: 1000
output_dir: saves/x
logging_steps: 10
save_steps: 55
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine_with_restarts
warmup_ratio: 0.1
fp16: true
val_size: 0.1
quantization_bit: 8
optim: paged_adamw_8bit
"""
TRL = """
model_name_or_path: {base}
dataset_name: rows.jsonl
dataset_text_field: text
learning_rate: 2.0e-4
max_length: 256
packing: true
packing_strategy: wrapped
eval_strategy: steps
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
use_peft: true
lora_r: 32
lora_alpha: 16
lora_target_modules: all-linear
warmup_steps: 0.05
lr_scheduler_type: constant_with_warmup
push_to_hub: true
load_in_8bit: true
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = small_repository(tmp_path / "repository")
    monkeypatch.chdir(folder)
    return folder


def migrate(repository, text, base, *options):
    """Migrate a file; returns the result of the command, and the new recipe's params if there is one."""
    file = repository / "theirs.yaml"
    file.write_text(text.replace("{base}", str(base)))
    result = CliRunner().invoke(main, ["migrate", str(file), *options], catch_exceptions=False)
    path = repository / "presets" / "theirs" / "params.yaml"
    return result, read_params(path, sections()) if path.is_file() else None


def test_an_axolotl_file_becomes_a_recipe(repository, tiny_base):
    write_jsonl(repository / "rows.jsonl", [openai(n) for n in range(40)])
    result, params = migrate(repository, AXOLOTL, tiny_base)
    assert result.exit_code == 0, result.output
    sequence, lora, train = params["sequence"], params["lora"], params["train"]
    assert (sequence.template, sequence.chat_template, sequence.max_length) == ("chat", "chatml", 512)
    assert sequence.columns == {"messages": "messages", "tools": "tools"}
    assert (sequence.packing, sequence.validation_fraction, sequence.loss_on) == (True, 0.2, "completion")
    assert (lora.r, lora.alpha, lora.dropout, lora.target_modules) == (4, 16.0, 0.1, "all-linear")
    assert (train.global_batch_size, train.micro_batch_tokens, train.num_epochs) == (6, 3 * 512, 2)
    assert (train.quantization, train.lr_schedule, train.learning_rate) == ("nf4", "cosine", 1e-3)
    assert (train.activation_checkpointing, train.logging_steps, train.save_steps) == ("on", 1, 100)
    for line in (
        "  lora_r: 4 -> lora.r: 4",
        "  peft_use_rslora: the scale is alpha / r here, not alpha / sqrt(r). lora.alpha is 16 instead of 8, "
        "which gives the same scale",
        "  optimizer: adamw_bnb_8bit has no counterpart. The optimizer is AdamW with 32-bit state.",
        '  datasets[2]: {"path": "someone/else", "type": "alpaca"} has no counterpart. Put the rows of all '
        "datasets into one folder",
        "  datasets[1].shards: 4 has no counterpart",
        "  an_unknown_key: 7 has no counterpart.",
        "  saves_per_epoch: 1 has no counterpart. train.save_steps sets the steps between checkpoints.",
        "  tf32: yes has no counterpart. Matrix products in float32 use full precision.",
        "  strict, wandb_project",
    ):
        assert line in result.output.splitlines(), line
    assert "the base model's tokenizer" not in result.output


def test_a_llama_factory_file_becomes_a_recipe(repository, tiny_base):
    (repository / "data").mkdir()
    write_jsonl(repository / "data" / "mine.jsonl", [llama_factory(n) for n in range(40)])
    entry = {"file_name": "mine.jsonl", "columns": {"prompt": "instruction", "query": "input", "response": "output",
                                                    "system": "system", "history": "history"}}  # fmt: skip
    (repository / "data" / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    result, params = migrate(repository, LLAMA_FACTORY, tiny_base)
    assert result.exit_code == 0, result.output
    sequence, lora, train = params["sequence"], params["lora"], params["train"]
    assert (sequence.template, sequence.chat_template, sequence.max_length) == ("alpaca_chat", None, 256)
    assert set(sequence.columns) == {"instruction", "input", "output", "system", "history"}
    assert (lora.r, lora.alpha, lora.dropout, lora.target_modules) == (4, 8, 0.0, ("q_proj", "v_proj"))
    assert (train.global_batch_size, train.num_epochs, train.warmup_ratio) == (8, 3, 0.1)
    assert (train.lr_schedule, train.quantization, train.save_steps) == ("cosine", "int8", 60)
    assert params["data"].source.endswith("data/mine.jsonl") and not sequence.packing
    for line in (
        "  lora_alpha: 8 (the default of LLaMA-Factory) -> lora.alpha: 8",
        "  lr_scheduler_type: cosine_with_restarts is not available. cosine was chosen as the nearest",
        "  save_steps: rounded to 60, a multiple of logging_steps (10)",
        "  dataset: identity has no counterpart. Put the rows of all datasets into one folder",
        "  max_samples: 1000 has no counterpart. Put fewer rows into the file.",
        "  fp16: true has no counterpart. On a GPU, training uses bfloat16.",
        "  dataset: mine: an instruction and its input are separated by a blank line, not by a line break",
    ):
        assert line in result.output.splitlines(), line
    sharegpt = {
        "hf_hub_url": "someone/chats",
        "formatting": "sharegpt",
        "columns": {"messages": "talks", "images": "i"},
    }
    (repository / "data" / "dataset_info.json").write_text(json.dumps({"mine": sharegpt}))
    result, _ = migrate(repository, LLAMA_FACTORY, tiny_base, "--name", "chats")
    params = read_params(repository / "presets" / "chats" / "params.yaml", sections())
    assert (params["data"].source, params["data"].id) == ("hub", "someone/chats")
    assert (params["sequence"].template, params["sequence"].columns) == ("chat", {"messages": "talks"})
    assert "columns.images: i has no counterpart. Only text is trained" in result.output


def test_a_trl_file_becomes_a_recipe(repository, tiny_base):
    write_jsonl(repository / "rows.jsonl", [{"text": f"row {n}"} for n in range(40)])
    result, params = migrate(repository, TRL, tiny_base)
    assert result.exit_code == 0, result.output
    sequence, lora, train = params["sequence"], params["lora"], params["train"]
    assert (sequence.template, sequence.columns, sequence.packing) == ("text", {"text": "text"}, True)
    assert (lora.r, lora.alpha, lora.dropout, lora.target_modules) == (32, 16, 0.05, "all-linear")
    assert (train.global_batch_size, train.num_epochs, train.warmup_ratio) == (16, 3, 0.05)
    assert (train.lr_schedule, train.quantization, params["data"].validation_split) == ("constant", "int8", "test")
    assert "  packing: rows are never cut to fill a sequence, and do not attend to each other" in result.output
    assert "  push_to_hub: true has no counterpart. The adapter is registered in MLflow." in result.output
    result, params = migrate(
        repository, "model_name_or_path: {base}\ndataset_name: rows.jsonl\n", tiny_base, "--name", "other"
    )
    params = read_params(repository / "presets" / "other" / "params.yaml", sections())
    assert params["lora"].target_modules == ("q_proj", "v_proj") and params["sequence"].template == "text"
    assert "use_peft: off, so trl trains all weights. Here, a LoRA adapter is trained" in result.output


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\n", "is not recognized. Its first keys are a, b. Known formats: axolotl"),
        ("base_model: {base}\nrl: dpo\n", "the file configures dpo, but only supervised fine-tuning can be migrated"),
        (LLAMA_FACTORY.replace("stage: sft", "stage: dpo"), "stage: dpo, but only supervised fine-tuning (sft)"),
        ("base_model: {base}\n", "the file has no datasets with a path. Name the rows with --data"),
        (LLAMA_FACTORY, "data/dataset_info.json was not found. Name the rows with --data"),
        (TRL, "rows.jsonl does not exist and is not a Hub name"),
        ("- 1\n", "expected a mapping"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_migrated_gets_one_error_and_creates_nothing(repository, tiny_base, text, reason):
    result, params = migrate(repository, text, tiny_base)
    assert result.exit_code in (2, 3) and reason in result.output and params is None
    assert not (repository / "presets").exists() or not list((repository / "presets").iterdir())


def test_rows_can_be_named_on_the_command_line(repository, tiny_base):
    write_jsonl(repository / "mine.jsonl", toy_rows(40))
    result, params = migrate(repository, LLAMA_FACTORY, tiny_base, "--data", "mine.jsonl")
    assert result.exit_code == 0, result.output
    assert params["sequence"].template == "alpaca" and params["data"].source.endswith("mine.jsonl")
    assert "--data" not in result.output


def test_words_for_true_and_false():
    assert all(map(is_on, (True, "yes", "on", "True", 1))) and not any(map(is_on, (False, "no", "off", 0)))
    assert all(map(is_off, (None, "", [], {}, "none", "no", False, 0))) and not any(map(is_off, ("a", [0], 1, 0.5)))


def test_the_longest_matching_advice_is_given():
    migration = Migration("x", {"eval_packing": 1})
    migration.finish({"eval_": "short", "eval_packing": "long"})
    assert migration.missing == ["eval_packing: 1 has no counterpart. long"]


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["axolotl", "llama_factory", "trl"])
def test_all_stages_run_on_a_migrated_file(tool, repository, tiny_base, monkeypatch):
    if tool == "axolotl":
        text, rows = AXOLOTL.replace("chatml", "tokenizer_default_fallback_chatml"), [openai(n) for n in range(40)]
    elif tool == "llama_factory":
        text, rows = LLAMA_FACTORY, [llama_factory(n) for n in range(40)]
    else:
        text, rows = TRL.replace("eval_strategy: steps\n", ""), [{"text": f"row {n} " * 9} for n in range(40)]
    write_jsonl(repository / "rows.jsonl", rows)
    result, params = migrate(repository, text, tiny_base, "--data", "rows.jsonl")
    assert params is not None, result.output
    folder = repository / "presets" / "theirs"
    edit(folder, "max_generations: 450", "max_generations: 2")
    edit(folder, "max_new_tokens: 64", "max_new_tokens: 2")
    edit(folder, f"warmup_ratio: {params['train'].warmup_ratio:g}", "warmup_ratio: 0")
    if params["sequence"].template != "text":
        edit(folder, "chat_template: null", "chat_template: plain")
    monkeypatch.chdir(folder)
    before = dict(os.environ)
    try:
        for stage in STAGES:
            result = CliRunner().invoke(main, stage.split(), catch_exceptions=False)
            assert result.exit_code == 0, result.output
    finally:
        os.environ.clear()
        os.environ.update(before)
