"""Stage train: LoRA on the packed sequences, with TRL's SFTTrainer.

Reads data/prepared/ and models/base/. Makes models/adapter/ (PEFT's layout), metrics/train.json and metrics/loss.csv.
A killed run goes on from its last whole checkpoint in .recipe/checkpoints/ and ends with the same bytes. SIGINT and
SIGTERM end it at its next point of the curve, with a checkpoint.

    python -m recipe train
"""

import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.core.errors import ParamsError, Stopped, TrainingError
from recipe.core.io import new_folder, read_json, write_json, write_text
from recipe.model.load import check_target_modules, load_base, save_adapter
from recipe.model.packed_attention import bounded
from recipe.model.processor import be_deterministic, torch_dtype
from recipe.report.loss_curve import curve_text, last_loss
from recipe.tokens.packing import collate, located, read_sequences
from recipe.tokens.tokenizer import load_tokenizer
from recipe.train.checkpoints import is_last, newest_complete
from recipe.train.interrupt import Stop
from recipe.train.params import LoraParams, TrainParams

Log = Callable[[dict[str, float], int], None]


def trainer_config(params: TrainParams, max_length: int, checkpoints: Path) -> Any:
    """SFTConfig for sequences that prepare has packed: TRL tokenises, packs and pads nothing."""
    import torch
    from trl import SFTConfig

    cuda, micro_batch_size = torch.cuda.is_available(), params.micro_batch_size(max_length)
    schedule = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}[params.lr_schedule]
    return SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=params.num_epochs,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=params.batch_size // micro_batch_size,
        learning_rate=params.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=params.warmup_ratio,  # below 1 it is a share of all steps
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=torch_dtype(params.dtype) is torch.bfloat16,
        use_cpu=not cuda,
        activation_checkpointing=params.activation_checkpointing == "on",
        seed=params.seed,
        data_seed=params.seed,
        logging_steps=params.logging_steps,
        logging_nan_inf_filter=False,  # it would show the last good loss in place of NaN
        save_steps=params.save_steps,
        save_total_limit=2,  # the last one may be cut off by a kill
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=cuda,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        remove_unused_columns=False,
        completion_only_loss=False,  # our labels say what is trained
    )


def train(
    lora: LoraParams, params: TrainParams, *, folder: Path, prepared: Path, base: Path, adapter: Path,
    metrics: Path, curve: Path, checkpoints: Path, log: Log,
) -> dict[str, Any]:  # fmt: skip
    """Train the adapter and write it with its metrics; returns what differs between runs (seconds, memory)."""
    import torch
    from peft import LoraConfig, prepare_model_for_kbit_training
    from transformers import PrinterCallback

    from recipe.train.sft import PackedTrainer, Progress

    # PEFT warns that the embeddings could be saved too; only resized ones would be, and nothing trains them.
    warnings.filterwarnings("ignore", message=".*save_embedding_layers.*")
    assert params.activation_checkpointing != "auto"  # the stage knows the machine, and chooses
    be_deterministic(params.num_threads)
    manifest, meta = read_json(base / "manifest.json"), read_json(prepared / "meta.json")
    tokenizer = load_tokenizer(base / "tokenizer")
    model = load_base(manifest, folder, len(tokenizer), params.quantization, dtype=params.dtype, packed=meta["packing"])
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and meta["max_length"] > longest:
        raise ParamsError(
            f"params.yaml: sequence.max_length is {meta['max_length']}, and {manifest['id']} has {longest} positions."
        )
    check_target_modules(model, lora.target_modules)
    config = trainer_config(params, meta["max_length"], checkpoints)
    if params.quantization != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=config.activation_checkpointing)
    sequences = read_sequences(prepared / "train.arrow")
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    tokens_per_step = meta["tokens"]["train"] / len(sequences) * params.batch_size
    stop = Stop()
    trainer = PackedTrainer(
        model=model,
        args=config,
        data_collator=lambda rows: bounded(located(collate(rows, meta["pad_token_id"]))),
        train_dataset=sequences,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        ),
        callbacks=[Progress(checkpoints, log, tokens_per_step, stop)],
    )
    trainer.remove_callback(PrinterCallback)  # ours says it, in fewer words
    newest = newest_complete(checkpoints)
    if newest and is_last(newest):
        # From its own last step, the trainer would take one more where num_epochs is a fraction.
        shutil.rmtree(newest)
        newest = newest_complete(checkpoints)
    if newest:
        print(f"going on from {newest.name}")
    started = time.monotonic()
    try:
        with stop:
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise TrainingError(
                f"out of memory ({params.micro_batch_tokens} tokens at once). Lower train.micro_batch_tokens, or set "
                "train.activation_checkpointing: on or train.quantization: nf4."
            ) from None
        raise
    if stop.asked and trainer.state.global_step < trainer.state.max_steps:
        done = f"{trainer.state.global_step} of {trainer.state.max_steps}"
        raise Stopped(f"training was stopped after step {done}. `dvc repro` goes on from there.", stop.asked)
    seconds = time.monotonic() - started
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    trainable = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    with new_folder(adapter) as target:
        save_adapter(trainer.model, target, manifest)
    write_text(curve, curve_text(history))
    write_json(
        metrics,
        {
            "last_loss": round(last_loss(history, params.logging_steps), 6) if history else None,
            "first_loss": round(history[0]["loss"], 6) if history else None,
            "steps": trainer.state.global_step,
            "sequences": len(sequences),
            "dtype": str(torch_dtype(params.dtype)).removeprefix("torch."),
            "quantization": params.quantization,
            "tokens": meta["tokens"]["train"],
            "trained_token_fraction": round(meta["tokens"]["train_trained"] / meta["tokens"]["train"], 6),
            "trainable_parameters": trainable,
            "parameters": sum(weight.numel() for weight in trainer.model.parameters()),
        },
    )
    shutil.rmtree(checkpoints, ignore_errors=True)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_memory()
    return {"seconds": round(seconds, 2), "peak_memory_bytes": peak}


def _peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
