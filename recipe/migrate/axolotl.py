"""Converts a configuration file of axolotl (axolotl train FILE). The defaults are those of axolotl 0.13."""

from typing import Any

from recipe.core.errors import ParamsError
from recipe.migrate import trainer
from recipe.migrate.migration import Migration, coerce, is_off, is_on, shown
from recipe.text.messages import ROLE_NAMES, ROLES

NAME = "axolotl"
# Keys that configure another kind of training.
OTHER_TRAINING = ("rl", "reward_model", "process_reward_model", "pretraining_dataset")
BUILDERS = {"json", "csv", "parquet", "text", "arrow"}  # values of `path` that name a file format
ALPACA_FIELDS = {"field_instruction": "instruction", "field_input": "input", "field_output": "output"}
OVERLONG = {"drop": "drop", "truncate": "truncate", "raise": "error"}
TYPES: dict[str, Any] = {
    **trainer.TYPES, "base_model": str, "revision_of_model": str, "adapter": str, "sequence_len": int,
    "sample_packing": bool, "micro_batch_size": int, "num_epochs": float, "lr_scheduler": str, "optimizer": str,
    "val_set_size": float, "train_on_inputs": bool, "lora_r": int, "peft_use_rslora": bool, "lora_target_linear": bool,
    "lora_target_modules": list[str] | str, "load_in_4bit": bool, "load_in_8bit": bool, "chat_template": str,
    "chat_template_jinja": str, "datasets": list[dict[str, Any]], "test_datasets": list[dict[str, Any]],
    "excess_length_strategy": str,
}  # fmt: skip
NEAREST = {
    **trainer.NEAREST,
    "wandb_": "Runs are tracked in MLflow.",
    "mlflow_": "registry.name and registry.experiment name the registered model and the experiment.",
    "comet_": "Runs are tracked in MLflow.",
    "evals_per_epoch": "The adapter and the base model are evaluated once, after training.",
    "saves_per_epoch": "train.save_steps sets the steps between checkpoints.",
    "eval_sample_packing": "Evaluation pads its batches, which does not change the scores.",
    "pad_to_sequence_len": "Sequences are padded only to the longest one of a batch.",
    "special_tokens": "A missing padding token is added. The other special tokens are those of the tokenizer.",
    "tokens": "lora.untrained_tokens trains the special tokens that the base model never learned.",
    "lora_modules_to_save": "lora.untrained_tokens trains the rows of new special tokens.",
    "lora_model_dir": "Training always starts from a new adapter.",
    "lora_fan_in_fan_out": "Set from the model's layers.",
    "peft_": "Other settings of PEFT are not available.",
    "flash_attention": "The fastest attention that keeps packed examples apart is chosen.",
    "attention": "The fastest attention that keeps packed examples apart is chosen.",
    "xformers_attention": "The fastest attention that keeps packed examples apart is chosen.",
    "sdp_attention": "The fastest attention that keeps packed examples apart is chosen.",
    "flash_optimum": "The fastest attention that keeps packed examples apart is chosen.",
    "lora_mlp_kernel": "The fused LoRA kernels are always on.",
    "lora_qkv_kernel": "The fused LoRA kernels are always on.",
    "lora_o_kernel": "The fused LoRA kernels are always on.",
    "plugins": "Plugins are not available.",
    "dataset_prepared_path": "Prepared data is in data/prepared.",
    "shuffle_merged_datasets": "Sequences are shuffled with train.seed.",
    "model_type": "The class of the model is chosen from its config.json.",
    "tokenizer_type": "The class of the tokenizer is chosen from its files.",
    "early_stopping_patience": "Training always runs to its end. Compare train.num_epochs in a sweep.",
    "loss_watchdog_": "Training stops if the loss is not finite.",
    "val_set_size": "sequence.validation_fraction is a share of the prompts.",
    "test_datasets": "In a folder of rows, data.validation_split names the validation rows.",
    "excess_length_strategy": "sequence.on_overlong decides about rows that are too long.",
    "strict": "All keys are always checked.",
}  # fmt: skip


