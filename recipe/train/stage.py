"""Implements the train stage, which trains a LoRA adapter on the packed sequences with TRL's SFTTrainer.

The stage reads data/prepared/ and models/base/, and writes:
    models/adapter/       the adapter in PEFT's format
    reports/training/     the report, and ledger.jsonl with a record of each step
    metrics/train.json    the last loss and the sizes
    metrics/loss.csv      the loss curve

If a run is killed, the next run resumes from the last complete checkpoint in .recipe/checkpoints/ and produces the same
bytes as an uninterrupted run. After SIGINT or SIGTERM, a run saves a checkpoint within a micro-batch and stops.

    recipe train
"""

import pickle
import shutil
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.core.disk import disk_space
from recipe.core.environment import installed_lock
from recipe.core.errors import DataError, ParamsError, Stopped
from recipe.core.format import first_line
from recipe.core.io import check_count, read_json
from recipe.core.paths import Paths
from recipe.core.quantized import check_quantization
from recipe.core.services import Log, Services
from recipe.model.load import find_base, load_base
from recipe.model.memory import out_of_memory, peak_memory
from recipe.model.processor import be_deterministic, pin_processor
from recipe.model.targets import peft_config
from recipe.model.untrained_tokens import prepare_rows, untrained_tokens
from recipe.tokens.packing import read_sequences
from recipe.tokens.tokenizer import load_tokenizer
from recipe.train.checkpoints import KEPT, NUM_KEPT, is_last, keep, newest_complete, remove_others
from recipe.train.interrupt import Stop
from recipe.train.ledger import row_names
from recipe.train.outputs import needed_bytes, write_outputs
from recipe.train.params import LoraParams, TrainParams

if TYPE_CHECKING:
    from recipe.train.progress import Progress
    from recipe.train.sft import PackedTrainer


def train(lora: LoraParams, params: TrainParams, paths: Paths, checkpoints: Path, log: Log) -> dict[str, Any]:
    """Train the adapter, and write the adapter, the loss curve and the metrics.

    Returns the run metadata: the training time in seconds and the peak memory in bytes.
    """
    import torch

    from recipe.train.progress import Progress

    be_deterministic(params.num_threads)
    stop = Stop()
    manifest, meta = read_json(paths.base / "manifest.json"), read_json(paths.prepared / "meta.json")
    params.check_warmup(meta["sequences"]["train"])
    progress = Progress(log, meta["tokens"]["train"], stop, params.save_minutes * 60)
    with out_of_memory("training", params.memory_advice()):
        trainer = make_trainer(lora, params, paths, manifest, meta, checkpoints, progress)
    started = time.monotonic()
    with disk_space(paths.folder, needed_bytes(trainer, params), "The train stage"):
        fit(trainer, params, checkpoints, stop)
        seconds = time.monotonic() - started
        write_outputs(trainer, params, paths, manifest, meta)
    keep(checkpoints, paths.local / KEPT, params.keep_checkpoints)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory()
    return {"seconds": round(seconds, 2), "peak_memory_bytes": peak}


def make_trainer(
    lora: LoraParams, params: TrainParams, paths: Paths, manifest: dict[str, Any], meta: dict[str, Any],
    checkpoints: Path, progress: "Progress",
) -> "PackedTrainer":  # fmt: skip
    """Create a trainer with the base model, a new adapter and the packed sequences.

    Raises ParamsError if the model does not support the settings in params.yaml.
    """
    from peft import prepare_model_for_kbit_training
    from transformers import PrinterCallback

    from recipe.train.collate import make_batch
    from recipe.train.sft import PackedTrainer, sft_config

    # PEFT warns when it saves resized embeddings in a checkpoint. The warning is harmless: the embeddings are frozen.
    warnings.filterwarnings("ignore", message=".*save_embedding_layers.*")
    assert params.activation_checkpointing != "auto"  # `run` has already replaced `auto` with on or off
    source = find_base(manifest, paths.folder)
    check_quantization(read_json(source / "config.json"), manifest["id"], params.quantization)
    tokenizer = load_tokenizer(paths.base / "tokenizer")
    model = load_base(
        manifest, paths.folder, len(tokenizer), params.quantization, dtype=params.dtype, packed=meta["packing"]
    )
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and meta["max_length"] > longest:
        raise ParamsError(
            f"params.yaml: sequence.max_length is {meta['max_length']}, but {manifest['id']} supports only "
            f"{longest} positions. Lower sequence.max_length."
        )
    sequences = read_sequences(paths.prepared / "train.arrow")
    check_count(paths.prepared / "train.arrow", len(sequences), meta["sequences"]["train"])
    check_rows(paths.prepared, meta)
    tokens = [] if lora.untrained_tokens == "ignore" else tokens_to_train(lora, model, tokenizer, sequences)
    adapter_config = peft_config(lora, model, tokens)
    config = sft_config(params, meta["max_length"], checkpoints)
    if params.quantization != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=config.activation_checkpointing)
    trainer = PackedTrainer(
        model=model,
        args=config,
        data_collator=lambda rows: make_batch(rows, meta["pad_token_id"]),
        train_dataset=sequences,
        processing_class=tokenizer,
        peft_config=adapter_config,
        callbacks=[progress],
        stop=progress.stop,
        row_names=lambda rows: row_names(paths.prepared / "rows.arrow", rows),
        num_checkpoints=None if params.keep_checkpoints else NUM_KEPT,
    )
    prepare_rows(trainer.model)
    trainer.remove_callback(PrinterCallback)  # Progress prints shorter lines
    return trainer


