"""Converts the YAML file of a `trl sft --config FILE` command. The defaults are those of TRL 1.16."""

from typing import Any

from recipe.core.errors import ParamsError
from recipe.migrate import trainer
from recipe.migrate.migration import Migration, is_on, shown

NAME = "trl sft"
KEYS = {"dataset_name", "datasets", "use_peft", "dataset_text_field", "completion_only_loss", "assistant_only_loss"}
# PEFT's own choice for models such as Llama if no modules are named.
PEFT_TARGETS = ["q_proj", "v_proj"]
NEAREST = {
    **trainer.NEAREST,
    "env": "Set the variables in the shell.",
    "dataset_streaming": "Rows are read from files.",
    "attn_implementation": "The fastest attention that keeps packed examples apart is chosen.",
    "dtype": "Set train.dtype.",
    "torch_dtype": "Set train.dtype.",
    "use_liger_kernel": "The fused LoRA kernels are always on.",
    "use_dora": "DoRA is not available.",
    "lora_modules_to_save": "lora.untrained_tokens trains the rows of new special tokens.",
    "lora_target_parameters": "Name the experts' projections in lora.target_modules.",
    "lora_task_type": "The task is always CAUSAL_LM.",
    "bnb_4bit_": "nf4 with double quantization is used.",
    "use_bnb_nested_quant": "nf4 always uses double quantization.",
    "padding_free": "With sequence.packing, there is no padding.",
    "eval_packing": "Evaluation pads its batches, which does not change the scores.",
    "pad_token": "A missing padding token is added.",
    "eos_token": "The end tokens are those of the tokenizer and the chat template.",
    "loss_type": "The loss is the cross-entropy (nll).",
    "activation_offloading": "train.activation_checkpointing lowers the memory.",
    "dataset_kwargs": "Preparation is set in `sequence`.",
    "model_init_kwargs": "The model is loaded as its config.json says.",
    "dataset_test_split": "Used only if eval_strategy is set.",
}


def recognizes(config: dict[str, Any]) -> bool:
    """Return whether a file's keys are those of `trl sft`."""
    return "model_name_or_path" in config and bool(KEYS & config.keys())


def convert(config: dict[str, Any]) -> Migration:
    """Convert the file's keys. Raises ParamsError if the file names no dataset."""
    migration = Migration(NAME, config)
    migration.model = str(migration.pop("model_name_or_path"))
    migration.taken.append(f"model_name_or_path: {migration.model} -> model.source, model.id")
    if migration.config.get("model_revision") not in (None, "main"):
        migration.take("model_revision", "model.revision")
    migration.take("trust_remote_code", "model.trust_remote_code", default=False, convert=is_on)
    max_length = int(migration.config.get("max_length") or migration.config.get("max_seq_length") or 1024)
    key = "max_seq_length" if "max_seq_length" in migration.config else "max_length"
    migration.take(key, "sequence.max_length", default=1024)
    _dataset(migration)
    _loss(migration)
    packing = is_on(migration.take("packing", "sequence.packing", default=False, convert=is_on))
    strategy = migration.pop("packing_strategy", "bfd")
    if packing:
        migration.differ("packing", {
            "bfd": "longer rows are cut off, as with bfd, unless sequence.on_overlong says otherwise",
            "bfd_split": "longer rows are cut off, not split",
            "wrapped": "rows are never cut to fill a sequence, and do not attend to each other",
        }.get(strategy, f"{strategy} is unknown"))  # fmt: skip
    if migration.pop("truncation_mode", "keep_start") != "keep_start":
        migration.differ("truncation_mode", "the end of a long row is cut off")
    trainer.batch(migration, "per_device_train_batch_size", 8, max_length)
    _lora(migration)
    trainer.training_arguments(migration, epochs=3.0, learning_rate=2e-5)
    split, evaluates = migration.pop("dataset_test_split"), migration.config.get("eval_strategy") not in (None, "no")
    if evaluates:
        migration.set("data.validation_split", split or "test", f"dataset_test_split: {split or 'test'}")
    migration.finish(NEAREST)
    return migration


def _dataset(migration: Migration) -> None:
    mixture, name = migration.pop("datasets", []), migration.pop("dataset_name")
    subset, split = migration.pop("dataset_config"), migration.pop("dataset_train_split")
    if mixture:
        first = {**mixture[0]}
        name, subset = first.pop("path", name), first.pop("name", subset)
        split = first.pop("split", split)
        for key, value in first.items():
            migration.missing.append(f"datasets[1].{key}: {shown(value)} has no counterpart")
        for number, other in enumerate(mixture[1:], 2):
            migration.missing.append(
                f"datasets[{number}]: {shown(other)} has no counterpart. Put the rows of all datasets into one folder"
            )
    if name is None:
        raise ParamsError("the file has no dataset_name. Name the rows with --data.")
    migration.data = str(name)
    migration.taken.append(f"dataset_name: {name} -> data.source, data.id")
    if subset is not None:
        migration.set("data.subset", subset, f"dataset_config: {subset}")
    if split is not None:
        migration.set("data.train_split", split, f"dataset_train_split: {split}")
    if (text := migration.pop("dataset_text_field")) is not None:
        migration.set("sequence.template", "text", f"dataset_text_field: {text}")
        migration.set("sequence.columns", {"text": text}, f"dataset_text_field: {text}")
    if (template := migration.pop("chat_template_path")) is not None:
        migration.missing.append(f"chat_template_path: {template} has no counterpart. Set sequence.chat_template")


def _loss(migration: Migration) -> None:
    """Convert the two keys that limit the loss. Without them, TRL trains all tokens except the prompt column."""
    completion, assistant = migration.pop("completion_only_loss"), is_on(migration.pop("assistant_only_loss", False))
    if assistant or is_on(completion):
        source = "assistant_only_loss: true" if assistant else "completion_only_loss: true"
        migration.set("sequence.loss_on", "completion", source)
        return
    migration.set("sequence.loss_on", "completion" if completion is None else "all",
                  "completion_only_loss: " + shown(completion))  # fmt: skip
    if completion is None:
        migration.differ(
            "assistant_only_loss", "off: for rows with messages, trl also trains the prompts. For the same loss, set "
            "sequence.loss_on to all"
        )  # fmt: skip


def _lora(migration: Migration) -> None:
    if not is_on(migration.pop("use_peft", False)):
        migration.differ("use_peft", "off, so trl trains all weights. Here, a LoRA adapter is trained")
    migration.take("lora_r", "lora.r", default=16)
    migration.take("lora_alpha", "lora.alpha", default=32)
    migration.take("lora_dropout", "lora.dropout", default=0.05, convert=trainer.number)
    trainer.rank_stabilized(migration, "use_rslora")
    targets = migration.pop("lora_target_modules")
    targets = [targets] if isinstance(targets, str) else targets
    if targets:
        migration.set("lora.target_modules", "all-linear" if targets == ["all-linear"] else list(targets),
                      f"lora_target_modules: {shown(targets)}")  # fmt: skip
    else:
        migration.set("lora.target_modules", PEFT_TARGETS, "lora_target_modules: PEFT's choice for Llama",
                      is_default=True)  # fmt: skip
    bits = (
        4 if is_on(migration.pop("load_in_4bit", False)) else 8 if is_on(migration.pop("load_in_8bit", False)) else None
    )
    migration.pop("load_in_8bit")
    if migration.pop("bnb_4bit_quant_type", "nf4") != "nf4":
        migration.differ("bnb_4bit_quant_type", "nf4 is used")
    trainer.quantization(migration, bits, f"load_in_{bits}bit: true" if bits else "no load_in_4bit or load_in_8bit")