OFF = {
    *trainer.OFF, "strict", "flash_attention", "xformers_attention", "sdp_attention", "flash_optimum", "lora_model_dir",
    "lora_fan_in_fan_out", "early_stopping_patience", "load_in_8bit", "load_in_4bit", "special_tokens", "debug",
    "fsdp_config", "eval_sample_packing", "pad_to_sequence_len", "s2_attention", "torch_compile",
}  # fmt: skip


def recognizes(config: dict[str, Any]) -> bool:
    """Return whether a file's keys are those of axolotl."""
    return "base_model" in config


def convert(config: dict[str, Any], *, replaced: bool) -> Migration:
    """Convert the file's keys.

    If `replaced` is true, the source of the rows is specified elsewhere, and the one in the file is ignored.

    Raises ParamsError if the file does not configure supervised fine-tuning, or specifies no source of rows.
    """
    migration = Migration(NAME, coerce(config, TYPES))
    for key in OTHER_TRAINING:
        if not is_off(value := migration.pop(key)):
            raise ParamsError(f"{key}: {shown(value)} is not supervised fine-tuning, so the file can't be migrated.")
    trainer.require_model(migration, "base_model")
    migration.take("revision_of_model", "model.revision")
    max_length = int(migration.config.get("sequence_len") or 512)
    migration.take("sequence_len", "sequence.max_length", default=512)
    overlong = migration.pop("excess_length_strategy", "drop")
    source = f"excess_length_strategy: {overlong}"
    migration.put("sequence.on_overlong", OVERLONG.get(overlong, "drop"), source,
                  is_default="excess_length_strategy" not in migration.original)  # fmt: skip
    train_all = is_on(migration.pop("train_on_inputs", False))
    migration.put("sequence.loss_on", "all" if train_all else "completion", f"train_on_inputs: {shown(train_all)}")
    if replaced:
        for key in ("datasets", "chat_template", "chat_template_jinja"):
            if (value := migration.pop(key)) is not None:
                migration.differ(key, f"{shown(value)} is replaced by --data")
    else:
        _dataset(migration)
    packing = is_on(migration.take("sample_packing", "sequence.packing", default=False))
    if packing:
        migration.differ("sample_packing", "sequences are filled more evenly here, so a step can have more rows")
    trainer.batch(migration, "micro_batch_size", 1, max_length)
    _lora(migration)
    migration.take("num_epochs", "train.num_epochs", default=1.0)
    migration.take("learning_rate", "train.learning_rate")
    trainer.schedule(migration, "lr_scheduler", "cosine")
    trainer.warmup(migration, "lr_scheduler", default=0.03)
    trainer.common(migration)
    trainer.optimizer(migration, "optimizer", "adamw_torch_fused")
    if 0 < (migration.config.get("val_set_size") or 0) < 1:
        migration.take("val_set_size", "sequence.validation_fraction")
        migration.differ("val_set_size", "whole prompts are held out, so that no prompt is in both parts")
    elif migration.config.get("val_set_size") == 0:
        migration.pop("val_set_size")
        migration.differ("val_set_size", "the evaluation needs validation rows")
    migration.hold_out()
    migration.finish(NEAREST, OFF)
    return migration


