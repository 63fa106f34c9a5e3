"""Converts a configuration file of LLaMA-Factory (llamafactory-cli train FILE). The defaults are those of version 0.9.

LLaMA-Factory describes datasets in dataset_info.json, which is read if it can be found.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.core.errors import ParamsError
from recipe.migrate import trainer
from recipe.migrate.migration import Migration, is_on, shown

NAME = "LLaMA-Factory"
KEYS = {"finetuning_type", "cutoff_len", "lora_rank", "lora_target", "stage", "dataset_dir", "template"}
# The keys of `columns` in dataset_info.json, with their defaults, and the names of the same columns here.
ALPACA_COLUMNS = {
    "prompt": ("instruction", "instruction"), "query": ("input", "input"), "response": ("output", "output"),
    "system": ("system", None), "history": ("history", None),
}  # fmt: skip
SHAREGPT_COLUMNS = {"messages": ("messages", "conversations"), "system": ("system", None), "tools": ("tools", None)}
NEAREST = {
    **trainer.NEAREST,
    "max_samples": "Put fewer rows into the file.",
    "overwrite_cache": "DVC decides which stages to run again.",
    "tokenized_path": "Prepared data is in data/prepared.",
    "flash_attn": "The fastest attention that keeps packed examples apart is chosen.",
    "use_unsloth": "The fused LoRA kernels are always on.",
    "enable_liger_kernel": "The fused LoRA kernels are always on.",
    "use_fast_tokenizer": "Fast tokenizers are always used.",
    "additional_target": "lora.untrained_tokens trains the rows of new special tokens.",
    "resize_vocab": "Missing rows are added to the embeddings.",
    "add_tokens": "Add the tokens to the base model's tokenizer.",
    "add_special_tokens": "Add the tokens to the base model's tokenizer.",
    "adapter_name_or_path": "Training always starts from a new adapter.",
    "use_dora": "DoRA is not available.",
    "loraplus_": "LoRA+ is not available.",
    "pissa_": "PiSSA is not available.",
    "mask_history": "The loss covers every answer. In a chat, mark messages with `train: false`.",
    "enable_thinking": "The tokenizer's chat template decides how thinking is written.",
    "streaming": "Rows are read from files.",
    "mix_strategy": "Put the rows of all datasets into one folder.",
    "quantization_": "train.quantization chooses bitsandbytes.",
    "double_quantization": "nf4 always uses double quantization.",
    "compute_accuracy": "The token accuracy is always computed.",
    "predict_with_generate": "evaluate.max_generations sets how many answers are generated.",
    "disable_gradient_checkpointing": "train.activation_checkpointing does not change the adapter.",
}


def recognizes(config: dict[str, Any]) -> bool:
    """Return whether a file's keys are those of LLaMA-Factory."""
    return "model_name_or_path" in config and bool(KEYS & config.keys()) and "dataset_name" not in config


def convert(config: dict[str, Any], find: Callable[[str], Path | None]) -> Migration:
    """Convert the file's keys. `find` returns where a path that is named in the file exists.

    Raises ParamsError if the file does not configure supervised fine-tuning.
    """
    migration = Migration(NAME, config)
    stage = migration.pop("stage", "sft")
    if stage != "sft":
        raise ParamsError(f"the file configures stage: {stage}, but only supervised fine-tuning (sft) can be migrated.")
    kind = migration.pop("finetuning_type", "lora")
    if kind != "lora":
        migration.differ("finetuning_type", f"{kind} is not available. A LoRA adapter is trained")
    migration.model = str(migration.pop("model_name_or_path"))
    migration.taken.append(f"model_name_or_path: {migration.model} -> model.source, model.id")
    if migration.config.get("model_revision") not in (None, "main"):
        migration.take("model_revision", "model.revision")
    migration.take("trust_remote_code", "model.trust_remote_code", default=False, convert=is_on)
    max_length = int(migration.config.get("cutoff_len") or 2048)
    migration.take("cutoff_len", "sequence.max_length", default=2048)
    _dataset(migration, find)
    all_tokens = is_on(migration.pop("train_on_prompt", False))
    migration.set("sequence.loss_on", "all" if all_tokens else "completion", f"train_on_prompt: {shown(all_tokens)}")
    neat = is_on(migration.pop("neat_packing", False))
    packing = is_on(migration.pop("packing", False)) or neat
    migration.set("sequence.packing", packing, f"packing: {shown(packing)}")
    if packing and not neat:
        migration.differ("packing", "examples in a sequence do not attend to each other, as with neat_packing")
    trainer.batch(migration, "per_device_train_batch_size", 8, max_length)
    rank = int(migration.config.get("lora_rank") or 8)
    migration.take("lora_rank", "lora.r", default=8)
    migration.take("lora_alpha", "lora.alpha", default=2 * rank)
    migration.take("lora_dropout", "lora.dropout", default=0.0, convert=trainer.number)
    trainer.rank_stabilized(migration, "use_rslora")
    migration.take("lora_target", "lora.target_modules", default="all", convert=_targets)
    bits = migration.pop("quantization_bit")
    trainer.quantization(migration, bits, f"quantization_bit: {shown(bits)}")
    trainer.training_arguments(migration, epochs=3.0, learning_rate=5e-5)
    migration.finish(NEAREST)
    return migration


