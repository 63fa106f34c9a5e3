"""`recipe migrate`: configuration files with the keys of axolotl, LLaMA-Factory and TRL become recipes."""

import json
import os
import re

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


def assert_every_key_is_reported(text, output):
    keys = re.findall(r"^([a-z]\w*):", text, re.MULTILINE)
    assert len(keys) > 15 and [key for key in keys if not re.search(rf"\b{key}\b", output)] == []


def test_an_axolotl_file_becomes_a_recipe(repository, tiny_base):
    write_jsonl(repository / "rows.jsonl", [openai(n) for n in range(40)])
    result, params = migrate(repository, AXOLOTL, tiny_base)
    assert result.exit_code == 0, result.output
    sequence, lora, train = params["sequence"], params["lora"], params["train"]
    assert (sequence.template, sequence.chat_template, sequence.max_length) == ("chat", "chatml", 512)
    assert sequence.columns == {"messages": "messages", "system": "system", "tools": "tools"}
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
        '  datasets[2]: {"path": "someone/else", "type": "alpaca"} has no counterpart. Only one dataset is '
        "used. If the datasets have the same format, put their files into one folder. Otherwise, convert their rows to "
        "one format first",
        "warning: these rows are left out: datasets[2] (see above).",
        "  datasets[1].shards: 4 has no counterpart.",
        "  an_unknown_key: 7 has no counterpart.",
        "  saves_per_epoch: 1 has no counterpart. train.save_steps sets the steps between checkpoints.",
        "  tf32: yes has no counterpart. Matrix products in float32 use full precision.",
        "  strict: false",
        "  wandb_project",
    ):
        assert line in result.output.splitlines(), line
    assert_every_key_is_reported(AXOLOTL, result.output)
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
    assert (sequence.template, sequence.chat_template, sequence.max_length) == ("alpaca_chat", "plain", 256)
    assert set(sequence.columns) == {"instruction", "input", "output", "system", "history"}
    assert (lora.r, lora.alpha, lora.dropout, lora.target_modules) == (4, 8, 0.0, ("q_proj", "v_proj"))
    assert (train.global_batch_size, train.num_epochs, train.warmup_ratio) == (8, 3, 0.1)
    assert (train.lr_schedule, train.quantization, train.save_steps) == ("cosine", "int8", 55)
    assert params["data"].source.endswith("data/mine.jsonl") and not sequence.packing
    for line in (
        "  lora_alpha: 8 (the default of LLaMA-Factory) -> lora.alpha: 8",
        "  lr_scheduler_type: cosine_with_restarts is not available, so train.lr_schedule is cosine",
        "the base model's tokenizer has no chat template, so sequence.chat_template is set to plain.",
        "warning: these rows are left out: dataset identity (see above).",
        "  max_samples: 1000 has no counterpart. Put fewer rows into the file.",
        "  fp16: true has no counterpart. On a GPU, training uses bfloat16.",
        "  dataset: mine: an instruction and its input are separated by a blank line, not by a line break",
    ):
        assert line in result.output.splitlines(), line
    assert_every_key_is_reported(LLAMA_FACTORY, result.output)
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
    assert (train.lr_schedule, train.quantization, params["data"].validation_split) == ("constant", "int8", None)
    assert params["sequence"].validation_fraction == 0.05
    assert_every_key_is_reported(TRL, result.output)
    assert "  packing_strategy: wrapped, but rows are never cut to fill a sequence here" in result.output
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
        ("base_model: {base}\nrl: dpo\n", "rl: dpo is not supervised fine-tuning, so the file can't be migrated"),
        (LLAMA_FACTORY.replace("stage: sft", "stage: dpo"), "stage: dpo, but only supervised fine-tuning (sft)"),
        ("base_model: {base}\n", "the file has no datasets with a path. Name the rows with --data"),
        (LLAMA_FACTORY, "nor dataset_info.json was found in the current folder"),
        (TRL, "rows.jsonl does not exist. Paths are looked up in the current folder"),
        ("base_model: {base}\nreward_model: true\n", "reward_model: true is not supervised fine-tuning"),
        (TRL + "beta: 0.1\n", "beta is not a key of `trl sft`"),
        (TRL + "loss_type: sigmoid\n", "loss_type: sigmoid is not a loss of `trl sft`"),
        ("base_model:\ndatasets: []\n", "base_model has no value. Name the base model"),
        (AXOLOTL.replace("learning_rate: 1e-3", "learning_rate: fast"), "learning_rate: found fast. Input should be a"),
        (AXOLOTL.replace("lora_r: 4", "lora_r: [4]"), "lora_r: found [4]. Input should be a valid integer"),
        (AXOLOTL.replace("  - path: rows.jsonl", "  - rows.jsonl\n  - path: x"), "datasets: found"),
        (
            AXOLOTL.replace("path: rows.jsonl", "path: someone/rows").replace("lora_r: 4", "lora_r: 0"),
            "lora.r: found 0",
        ),
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
    assert "dataset: mine,identity is replaced by --data" in result.output and "was not found" not in result.output
    for number, text in enumerate(
        (AXOLOTL, "base_model: {base}\n", TRL, "model_name_or_path: {base}\nuse_peft: true\n")
    ):
        (repository / "presets" / "theirs").rename(repository / f"old-{number}")
        result, params = migrate(repository, text, tiny_base, "--data", "mine.jsonl")
        assert result.exit_code == 0, result.output
        assert params["sequence"].template == "alpaca" and params["sequence"].columns["output"] == "output"


