"""Converts the keys that several tools share: those of transformers' TrainingArguments, and those for packing and LoRA.

The names and defaults of TrainingArguments are those of transformers 5.23.
"""

from typing import Any

from recipe.core.errors import ParamsError
from recipe.migrate.migration import Migration, is_off, is_on

SAME_OPTIMIZERS = {"adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"}
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
DEFAULT_STEPS = {"logging_steps": 10, "save_steps": 100}  # these settings do not change the adapter

# The types of the keys that are converted. The values of other keys are only reported.
TYPES: dict[str, Any] = {
    "model_name_or_path": str, "model_revision": str, "trust_remote_code": bool, "num_train_epochs": float,
    "learning_rate": float, "lr_scheduler_type": str, "warmup_steps": float, "warmup_ratio": float,
    "weight_decay": float, "max_grad_norm": float, "seed": int, "logging_steps": float, "save_steps": float,
    "optim": str, "bf16": bool | str, "gradient_checkpointing": bool | str, "per_device_train_batch_size": int,
    "gradient_accumulation_steps": int, "packing": bool, "max_steps": int, "lora_alpha": float, "lora_dropout": float,
    "use_rslora": bool,
}  # fmt: skip

# Maps key prefixes to the nearest alternatives. The keys with these prefixes have no counterpart.
NEAREST = {
    "adam_": "AdamW's betas are 0.9 and 0.999, and its epsilon is 1e-8.",
    "optim": "The optimizer is AdamW with 32-bit state.",
    "eval_": "The adapter and the base model are evaluated once, after training.",
    "eval_dataset": "data.validation_split names the validation rows.",
    "evaluation_": "The adapter and the base model are evaluated once, after training.",
    "per_device_eval_batch_size": "evaluate.batch_tokens limits the tokens of a batch.",
    "do_": "The stages always train, evaluate and register.",
    "report_to": "Runs are tracked in MLflow.",
    "run_name": "The name of an MLflow run is made from the data, the base model and the settings.",
    "logging_": "train.logging_steps sets the points of the loss curve.",
    "save_": "train.save_steps sets the steps between checkpoints, and the last two checkpoints are kept.",
    "resume_from_checkpoint": "A stopped run resumes from its last checkpoint by itself.",
    "output_dir": "The adapter is written to models/adapter.",
    "overwrite_output_dir": "Outputs are replaced only by a complete new output.",
    "plot_loss": "The evaluation report contains the loss curve.",
    "max_steps": "The nearest is train.num_epochs.",
    "deepspeed": "Training uses one GPU.",
    "fsdp": "Training uses one GPU.",
    "ddp_": "Training uses one GPU.",
    "local_rank": "Training uses one GPU.",
    "dataloader_": "The tokens are prepared before training, in data/prepared.",
    "preprocessing_": "prepare uses all processors.",
    "dataset_num_proc": "prepare uses all processors.",
    "group_by_length": "With sequence.packing, there is no padding.",
    "tf32": "Matrix products in float32 use full precision.",
    "fp16": "On a GPU, training uses bfloat16.",
    "neftune_noise_alpha": "Noise on the embeddings is not supported.",
    "push_to_hub": "The adapter is registered in MLflow.",
    "hub_": "The adapter is registered in MLflow.",
    "gradient_checkpointing_kwargs": "Checkpointing does not change the adapter.",
    "ignore_pad_token_for_loss": "Padding is never in the loss.",
    "full_determinism": "Training is always deterministic.",
    "data_seed": "train.seed also sets the order of the sequences.",
    "double_quantization": "nf4 always uses double quantization.",
    "use_bnb_nested_quant": "nf4 always uses double quantization.",
}
# Keys whose absence here has the same effect as turning them off.
OFF = {
    "deepspeed", "fsdp", "group_by_length", "tf32", "fp16", "push_to_hub", "neftune_noise_alpha", "report_to",
    "resume_from_checkpoint", "full_determinism", "eval_strategy", "evaluation_strategy", "streaming",
    "use_dora", "use_unsloth", "torch_compile", "dataset_streaming", "loraplus_lr_ratio",
}  # fmt: skip


def require_model(migration: Migration, key: str) -> None:
    """Set the base model from a key. Raises ParamsError if the key has no value."""
    migration.model = str(migration.pop(key, "")).strip()
    if not migration.model:
        raise ParamsError(f"{key} has no value. Name the base model.")
    migration.taken.append(f"{key}: {migration.model} -> model.source, model.id")
    if migration.config.get("model_revision") != "main":
        migration.take("model_revision", "model.revision")
    else:
        migration.pop("model_revision")
    migration.take("trust_remote_code", "model.trust_remote_code", default=False)


def training_arguments(migration: Migration, *, epochs: float, learning_rate: float) -> None:
    """Convert the keys of TrainingArguments. `epochs` and `learning_rate` are the tool's defaults."""
    migration.take("num_train_epochs", "train.num_epochs", default=epochs)
    migration.take("learning_rate", "train.learning_rate", default=learning_rate)
    schedule(migration, "lr_scheduler_type", "linear")
    warmup(migration, "lr_scheduler_type", default=0.0)
    common(migration)
    optimizer(migration, "optim", "adamw_torch_fused")


