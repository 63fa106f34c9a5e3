"""Converts the YAML configuration file for `trl sft --config FILE`. The defaults are those of TRL 1.16."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.core.errors import ParamsError
from recipe.migrate import lora, rows, trainer
from recipe.migrate.migration import Migration, coerce, is_off, is_on, shown

NAME = "trl sft"
KEYS = {"dataset_name", "datasets", "use_peft", "dataset_text_field", "completion_only_loss", "assistant_only_loss"}
# Keys that configure other commands, such as `trl dpo` and `trl grpo`.
OTHER_COMMANDS = {
    "beta",
    "num_generations",
    "reward_model_name_or_path",
    "reward_funcs",
    "reference_model",
    "max_prompt_length",
}
# The modules that PEFT targets by default in models such as Llama.
PEFT_TARGETS = ["q_proj", "v_proj"]
TYPES: dict[str, Any] = {
    **trainer.TYPES, "max_length": int, "max_seq_length": int, "packing_strategy": str, "truncation_mode": str,
    "dataset_name": str, "dataset_config": str, "dataset_train_split": str, "dataset_test_split": str,
    "dataset_text_field": str, "datasets": list[dict[str, Any]], "loss_type": str,
    "use_bnb_nested_quant": bool,
    "completion_only_loss": bool, "assistant_only_loss": bool, "use_peft": bool, "lora_r": int,
    "lora_target_modules": list[str] | str, "load_in_4bit": bool, "load_in_8bit": bool, "bnb_4bit_quant_type": str,
}  # fmt: skip
NEAREST = {
    **trainer.NEAREST,
    "env": "Set the variables in the shell.",
    "dataset_streaming": "Rows are read from files.",
    "attn_implementation": "The fastest attention that keeps packed examples apart is chosen.",
    "chat_template_path": "Set sequence.chat_template.",
    "dtype": "Set train.dtype.",
    "torch_dtype": "Set train.dtype.",
    "use_liger_kernel": "The fused LoRA kernels are always on.",
    "use_dora": "DoRA is not available.",
    "lora_modules_to_save": "lora.untrained_tokens trains the rows of new special tokens.",
    "lora_target_parameters": "Name the experts' projections in lora.target_modules.",
    "lora_task_type": "The task is always CAUSAL_LM.",
    "bnb_4bit_": "nf4 with double quantization is used.",
    "padding_free": "With sequence.packing, there is no padding.",
    "eval_packing": "Evaluation pads its batches, which does not change the scores.",
    "pad_token": "A missing padding token is added.",
    "eos_token": "The end tokens are those of the tokenizer and the chat template.",
    "activation_offloading": "train.activation_checkpointing lowers the memory.",
    "dataset_kwargs": "Preparation is set in `sequence`.",
    "model_init_kwargs": "The model is loaded as its config.json says.",
}
OFF = {*trainer.OFF, "padding_free", "eval_packing", "activation_offloading", "use_liger_kernel", "shuffle_dataset"}


def recognizes(config: dict[str, Any]) -> bool:
    """Return whether a file has the keys of `trl sft`."""
    return "model_name_or_path" in config and bool(KEYS & config.keys())


def convert(config: dict[str, Any], find: Callable[[str], Path | None], *, replaced: bool) -> Migration:
    """Convert the file's keys.

    If `replaced` is true, the rows are specified elsewhere, and the datasets in the file are ignored.

    `find` returns the location of a path that appears in the file. Raises ParamsError if no rows are specified, or if
    the file configures another TRL command.
    """
    migration = Migration(NAME, coerce(config, TYPES))
    for key in OTHER_COMMANDS & migration.config.keys():
        raise ParamsError(f"{key} is not a key of `trl sft`, and only supervised fine-tuning can be migrated.")
    loss = migration.pop("loss_type", "nll")
    if loss not in ("nll", "chunked_nll", "dft"):
        raise ParamsError(
            f"loss_type: {loss} is not a loss of `trl sft`, and only supervised fine-tuning can be migrated."
        )
    if loss == "dft":
        migration.miss("loss_type", loss, "The loss is the cross-entropy (nll)")
    trainer.require_model(migration, "model_name_or_path")
    key = "max_seq_length" if "max_seq_length" in migration.config else "max_length"
    max_length = int(migration.config.get(key) or 1024)
    if key in migration.config and migration.config[key] is None:
        migration.pop(key)
        migration.choose("sequence.max_length", 1024, f"{key}: null is no limit, which is not available")
    else:
        migration.take(key, "sequence.max_length", default=1024)
    migration.put("sequence.on_overlong", "truncate", f"{key} cuts off the end of longer rows")
    if replaced:
        rows.replaced_by_data(
            migration, "dataset_name", "datasets", "dataset_config", "dataset_train_split", "dataset_text_field"
        )
    else:
        _dataset(migration)
    _loss(migration)
    packing = is_on(migration.take("packing", "sequence.packing", default=False))
    strategy = migration.pop("packing_strategy", "bfd")
    if packing:
        migration.differ("packing" if strategy == "bfd" else "packing_strategy", {
            "bfd": "longer rows are cut off, as with bfd, unless sequence.on_overlong says otherwise",
            "bfd_split": "longer rows are cut off, not split",
            "wrapped": "wrapped, but rows are never cut to fill a sequence here, and do not attend to each other",
        }.get(strategy, f"{strategy} is unknown"))  # fmt: skip
    if migration.pop("truncation_mode", "keep_start") != "keep_start":
        migration.differ("truncation_mode", "the end of a long row is cut off")
    trainer.batch(migration, "per_device_train_batch_size", 8, max_length)
    _lora(migration)
    trainer.training_arguments(migration, epochs=3.0, learning_rate=2e-5)
    _validation(migration, find, replaced=replaced)
    migration.hold_out()
    migration.finish(NEAREST, OFF)
    return migration


def _validation(migration: Migration, find: Callable[[str], Path | None], *, replaced: bool) -> None:
    """Set the validation split if TRL evaluates and the rows are on the Hub or in a folder that has this split."""
    split, strategy = migration.pop("dataset_test_split", "test"), migration.config.get("eval_strategy")
    source = find(migration.data) if migration.data else None
    has_split = source is None or (source.is_dir() and any(source.glob(f"{split}[.-]*")))
    if not is_off(strategy) and not replaced and has_split:
        migration.put("data.validation_split", split, f"dataset_test_split: {split}")
    elif "dataset_test_split" in migration.original:
        migration.differ("dataset_test_split", f"{split} is not used: there is no such split, or eval_strategy is off")


def _dataset(migration: Migration) -> None:
    mixture, name = migration.pop("datasets", []), migration.pop("dataset_name")
    subset, part = migration.pop("dataset_config"), migration.pop("dataset_train_split")
    origin = {"path": "dataset_name", "name": "dataset_config", "split": "dataset_train_split"}
    if mixture:
        first = {**mixture[0]}
        origin = {key: f"datasets[1].{key}" for key in origin}
        if name is not None:
            migration.differ("dataset_name", f"{name} is ignored by trl, because the file has datasets")
        name, subset, part = (first.pop(key, None) for key in ("path", "name", "split"))
        files = first.get("data_files")
        if isinstance(files, list) and len(files) == 1:
            files = files[0]
        if isinstance(files, str) and name in rows.BUILDERS:
            name, origin["path"] = files, "datasets[1].data_files"
            first.pop("data_files")
        for key, value in first.items():
            migration.miss(f"datasets[1].{key}", value)
        for number, other in enumerate(mixture[1:], 2):
            migration.leave_out(f"datasets[{number}]", other, rows.OTHER_DATASETS)
    if not name:
        raise ParamsError("the file has no dataset_name. Name the rows with --data.")
    migration.data = str(name)
    migration.taken.append(f"{origin['path']}: {name} -> data.source, data.id")
    if subset is not None:
        migration.put("data.subset", str(subset), f"{origin['name']}: {subset}")
    if part is not None:
        rows.split(migration, part, origin["split"])
    if (text := migration.pop("dataset_text_field")) is not None:
        migration.put("sequence.template", "text", f"dataset_text_field: {text}")
        migration.put("sequence.columns", {"text": text}, f"dataset_text_field: {text}")


def _loss(migration: Migration) -> None:
    """Convert the two keys that restrict which tokens are in the loss.

    Without these keys, TRL trains on all tokens except those in the prompt column.
    """
    completion, assistant = migration.pop("completion_only_loss"), is_on(migration.pop("assistant_only_loss", False))
    if assistant or is_on(completion):
        source = "assistant_only_loss: true" if assistant else "completion_only_loss: true"
        migration.put("sequence.loss_on", "completion", source)
        return
    migration.put("sequence.loss_on", "completion" if completion is None else "all",
                  f"completion_only_loss: {shown(completion)}",
                  is_default="completion_only_loss" not in migration.original)  # fmt: skip
    if completion is None:
        migration.differ(
            "assistant_only_loss", "off: for rows with a list of messages, trl also trains the prompts. For the same "
            "loss, set sequence.loss_on to all. For rows with prompt and completion, the loss is already the same"
        )  # fmt: skip


def _lora(migration: Migration) -> None:
    if not is_on(migration.pop("use_peft", False)):
        migration.differ("use_peft", "off, so trl trains all weights. Here, a LoRA adapter is trained")
    migration.take("lora_r", "lora.r", default=16)
    migration.take("lora_alpha", "lora.alpha", default=32)
    migration.take("lora_dropout", "lora.dropout", default=0.05)
    lora.rank_stabilized(migration, "use_rslora")
    if (modules := migration.pop("lora_target_modules")) is not None:
        lora.targets(migration, "lora_target_modules", modules)
    else:
        source = "lora_target_modules: PEFT's choice for models such as Llama"
        migration.put("lora.target_modules", PEFT_TARGETS, source, is_default=True)
    bits = lora.load_in_bits(migration)
    if migration.pop("bnb_4bit_quant_type", "nf4") != "nf4":
        migration.differ("bnb_4bit_quant_type", "nf4 is used")
    if bits == 4 and not is_on(migration.pop("use_bnb_nested_quant", False)):
        migration.differ("use_bnb_nested_quant", "off, but nf4 always uses double quantization")