def _targets(value: Any) -> Any:
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
    return "all-linear" if names == ["all"] else names


def _dataset(migration: Migration, find: Callable[[str], Path | None]) -> None:
    named = migration.pop("dataset", "")
    names = [name.strip() for name in named.split(",")] if isinstance(named, str) else list(named)
    folder, template = str(migration.pop("dataset_dir", "data")), migration.pop("template")
    for name in names[1:]:
        migration.missing.append(f"dataset: {name} has no counterpart. Put the rows of all datasets into one folder")
    held_out = float(migration.config.get("val_size") or 0)
    if 0 < held_out < 1:
        migration.take("val_size", "sequence.validation_fraction", convert=trainer.number)
        migration.differ("val_size", "whole prompts are held out, so that no prompt is in both parts")
    if template is not None:
        migration.set("sequence.chat_template", None, f"template: {template}")
        migration.differ(
            "template", f"instead of LLaMA-Factory's {template}, the tokenizer's own chat template is used. Compare "
            "the prompts with `recipe show`"
        )  # fmt: skip
    info = find(f"{folder}/dataset_info.json")
    described = json.loads(info.read_text(encoding="utf-8")).get(names[0]) if info and names[0] else None
    if described is None or info is None:
        migration.missing.append(
            f"dataset: {names[0]} was not found, because {folder}/dataset_info.json "
            f"{'does not describe it' if info else 'was not found'}. Name the rows with --data"
        )
        return
    _described(migration, names[0], described, info.parent)


def _described(migration: Migration, name: str, described: dict[str, Any], folder: Path) -> None:
    """Convert an entry of dataset_info.json."""
    where = f"dataset: {name}"
    source = folder / described["file_name"] if "file_name" in described else described.get("hf_hub_url")
    if source is None:
        migration.missing.append(f"{where} is in {shown(described)}. Name the rows with --data")
    else:
        migration.data = str(source)
        migration.taken.append(f"{where} -> data.source: {source}")
    if described.get("ranking") or "kto_tag" in described.get("columns", {}):
        raise ParamsError(f"{where} contains preferences, but only supervised fine-tuning can be migrated.")
    for key, target in (("subset", "data.subset"), ("split", "data.train_split")):
        if described.get(key):
            migration.set(target, described[key], f"{where}, {key}: {described[key]}")
    formatting = described.get("formatting", "alpaca")
    names = described.get("columns", {})
    known = SHAREGPT_COLUMNS if formatting == "sharegpt" else ALPACA_COLUMNS
    columns = {target: names.get(key, default) for key, (target, default) in known.items()}
    # LLaMA-Factory reads `query` only if the entry names it or has no columns.
    if names and "query" not in names:
        columns.pop("input", None)
    columns = {target: column for target, column in columns.items() if column}
    template = "chat" if formatting == "sharegpt" else "alpaca_chat"
    migration.set("sequence.template", template, f"{where}, formatting: {formatting}")
    migration.set("sequence.columns", columns, f"{where}, columns: {shown(names)}")
    if template == "alpaca_chat":
        migration.differ(where, "an instruction and its input are separated by a blank line, not by a line break")
    for key in sorted(names.keys() - known.keys()):
        migration.missing.append(f"{where}, columns.{key}: {names[key]} has no counterpart. Only text is trained")
    if tags := described.get("tags"):
        migration.taken.append(f"{where}, tags: {shown(tags)} -> the usual names of roles and keys are all recognized")