def test_words_for_true_and_false():
    assert all(map(is_on, (True, "yes", "on", "True", 1))) and not any(map(is_on, (False, "no", "off", 0)))
    assert all(map(is_off, (None, "", [], {}, "none", "no", False, 0))) and not any(map(is_off, ("a", [0], 1, 0.5)))


def test_the_longest_matching_advice_is_given():
    migration = Migration("x", {"eval_packing": 1})
    migration.finish({"eval_": "short", "eval_packing": "long"}, set())
    assert migration.missing == ["eval_packing: 1 has no counterpart. long"]


AXOLOTL_CHANGES = {
    "data_files of a builder": (
        ("path: rows.jsonl", "path: json\n    data_files: [rows.jsonl]"),
        "datasets[1].data_files: rows.jsonl -> data.source", {},
    ),
    "data_files of a repository": (
        ("path: rows.jsonl", "path: owner/rows\n    data_files: {train: rows.jsonl}"),
        'datasets[1].data_files: {"train": "rows.jsonl"} has no counterpart', {"data.id": "owner/rows"},
    ),
    "a slice": (
        ("ds_type: json", "split: train[:20%]"), "datasets[1].split: the whole split is used, not only the part [:20%]",
        {"data.train_split": "train"},
    ),
    "a constant schedule": (
        ("lr_scheduler: cosine", "lr_scheduler: constant"),
        "warmup_steps: 10 is not used, as with the schedule constant", {"train.warmup_ratio": 0.0},
    ),
    "offloaded activations": (
        ("gradient_checkpointing: true", "gradient_checkpointing: offload"), "not moved (offload)",
        {"train.activation_checkpointing": "on"},
    ),
    "no checkpointing": (
        ("gradient_checkpointing: true", "gradient_checkpointing: no"), "gradient_checkpointing: ",
        {"train.activation_checkpointing": "off"},
    ),
    "errors for long rows": (
        ("val_set_size: 0.2", "excess_length_strategy: raise"), "the file names no validation rows, so",
        {"sequence.on_overlong": "error", "sequence.validation_fraction": 0.05},
    ),
    "roles of its own": (
        ("shards: 4", "roles: {user: [customer, human], assistant: [gpt]}"),
        "datasets[1].roles.user: customer has no counterpart. Rename the role customer in the rows to user", {},
    ),
    "keys of its own": (
        ("shards: 4", "message_property_mappings: {role: from, content: said}"),
        "content: said has no counterpart. Rename the key said in the rows to content", {},
    ),
    "a pattern": (
        ("lora_target_linear: true", "lora_target_modules: 'model.layers.[0-9]+.mlp'"),
        "is a pattern, not a list of names", {"lora.target_modules": "all-linear"},
    ),
    "another alpaca": (
        ("type: chat_template", "type: alpaca_chat.load_qa"), "alpaca_chat.load_qa has no counterpart", {},
    ),
    "a template that is not here": (
        ("chat_template: chatml", "chat_template: llama3"), "the base model's tokenizer has no chat template", {},
    ),
    "off, but different": (("tf32: yes", "shuffle_merged_datasets: false"), "merged_datasets: false has no", {}),
    "no lora_r": (("lora_r: 4\n", ""), "the file has no lora_r, so lora.r is 16", {"lora.r": 16}),
}  # fmt: skip


