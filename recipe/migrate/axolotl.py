"""Converts a configuration file of axolotl (axolotl train FILE). The defaults are those of axolotl 0.13."""

from typing import Any

from recipe.core.errors import ParamsError
from recipe.migrate import trainer
from recipe.migrate.migration import Migration, is_on, shown

NAME = "axolotl"
CHAT_TYPES = {"chat_template", "sharegpt"}
ALPACA_FIELDS = {"field_instruction": "instruction", "field_input": "input", "field_output": "output"}
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
    "val_set_size": "Without validation rows, data.validation_split would be needed.",
    "strict": "All keys are always checked.",
}  # fmt: skip


def recognizes(config: dict[str, Any]) -> bool:
    """Return whether a file's keys are those of axolotl."""
    return "base_model" in config


def convert(config: dict[str, Any]) -> Migration:
    """Convert the file's keys. Raises ParamsError if the file does not configure supervised fine-tuning."""
    migration = Migration(NAME, config)
    if rl := migration.pop("rl"):
        raise ParamsError(f"the file configures {rl}, but only supervised fine-tuning can be migrated.")
    migration.model = str(migration.pop("base_model"))
    migration.taken.append(f"base_model: {migration.model} -> model.source, model.id")
    migration.take("revision_of_model", "model.revision")
    migration.take("trust_remote_code", "model.trust_remote_code", default=False, convert=is_on)
    max_length = int(migration.config.get("sequence_len") or 512)
    migration.take("sequence_len", "sequence.max_length", default=512)
    _dataset(migration)
    packing = is_on(migration.take("sample_packing", "sequence.packing", default=False, convert=is_on))
    if packing:
        migration.differ("sample_packing", "sequences are filled more evenly here, so a step can have more rows")
    trainer.batch(migration, "micro_batch_size", 1, max_length)
    _lora(migration)
    migration.take("num_epochs", "train.num_epochs", default=1.0, convert=trainer.number)
    migration.take("learning_rate", "train.learning_rate", convert=trainer.number)
    trainer.schedule(migration, "lr_scheduler", "cosine")
    trainer.warmup(migration, default=0.03)
    migration.take("weight_decay", "train.weight_decay", default=0.0, convert=trainer.number)
    migration.take("max_grad_norm", "train.max_grad_norm", default=1.0, convert=trainer.number)
    migration.take("seed", "train.seed", default=42)
    trainer.checkpoints(migration)
    trainer.optimizer(migration, "optimizer", "adamw_torch_fused")
    trainer.precision(migration)
    held_out = float(migration.config.get("val_set_size") or 0)
    if 0 < held_out < 1:
        migration.take("val_set_size", "sequence.validation_fraction", convert=trainer.number)
        migration.differ("val_set_size", "whole prompts are held out, so that no prompt is in both parts")
    elif held_out == 0:
        migration.pop("val_set_size")
        migration.differ(
            "val_set_size", "without validation rows there is no evaluation, so 5% of the prompts are held out"
        )
    migration.finish(NEAREST)
    return migration


def _lora(migration: Migration) -> None:
    adapter = migration.pop("adapter")
    if adapter not in ("lora", "qlora"):
        migration.differ(
            "adapter", f"{shown(adapter)} trains {'all weights' if adapter is None else 'another kind of adapter'}. "
            "Here, a LoRA adapter is trained"
        )  # fmt: skip
    else:
        migration.taken.append(f"adapter: {adapter} -> a LoRA adapter")
    migration.take("lora_r", "lora.r", default=8 if adapter else 16)
    migration.take("lora_alpha", "lora.alpha", default=16 if adapter else 32)
    migration.take("lora_dropout", "lora.dropout", default=0.0, convert=trainer.number)
    trainer.rank_stabilized(migration, "peft_use_rslora")
    trainer.rank_stabilized(migration, "use_rslora")
    linear, targets = is_on(migration.pop("lora_target_linear", False)), migration.pop("lora_target_modules")
    if isinstance(targets, str):
        migration.missing.append(f"lora_target_modules: {targets} is a pattern. Names are needed, or all-linear")
        targets = None
    if targets and not linear:
        migration.set("lora.target_modules", list(targets), f"lora_target_modules: {shown(targets)}")
    elif linear:
        migration.set("lora.target_modules", "all-linear", "lora_target_linear: true")
        if targets:
            migration.differ("lora_target_modules", "all-linear includes these modules")
    else:
        migration.set("lora.target_modules", "all-linear", "no lora_target_modules")
    bits = (
        4 if is_on(migration.pop("load_in_4bit", False)) else 8 if is_on(migration.pop("load_in_8bit", False)) else None
    )
    migration.pop("load_in_8bit")
    if adapter == "qlora" and bits is None:
        migration.differ("adapter", "qlora without load_in_4bit. The base model is not quantized")
    trainer.quantization(migration, bits, f"load_in_{bits}bit: true" if bits else "no load_in_4bit or load_in_8bit")


