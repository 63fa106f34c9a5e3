"""Converts an axolotl configuration file (axolotl train FILE). The defaults are those of axolotl 0.13."""

from typing import Any

from recipe.core.errors import ParamsError
from recipe.migrate import lora, rows, trainer
from recipe.migrate.axolotl_rows import first_dataset
from recipe.migrate.migration import Migration, coerce, is_off, is_on, shown

NAME = "axolotl"
# Keys that configure other kinds of training.
OTHER_TRAINING = ("rl", "reward_model", "process_reward_model", "pretraining_dataset")
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
    """Return whether a file has axolotl's keys."""
    return "base_model" in config


def convert(config: dict[str, Any], *, replaced: bool) -> Migration:
    """Convert the file's keys.

    If `replaced` is true, the rows are specified elsewhere, and the datasets in the file are ignored.

    Raises ParamsError if the file does not configure supervised fine-tuning, or if no rows are specified.
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
    migration.put("sequence.loss_on", "all" if train_all else "completion", f"train_on_inputs: {shown(train_all)}",
                  is_default="train_on_inputs" not in migration.original)  # fmt: skip
    if replaced:
        rows.replaced_by_data(migration, "datasets", "chat_template", "chat_template_jinja")
    else:
        first_dataset(migration)
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
    rows.held_out(migration, "val_set_size")
    if migration.config.get("val_set_size") == 0:
        migration.pop("val_set_size")
        migration.differ("val_set_size", "the evaluation needs validation rows")
    if tests := migration.pop("test_datasets"):
        migration.leave_out("test_datasets", tests, NEAREST["test_datasets"])
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
    lora.rank_stabilized(migration, "peft_use_rslora")
    linear, modules = is_on(migration.pop("lora_target_linear", False)), migration.pop("lora_target_modules")
    if linear:
        migration.put("lora.target_modules", "all-linear", "lora_target_linear: true")
        if modules:
            migration.differ("lora_target_modules", "all-linear includes these modules")
    elif modules:
        lora.targets(migration, "lora_target_modules", modules)
    else:
        migration.choose("lora.target_modules", "all-linear", "the file has no lora_target_modules")
    bits = lora.load_in_bits(migration)
    if adapter == "qlora" and bits is None:
        migration.differ("adapter", "qlora without load_in_4bit. The base model is not quantized")