def _lora(migration: Migration) -> None:
    adapter = migration.pop("adapter")
    if adapter in ("lora", "qlora"):
        migration.taken.append(f"adapter: {adapter} -> a LoRA adapter")
    else:
        what = "all weights" if adapter is None else "another kind of adapter"
        migration.differ("adapter", f"{shown(adapter)} trains {what}. Here, a LoRA adapter is trained")
    for key, target, own in (("lora_r", "lora.r", 16), ("lora_alpha", "lora.alpha", 32)):
        if migration.take(key, target) is None:
            migration.choose(target, own, f"the file has no {key}")
    migration.take("lora_dropout", "lora.dropout", default=0.0)
    trainer.rank_stabilized(migration, "peft_use_rslora")
    linear, modules = is_on(migration.pop("lora_target_linear", False)), migration.pop("lora_target_modules")
    if linear:
        migration.put("lora.target_modules", "all-linear", "lora_target_linear: true")
        if modules:
            migration.differ("lora_target_modules", "all-linear includes these modules")
    elif modules:
        trainer.targets(migration, "lora_target_modules", modules)
    else:
        migration.choose("lora.target_modules", "all-linear", "the file has no lora_target_modules")
    in_4, in_8 = (is_on(migration.pop(f"load_in_{bits}bit", False)) for bits in (4, 8))
    bits = 4 if in_4 else 8 if in_8 else None
    if adapter == "qlora" and bits is None:
        migration.differ("adapter", "qlora without load_in_4bit. The base model is not quantized")
    trainer.quantization(migration, bits, f"load_in_{bits}bit: true" if bits else "no load_in_4bit or load_in_8bit")


def _dataset(migration: Migration) -> None:
    """Set the rows, the template and the columns from the first dataset, and report the others."""
    datasets = migration.pop("datasets", [])
    if not datasets or not datasets[0].get("path"):
        raise ParamsError("the file has no datasets with a path. Name the rows with --data.")
    first = {key: value for key, value in datasets[0].items() if value is not None}
    for number, other in enumerate(datasets[1:], 2):
        migration.miss(f"datasets[{number}]", other, "Put the rows of all datasets into one folder")
    files, path = first.pop("data_files", None), str(first.pop("path"))
    if isinstance(files, list) and len(files) == 1:
        files = files[0]
    if isinstance(files, str) and path in BUILDERS:
        migration.data = files
        migration.taken.append(f"datasets[1].data_files: {files} -> data.source")
    else:
        migration.data = path
        migration.taken.append(f"datasets[1].path: {path} -> data.source, data.id")
        if files:
            migration.miss("datasets[1].data_files", files, "Name the file with --data")
    for key, target in (("name", "data.subset"), ("revision", "data.revision")):
        if key in first:
            migration.put(target, str(first.pop(key)), f"datasets[1].{key}: {shown(datasets[0][key])}")
    if "split" in first:
        trainer.split(migration, first.pop("split"), "datasets[1].split")
    if (file_type := first.pop("ds_type", None)) is not None:
        migration.taken.append(f"datasets[1].ds_type: {file_type} -> the format is recognized by the file's name")
    _template(migration, first)
    for key, value in first.items():
        migration.miss(f"datasets[1].{key}", value)


def _template(migration: Migration, first: dict[str, Any]) -> None:
    """Set the template and its columns from a dataset's `type`, and remove from `first` the keys that were used."""
    kind = first.pop("type", None)
    source = f"datasets[1].type: {shown(kind)}"
    if isinstance(kind, dict):
        _set_columns(migration, "alpaca", {
            field: str(kind.get(key) or field) for key, field in ALPACA_FIELDS.items()
        }, source)  # fmt: skip
        for key in kind.keys() - ALPACA_FIELDS.keys():
            migration.miss(f"datasets[1].type.{key}", kind[key], "The prompts are Alpaca's")
    elif kind in ("alpaca", "alpaca:chat", "alpaca:phi"):
        _set_columns(migration, "alpaca", {field: field for field in ALPACA_FIELDS.values()}, source)
        if kind != "alpaca":
            migration.differ("datasets[1].type", f"{kind} has prompts of its own. The prompts are Alpaca's")
    elif kind in ("chat_template", "sharegpt") or str(kind).startswith("sharegpt."):
        default = "messages" if kind == "chat_template" else "conversations"
        columns = {"messages": str(first.pop("field_messages", default))}
        if (tools := first.pop("field_tools", None)) is not None:
            columns["tools"] = str(tools)
        _set_columns(migration, "chat", columns, source)
        _chat(migration, first)
    elif kind == "completion":
        _set_columns(migration, "text", {"text": str(first.pop("field", "text"))}, source)
        migration.differ(
            "datasets[1].type", "axolotl splits a long text into several rows. sequence.on_overlong decides here"
        )
    elif kind == "pretrain":
        raise ParamsError("datasets[1].type: pretrain is not supervised fine-tuning, so the file can't be migrated.")
    else:
        migration.miss("datasets[1].type", kind, "Set sequence.template and sequence.columns")
    _chat_template(migration, first)