def common(migration: Migration) -> None:
    """Convert the keys that have the same names and defaults in all tools."""
    migration.take("weight_decay", "train.weight_decay", default=0.0)
    migration.take("max_grad_norm", "train.max_grad_norm", default=1.0)
    migration.take("seed", "train.seed", default=42)
    if (migration.config.get("max_steps") or 0) <= 0:  # -1 means no limit
        migration.pop("max_steps")
    checkpoints(migration)
    precision(migration)


def batch(migration: Migration, size_key: str, size_default: int, max_length: int) -> None:
    """Convert the per-device batch size and the gradient accumulation steps to the batch size of a whole step."""
    is_default = not {size_key, "gradient_accumulation_steps"} & migration.config.keys()
    size = int(migration.pop(size_key, size_default))
    accumulation = int(migration.pop("gradient_accumulation_steps", 1))
    source = f"{size_key}: {size}, gradient_accumulation_steps: {accumulation}"
    migration.put("train.global_batch_size", size * accumulation, source, is_default=is_default)
    migration.put("train.micro_batch_tokens", size * max_length, source, is_default=is_default)
    migration.differ(
        size_key, "train.global_batch_size is the batch of a whole step. On N GPUs, the other tool's step had N times "
        f"as many sequences: for N = 8, set it to {8 * size * accumulation}"
    )  # fmt: skip


def schedule(migration: Migration, key: str, default: str) -> None:
    """Convert the learning rate schedule. An unknown schedule is replaced by the nearest available one."""
    name = str(migration.config.get(key) or default)
    if name in SCHEDULES:
        migration.take(key, "train.lr_schedule", default=default, convert=SCHEDULES.__getitem__)
    else:
        migration.pop(key)
        migration.choose("train.lr_schedule", nearest(name), f"{key}: {name} is not available")


def nearest(schedule_name: str) -> str:
    """Return the available schedule that is closest to the given one."""
    return next((name for name in ("cosine", "constant") if name in schedule_name), "linear")


def warmup(migration: Migration, schedule_key: str, default: float) -> None:
    """Convert the warm-up to a share of the steps. In transformers 5, warmup_steps can also be a share."""
    steps, ratio = migration.pop("warmup_steps"), migration.pop("warmup_ratio")
    if migration.original.get(schedule_key) == "constant":  # in transformers, this schedule has no warm-up
        migration.put("train.warmup_ratio", 0.0, f"{schedule_key}: constant")
        for name, value in (("warmup_steps", steps), ("warmup_ratio", ratio)):
            if value:
                migration.differ(name, f"{value:g} is not used, as with the schedule constant")
    elif steps and steps < 1:
        migration.put("train.warmup_ratio", steps, f"warmup_steps: {steps:g}")
    elif steps:
        migration.choose(
            "train.warmup_ratio", 0.03, f"warmup_steps: {steps:g} is a number of steps, but train.warmup_ratio is a "
            f"share. Divide {steps:g} by the number of steps that `recipe plan` prints. Until then, 3% are common"
        )  # fmt: skip
        if ratio:
            migration.differ("warmup_ratio", "warmup_steps takes precedence")
    else:
        source = f"warmup_ratio: {default if ratio is None else ratio:g}"
        migration.put("train.warmup_ratio", default if ratio is None else ratio, source, is_default=ratio is None)


def checkpoints(migration: Migration) -> None:
    """Convert logging_steps and save_steps.

    The defaults are 10 steps for logging_steps and 100 steps for save_steps. A key gets its default if it is missing or
    gives a share of all training steps.
    """
    for name, default in DEFAULT_STEPS.items():
        value = migration.pop(name)
        steps = default if value is None or value < 1 else int(value)
        migration.settings[f"train.{name}"] = steps
        if value is not None and value < 1:
            migration.choose(f"train.{name}", default, f"{name}: {value:g} is not a number of steps")
        elif value is not None:
            migration.put(f"train.{name}", steps, f"{name}: {value:g}")


def optimizer(migration: Migration, key: str, default: str) -> None:
    """Report an optimizer other than AdamW with 32-bit state."""
    name = str(migration.pop(key, default))
    if name not in SAME_OPTIMIZERS:
        migration.miss(key, name, NEAREST["optim"])


def precision(migration: Migration) -> None:
    """Convert bf16 and gradient_checkpointing. Training uses bfloat16 on a GPU and, by default, float32 on a CPU."""
    bf16, checkpointing = migration.pop("bf16"), migration.pop("gradient_checkpointing")
    migration.settings |= {"train.dtype": "auto", "train.activation_checkpointing": "auto"}
    if bf16 is not None and (is_on(bf16) or str(bf16) in ("auto", "full")):
        migration.taken.append(f"bf16: {str(bf16).lower()} -> train.dtype: auto (bfloat16 on a GPU)")
    elif bf16 is not None:
        migration.differ("bf16", "off, but on a GPU, training uses bfloat16")
    if checkpointing is not None:
        value = "off" if is_off(checkpointing) else "on"
        migration.put("train.activation_checkpointing", value, f"gradient_checkpointing: {str(checkpointing).lower()}")
        if isinstance(checkpointing, str) and not is_off(checkpointing) and not is_on(checkpointing):
            migration.differ("gradient_checkpointing", f"activations are computed again, not moved ({checkpointing})")