@pytest.mark.parametrize("name", AXOLOTL_CHANGES)
def test_other_values_of_an_axolotl_file(repository, tiny_base, name):
    write_jsonl(repository / "rows.jsonl", [openai(n) for n in range(40)])
    (old, new), line, settings = AXOLOTL_CHANGES[name]
    assert old in AXOLOTL
    result, params = migrate(repository, AXOLOTL.replace(old, new), tiny_base)
    assert result.exit_code == 0 and line in result.output, result.output
    assert {key: getattr(params[key.split(".")[0]], key.split(".")[1]) for key in settings} == settings


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ({"file_name": "a.jsonl", "formatting": "openai", "columns": {"messages": "messages", "tools": "tools"}},
         'columns: {"messages": "messages", "tools": "tools"} -> sequence.columns'),
        ({"file_name": "a.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"},
          "tags": {"role_tag": "role", "user_tag": "customer"}}, "tags.user_tag: customer has no counterpart. Rename"),
        ({"file_name": "a.jsonl", "num_samples": 9}, "mine, num_samples: 9 has no counterpart"),
        ({"file_name": "a.jsonl", "split": "train[:5]"}, "the whole split is used, not only the part [:5]"),
        ({"file_name": "a.jsonl", "ranking": True}, "contains preferences, but only supervised"),
        ({"file_name": "a.jsonl", "formatting": "other"}, "mine has the unknown formatting other"),
        ({"file_name": None}, "mine has neither file_name nor hf_hub_url"),
        ("text", "does not map names of datasets to their descriptions"),
    ],
)  # fmt: skip
def test_other_descriptions_of_a_dataset(repository, tiny_base, entry, part):
    (repository / "data").mkdir()
    write_jsonl(repository / "data" / "a.jsonl", [openai(n) for n in range(40)])
    (repository / "data" / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    result, _ = migrate(repository, LLAMA_FACTORY, tiny_base)
    assert result.exit_code in (0, 2, 3) and part in result.output, result.output
    (repository / "data" / "dataset_info.json").write_text("{")
    result, _ = migrate(repository, LLAMA_FACTORY, tiny_base, "--name", "other")
    assert result.exit_code == 3 and "can't be read as JSON" in result.output


def test_a_trl_file_with_a_folder_of_splits_a_mixture_and_no_limit(repository, tiny_base):
    for name in ("train", "test"):
        write_jsonl(repository / "splits" / f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(40)])
    text = TRL.replace("dataset_name: rows.jsonl", "datasets: [{path: splits, columns: [text]}, {path: owner/x}]")
    text = text.replace("max_length: 256", "max_length: null").replace("load_in_8bit", "load_in_4bit")
    result, params = migrate(repository, text, tiny_base)
    assert result.exit_code == 0, result.output
    assert (params["data"].validation_split, params["sequence"].max_length) == ("test", 1024)
    for part in (
        "max_length: null is no limit, which is not available", "datasets[1].path: splits -> data.source",
        'datasets[1].columns: ["text"] has no counterpart', 'datasets[2]: {"path": "owner/x"} has no counterpart',
        "use_bnb_nested_quant: off, but nf4 always uses double quantization",
    ):  # fmt: skip
        assert part in result.output, result.output


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["axolotl", "llama_factory", "trl"])
def test_all_stages_run_on_a_migrated_file(tool, repository, tiny_base, monkeypatch):
    if tool == "axolotl":
        text, rows = AXOLOTL.replace("chatml", "llama3"), [openai(n) for n in range(40)]
    elif tool == "llama_factory":
        text, rows = LLAMA_FACTORY, [llama_factory(n) for n in range(40)]
    else:
        text, rows = TRL, [{"text": f"row {n} " * 9} for n in range(40)]
    write_jsonl(repository / "rows.jsonl", rows)
    result, params = migrate(repository, text, tiny_base, "--data", "rows.jsonl")
    assert params is not None, result.output
    folder = repository / "presets" / "theirs"
    edit(folder, "max_generations: 450", "max_generations: 2")
    edit(folder, "max_new_tokens: 64", "max_new_tokens: 2")
    edit(folder, f"warmup_ratio: {params['train'].warmup_ratio:g}", "warmup_ratio: 0")
    monkeypatch.chdir(folder)
    before = dict(os.environ)
    try:
        for stage in STAGES:
            result = CliRunner().invoke(main, stage.split(), catch_exceptions=False)
            assert result.exit_code == 0, result.output
    finally:
        os.environ.clear()
        os.environ.update(before)