def _set_columns(migration: Migration, template: str, columns: dict[str, str], source: str) -> None:
    migration.put("sequence.template", template, source)
    migration.put("sequence.columns", columns, source)


def _chat(migration: Migration, first: dict[str, Any]) -> None:
    """Convert a dataset's keys for messages. Keys and role names that are not recognized here are reported."""
    first.pop("conversation", None)
    mapping = {**(first.pop("message_property_mappings", None) or {})}
    for key, name in (("message_field_role", "role"), ("message_field_content", "content")):
        if key in first:
            mapping[name] = first.pop(key)
    known = {"role": {"role", "from"}, "content": {"content", "value"}}
    for name, column in mapping.items():
        where = f"datasets[1].message_property_mappings.{name}"
        if column in known.get(name, {name}):
            migration.taken.append(f"{where}: {column} -> recognized")
        else:
            migration.miss(where, column, f"Rename the key {column} in the rows to {name}")
    for role, names in (first.pop("roles", None) or {}).items():
        for name in names if isinstance(names, list) else [names]:
            where = f"datasets[1].roles.{role}"
            if ROLE_NAMES.get(str(name), name) == ROLE_NAMES.get(str(role), role) and role in (*ROLES, *ROLE_NAMES):
                migration.taken.append(f"{where}: {name} -> recognized")
            else:
                migration.miss(where, name, f"Rename the role {name} in the rows to {role}")
    if first.get("message_field_training") in ("train", "training"):
        migration.taken.append(
            f"datasets[1].message_field_training: {first.pop('message_field_training')} -> recognized"
        )
    trained = first.pop("roles_to_train", None)
    if trained is not None and {ROLE_NAMES.get(str(role), role) for role in trained} != {"assistant"}:
        migration.differ(
            "datasets[1].roles_to_train", f"{shown(trained)}: only the assistant's messages are in the loss"
        )
    ends = first.pop("train_on_eos", "turn")
    if ends != "turn":
        migration.differ("datasets[1].train_on_eos", f"{ends}: each message in the loss includes its end token")


def _chat_template(migration: Migration, first: dict[str, Any]) -> None:
    """Convert the chat template of the dataset, or of the file."""
    outer, outer_text = migration.pop("chat_template"), migration.pop("chat_template_jinja")
    name = str(first.pop("chat_template", None) or outer or "tokenizer_default")
    text = first.pop("chat_template_jinja", None) or outer_text
    if migration.settings.get("sequence.template") != "chat":
        for key, value in (("chat_template", outer), ("chat_template_jinja", outer_text)):
            if value is not None:
                migration.differ(key, f"{shown(value)} is not used, because the template is not `chat`")
    elif text:
        migration.put("sequence.chat_template", str(text), "chat_template_jinja")
    elif name == "chatml":
        migration.put("sequence.chat_template", "chatml", "chat_template: chatml")
    else:
        migration.put("sequence.chat_template", None, f"chat_template: {name}")
        if name.startswith("tokenizer_default_fallback_"):
            fallback = name.removeprefix("tokenizer_default_fallback_")
            migration.differ("chat_template", f"if the tokenizer has no template, there is no fallback to {fallback}")
        elif name != "tokenizer_default":
            migration.differ("chat_template", f"instead of axolotl's {name}, the tokenizer's own template is used")
