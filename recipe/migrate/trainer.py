"""Converts the keys that LLaMA-Factory and TRL share: those of transformers' TrainingArguments.

The names and defaults are those of transformers 5.23.
"""

from typing import Any

from recipe.migrate.migration import Migration, is_on

SAME_OPTIMIZERS = {"adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"}
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}

# What stands nearest to keys that have no counterpart, by the beginning of the key.
NEAREST = {
    "adam_": "AdamW's betas are 0.9 and 0.999, and its epsilon is 1e-8.",
    "optim": "The optimizer is AdamW with 32-bit state.",
    "eval_": "The adapter and the base model are evaluated once, after training.",
    "evaluation_": "The adapter and the base model are evaluated once, after training.",
    "per_device_eval_batch_size": "evaluate.batch_tokens limits the tokens of a batch.",
    "do_": "The stages always train, evaluate and register.",
    "report_to": "Runs are tracked in MLflow.",
    "run_name": "The name of an MLflow run is made from the data, the base model and the settings.",
    "logging_": "train.logging_steps sets the points of the loss curve.",
    "save_": "train.save_steps sets the steps between checkpoints, and the last checkpoint is kept.",
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
}


def training_arguments(migration: Migration, *, epochs: float, learning_rate: float) -> None:
    """Convert the keys of TrainingArguments. The arguments are defaults of the tool that differ between tools."""
    migration.take("num_train_epochs", "train.num_epochs", default=epochs, convert=number)
    migration.take("learning_rate", "train.learning_rate", default=learning_rate, convert=number)
    schedule(migration, "lr_scheduler_type", "linear")
    warmup(migration, default=0)
    migration.take("weight_decay", "train.weight_decay", default=0.0, convert=number)
    migration.take("max_grad_norm", "train.max_grad_norm", default=1.0, convert=number)
    migration.take("seed", "train.seed", default=42)
    checkpoints(migration)
    optimizer(migration, "optim", "adamw_torch_fused")
    precision(migration)


def number(value: Any) -> float:
    """Return a value as a number. PyYAML, which other tools use, reads 1e-4 as text."""
    return float(value)


def batch(migration: Migration, size_key: str, size_default: int, max_length: int) -> None:
    """Convert the batch size of a device and the gradient accumulation to the batch of a step."""
    size = int(migration.pop(size_key, size_default))
    accumulation = int(migration.pop("gradient_accumulation_steps", 1))
    source = f"{size_key}: {size}, gradient_accumulation_steps: {accumulation}"
    migration.set("train.global_batch_size", size * accumulation, source)
    migration.set("train.micro_batch_tokens", size * max_length, source)
    migration.differ(
        size_key, "train.global_batch_size is the batch of a whole step. On N GPUs, the other tool's step had N times "
        f"as many sequences: for N = 8, set it to {8 * size * accumulation}"
    )  # fmt: skip


def schedule(migration: Migration, key: str, default: str) -> None:
    """Convert the schedule of the learning rate. An unknown schedule becomes the nearest one."""
    name = str(migration.config.get(key) or default)
    migration.take(key, "train.lr_schedule", default=default, convert=lambda _: SCHEDULES.get(name, nearest(name)))
    if name not in SCHEDULES:
        migration.differ(key, f"{name} is not available. {nearest(name)} was chosen as the nearest")


def nearest(schedule_name: str) -> str:
    """Return the available schedule that is nearest to another one."""
    return next((name for name in ("cosine", "constant") if name in schedule_name), "linear")


def warmup(migration: Migration, default: float) -> None:
    """Convert the warm-up, which is a share of the steps here. A share can also be in warmup_steps (transformers 5)."""
    steps, ratio = migration.config.get("warmup_steps"), migration.config.get("warmup_ratio")
    if steps is not None and 0 < float(steps) < 1:
        migration.take("warmup_steps", "train.warmup_ratio", convert=number)
        migration.pop("warmup_ratio")
    elif steps:
        migration.missing.append(
            f"warmup_steps: {steps} has no counterpart, because the warm-up is a share of the steps. "
            "train.warmup_ratio was set to 0.03: divide the warm-up steps by the steps that `recipe plan` prints"
        )
        migration.settings["train.warmup_ratio"] = 0.03
        migration.pop("warmup_steps")
        migration.pop("warmup_ratio")
    else:
        migration.pop("warmup_steps")
        migration.take("warmup_ratio", "train.warmup_ratio", default=ratio if ratio is not None else default,
                       convert=number)  # fmt: skip


def checkpoints(migration: Migration) -> None:
    """Convert logging_steps and save_steps. Here, save_steps is a multiple of logging_steps.

    Missing keys and shares of an epoch become 10 and 100 steps, which do not change the adapter.
    """
    steps = {"logging_steps": 10, "save_steps": 100}
    for name in steps:
        value = migration.config.get(name)
        if value is not None and float(value) >= 1:
            steps[name] = int(float(value))
    logging, saving = steps.values()
    rounded = max(round(saving / logging), 1) * logging
    migration.settings |= {"train.logging_steps": logging, "train.save_steps": rounded}
    migration.take("logging_steps", "train.logging_steps", convert=lambda _: logging)
    if migration.take("save_steps", "train.save_steps", convert=lambda _: rounded) is not None and rounded != saving:
        migration.differ("save_steps", f"rounded to {rounded}, a multiple of logging_steps ({logging})")


def optimizer(migration: Migration, key: str, default: str) -> None:
    """Report an optimizer other than AdamW with 32-bit state."""
    name = str(migration.config.get(key) or default)
    if name in SAME_OPTIMIZERS:
        migration.pop(key)
    else:
        migration.drop(key, NEAREST["optim"])


def precision(migration: Migration) -> None:
    """Convert bf16 and gradient_checkpointing. Training uses bfloat16 on a GPU and, by default, float32 on a CPU."""
    bf16 = migration.pop("bf16")
    migration.settings["train.dtype"] = "auto"
    if is_on(bf16) or bf16 == "auto":
        migration.taken.append(f"bf16: {str(bf16).lower()} -> train.dtype: auto (bfloat16 on a GPU)")
    elif bf16 is not None:
        migration.differ("bf16", "off, but on a GPU, training uses bfloat16")
    checkpointing = migration.pop("gradient_checkpointing")
    if checkpointing is None:
        migration.settings["train.activation_checkpointing"] = "auto"
    else:
        value = "on" if is_on(checkpointing) else "off"
        source = f"gradient_checkpointing: {str(checkpointing).lower()}"
        migration.set("train.activation_checkpointing", value, source)


def rank_stabilized(migration: Migration, key: str) -> None:
    """Convert the scale of rsLoRA (arXiv 2312.03732), alpha / sqrt(r), to the scale here, which is alpha / r."""
    if is_on(migration.pop(key, False)):
        alpha = migration.settings["lora.alpha"]
        scaled = alpha * migration.settings["lora.r"] ** 0.5
        migration.settings["lora.alpha"] = scaled
        migration.differ(
            key, f"the scale is alpha / r here, not alpha / sqrt(r). lora.alpha is {scaled:g} instead of {alpha:g}, "
            "which gives the same scale"
        )  # fmt: skip


def quantization(migration: Migration, bits: int | None, source: str) -> None:
    """Set the quantization of the base model."""
    names = {None: "none", 8: "int8", 4: "nf4"}
    if bits not in names:
        migration.missing.append(f"{source} has no counterpart. The base model can be quantized to 8 or 4 bits")
        bits = None
    migration.set("train.quantization", names[bits], source)