def check_rows(prepared: Path, meta: dict[str, Any]) -> None:
    """Raise DataError if rows.arrow, which contains the files and lines of the rows, is damaged."""
    path, rows = prepared / "rows.arrow", meta["rows"]
    check_count(path, len(read_sequences(path)), rows["read"] - rows["quarantined"])


def tokens_to_train(lora: LoraParams, model: Any, tokenizer: Any, sequences: Any) -> list[int]:
    """Return the ids of the untrained special tokens in the training sequences, and print these tokens.

    A special token is untrained if the base model never learned it. Raises ParamsError if there are untrained tokens
    and `lora.untrained_tokens` is `error`, or if these tokens can't be trained.
    """
    import pyarrow.compute as pc

    column = sequences.data.table["input_ids"]
    used = {token for chunk in column.chunks for token in pc.unique(chunk.flatten()).to_pylist()}
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    tokens = untrained_tokens(model, sorted(used), special, len(tokenizer))
    names = ", ".join(tokenizer.convert_ids_to_tokens(tokens))
    found = f"the base model never learned these special tokens of the rows: {names}"
    if tokens and lora.untrained_tokens == "error":
        raise ParamsError(
            f"params.yaml: lora.untrained_tokens is error, and {found}. Set this key to train, or choose another "
            "sequence.chat_template or base model."
        )
    if tokens and model.get_output_embeddings().bias is not None:  # PEFT's layer for trained tokens ignores it
        raise ParamsError(
            f"params.yaml: lora.untrained_tokens is train, and {found}. They can't be trained, because the head of "
            f"{type(model).__name__} has a bias. Set this key to ignore, or choose another sequence.chat_template."
        )
    if tokens:
        print(f"also training the embeddings of special tokens that the base model never learned: {names}")
    return tokens


def fit(trainer: "PackedTrainer", params: TrainParams, checkpoints: Path, stop: Stop) -> None:
    """Train to the last step, resuming from the newest complete checkpoint if there is one.

    Raises Stopped if a signal stopped training before the last step, TrainingError if training ran out of memory, and
    DataError if the checkpoint contains a pickle that would run code.
    """
    from recipe.train.sft import StoppedWithinStep

    newest = newest_complete(checkpoints)
    if newest and is_last(newest):
        # If num_epochs is not an integer, resuming from the last step would make the Trainer run an extra step.
        shutil.rmtree(newest)
        newest = newest_complete(checkpoints)
    if newest:
        print(f"resuming from {newest.name}")
    try:
        with suppress(StoppedWithinStep), out_of_memory("training", params.memory_advice()), stop:
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    except pickle.UnpicklingError as error:  # torch.load with weights_only, which transformers uses, runs no code
        raise DataError(
            f"{newest} contains a file that is more than plain data ({first_line(error, 120)}), and was not written by "
            "this recipe. Delete this checkpoint, and run `dvc repro` to resume from the one before."
        ) from None
    if stop.signal_number and trainer.state.global_step < trainer.state.max_steps:
        done = f"{trainer.state.global_step} of {trainer.state.max_steps}"
        raise Stopped(f"training was stopped after step {done}. Run `dvc repro` to resume.", stop.signal_number)


def run(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """Run the train stage, and return a line with the adapter's folder and the training time."""
    pin_processor(params["train"].dtype)
    train_params = services.fit_to_memory()
    tracker = services.tracker()
    key = f"{tracker.facts['fingerprint'][:16]}-{installed_lock()[:8]}"
    with tracker.training() as log:
        cost = train(params["lora"], train_params, paths, paths.local / "checkpoints" / key, log)
        log(cost, 0)
    remove_others(paths.local / "checkpoints", key)
    services.remember({**cost, "training": key})
    return f"adapter: {paths.adapter} ({cost['seconds']:.0f} s of training)"