def _dataset(migration: Migration) -> None:
    datasets = migration.pop("datasets", [])
    if (
        not isinstance(datasets, list)
        or not datasets
        or not isinstance(datasets[0], dict)
        or not datasets[0].get("path")
    ):
        raise ParamsError("the file has no datasets with a path. Name the rows with --data.")
    first = {key: value for key, value in datasets[0].items() if value is not None}
    for number, other in enumerate(datasets[1:], 2):
        migration.missing.append(
            f"datasets[{number}]: {shown(other)} has no counterpart. Put the rows of all datasets into one folder"
        )
    files, name = first.pop("data_files", None), first.pop("path")
    files = [files] if isinstance(files, str) else files
    migration.data = str(files[0] if files and len(files) == 1 else name)
    migration.taken.append(f"datasets[1].path: {migration.data} -> data.source, data.id")
    if files and len(files) > 1:
        migration.missing.append(f"datasets[1].data_files: {shown(files)} has no counterpart. Put them into one folder")
    for key, target in (("name", "data.subset"), ("revision", "data.revision"), ("split", "data.train_split")):
        if key in first:
            migration.set(target, first.pop(key), f"datasets[1].{key}: {shown(datasets[0][key])}")
    for key, text in _columns(migration, first).items():
        migration.missing.append(f"datasets[1].{key}: {text}")
    for number, tests in enumerate(migration.pop("test_datasets", []), 1):
        migration.missing.append(
            f"test_datasets[{number}]: {shown(tests)} has no counterpart. In a folder of rows, data.validation_split "
            "names the validation rows"
        )  # fmt: skip


def _columns(migration: Migration, first: dict[str, Any]) -> dict[str, str]:
    """Set the template and its columns from a dataset's `type`. Return the keys of the dataset that are not used."""
    kind = first.pop("type", None)
    base = kind.split(":")[0].split(".")[0] if isinstance(kind, str) else kind
    first.pop("ds_type", None)
    train_all = is_on(migration.pop("train_on_inputs", False))
    migration.settings["sequence.loss_on"] = "all" if train_all else "completion"
    source = f"datasets[1].type: {shown(kind)}"
    if isinstance(base, dict) or base in ("alpaca", "alpaca_chat"):
        names = base if isinstance(base, dict) else {}
        columns = {field: str(names.get(key) or field) for key, field in ALPACA_FIELDS.items()}
        _set_columns(migration, "alpaca", columns, source)
        if isinstance(base, dict) and (base.get("format") or base.get("system_prompt") or base.get("system_format")):
            migration.differ("datasets[1].type", "its own prompt format is not used. The prompts are Alpaca's")
        elif kind not in ("alpaca",) and not isinstance(base, dict):
            migration.differ("datasets[1].type", f"{kind} is a variant of alpaca. The prompts are Alpaca's")
    elif base in CHAT_TYPES:
        default = "messages" if base == "chat_template" else "conversations"
        columns = {"messages": str(first.pop("field_messages", default))}
        if tools := first.pop("field_tools", None):
            columns["tools"] = str(tools)
        _set_columns(migration, "chat", columns, source)
        _chat_template(migration, first)
        for key in (
            "message_property_mappings",
            "message_field_role",
            "message_field_content",
            "conversation",
            "roles",
        ):
            if first.pop(key, None) is not None:
                migration.taken.append(f"datasets[1].{key} -> role, content, from and value are all recognized")
        marked = first.pop("message_field_training", None)
        if marked not in (None, "train", "training"):
            first["message_field_training"] = marked
        if first.pop("roles_to_train", ["assistant"]) not in (["assistant"], ["gpt"], ["assistant", "gpt"]):
            migration.differ("datasets[1].roles_to_train", "the loss covers only the assistant's messages")
        if first.pop("train_on_eos", "turn") != "turn":
            migration.differ("datasets[1].train_on_eos", "each trained message is trained with its end token")
    elif base == "completion":
        _set_columns(migration, "text", {"text": str(first.pop("field", "text"))}, source)
    else:
        migration.missing.append(f"{source} has no counterpart. Set sequence.template and sequence.columns")
    if migration.config.get("chat_template") is not None:
        _chat_template(migration, first)
    return {key: f"{shown(value)} has no counterpart" for key, value in first.items()}


def _set_columns(migration: Migration, template: str, columns: dict[str, str], source: str) -> None:
    migration.set("sequence.template", template, source)
    migration.set("sequence.columns", columns, source)


def _chat_template(migration: Migration, first: dict[str, Any]) -> None:
    """Convert the chat template of the dataset, or of the file."""
    outer, outer_text = migration.pop("chat_template"), migration.pop("chat_template_jinja")
    name = first.pop("chat_template", None) or outer or "tokenizer_default"
    text = first.pop("chat_template_jinja", None) or outer_text
    if migration.settings.get("sequence.template") != "chat":
        return
    if text:
        migration.set("sequence.chat_template", str(text), "chat_template_jinja")
    elif name == "chatml":
        migration.set("sequence.chat_template", "chatml", "chat_template: chatml")
    else:
        migration.set("sequence.chat_template", None, f"chat_template: {name}")
        if not str(name).startswith("tokenizer_default"):
            migration.differ("chat_template", f"instead of axolotl's {name}, the tokenizer's own template is used")
