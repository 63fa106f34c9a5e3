"""Implements `recipe plan`, which estimates a recipe's requirements without downloading rows or weights.

The numbers of rows, tokens and steps are exact if prepare has run. Otherwise, they are estimates, and the plan marks
them as estimated. Memory and time are always estimates.
"""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError, MachineError, ParamsError
from recipe.core.format import format_bytes, format_time
from recipe.core.hub_cache import HUB, converted_folder, snapshot_folder
from recipe.core.io import read_json
from recipe.core.paths import Paths
from recipe.core.quantized import check_quantization
from recipe.fetch.hub import check_pinned, download, list_repository
from recipe.fetch.splits import dataset_splits, local_split_files
from recipe.fetch.weights import CONFIGS, TOKENIZERS, weight_names
from recipe.model.processor import torch_dtype
from recipe.planning.memory_check import (
    check_evaluation,
    check_memory,
    choose_checkpointing,
    load_config,
    machine_memory,
    missing_gpu,
)
from recipe.planning.token_estimate import hub_text, local_text, text_tokens
from recipe.planning.token_sample import local_tokens
from recipe.prepare.examples import check_columns
from recipe.text.templates import TEMPLATES

EFFICIENCY = 0.5  # speed of a training step relative to a matmul; 0.61 was measured on a CPU (docs/RESULTS.md)
TRAINED_FRACTION = 0.5  # fraction of tokens at loss positions, assumed until prepare has counted them
PARTS = {
    "weights": "weights of the frozen base model",
    "adapter": "adapter, its gradients and optimizer state",
    "activations": "activations kept for the backward pass",
    "logits": "logits and their gradients",
    "other": "other (CUDA context, a dequantized layer)",
}


@dataclass
class Plan:
    """The lines to show, as (heading, text) pairs, and the problems of this machine that prevent training.

    `mistakes` contains the problems of the recipe, which another machine would not solve.
    """

    lines: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the plan as a table, followed by the problems or `fits this machine`."""
        rows = [f"{name:<10}{value}" for name, value in self.lines]
        verdict = [f"does not work: {mistake}" for mistake in self.mistakes]
        verdict += [f"does not fit: {problem}" for problem in self.problems]
        verdict = verdict or ["fits this machine"]
        return "\n".join([*rows, "", *verdict])


def matmul_flops(dtype: Any, size: int | None = None) -> float:
    """Measure the speed of a (size, size) matmul in a torch dtype, in floating-point operations per second.

    Return the best of 8 trials. The default size is 8192 on CUDA and 1024 on a CPU. The inputs are random, because the
    power draw of a GPU depends on the values.
    """
    import torch

    cuda = torch.cuda.is_available()
    size = size or (8192 if cuda else 1024)
    device = "cuda" if cuda else "cpu"
    left, right = (torch.randn((size, size), dtype=dtype, device=device) for _ in range(2))
    repeats = 4 if cuda else 1  # so that synchronizing with the GPU adds little time
    best = 0.0
    for _ in range(8):
        started = time.perf_counter()
        for _ in range(repeats):
            left @ right
        if cuda:
            torch.cuda.synchronize()
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - started))
    return best


def make_plan(params: dict[str, Any], folder: Path, paths: Paths) -> Plan:
    """Return the plan of a recipe folder.

    Only file listings, cards, Parquet footers and configs are downloaded from the Hub.
    """
    plan = Plan()
    rows, tokens, download_bytes = _plan_data(plan, params, folder, paths)
    config_folder = _plan_model(plan, params, folder, download_bytes)
    meta = read_json(paths.prepared / "meta.json") if (paths.prepared / "meta.json").is_file() else None
    sequence, train = params["sequence"], params["train"]
    fraction = TRAINED_FRACTION if sequence.loss_on == "completion" else 1.0
    if meta:
        rows, tokens = meta["rows"]["train"], meta["tokens"]["train"]
        fraction = meta["tokens"]["train_loss_tokens"] / tokens
    elif params["data"].validation_split is None:
        share = 1 - sequence.validation_fraction
        rows, tokens = int(rows * share), int(tokens * share)
    mark = "" if meta else " (estimated)"
    packed = max(tokens // sequence.max_length, 1)
    sequences = meta["sequences"]["train"] if meta else packed if sequence.packing else max(rows, packed)
    steps = train.num_steps(sequences)
    plan.lines.append(("rows", f"{rows:,} to train on{mark}" if rows else "unknown before prepare"))
    plan.lines.append(("tokens", f"{tokens:,} in {sequences:,} sequences of {sequence.max_length:,}{mark}"))
    try:
        train.check_warmup(sequences)
    except ParamsError as error:
        plan.mistakes.append(str(error).removeprefix("params.yaml: "))
    plan.lines.append(("steps", f"{steps:,} of {train.global_batch_size} sequences{mark}"))

    try:
        check_quantization(read_json(config_folder / "config.json"), params["model"].id, train.quantization)
    except (DataError, ParamsError) as error:
        plan.mistakes.append(str(error).removeprefix("params.yaml: "))
        return plan
    config = load_config(config_folder)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest and sequence.max_length > longest:
        plan.mistakes.append(
            f"sequence.max_length is {sequence.max_length:,}, but the model has only {longest:,} positions. "
            "Lower sequence.max_length."
        )
    return _plan_memory_and_time(plan, params, config, fraction, tokens)


def _plan_memory_and_time(plan: Plan, params: dict[str, Any], config: Any, fraction: float, tokens: int) -> Plan:
    """Add the lines about memory and time to the plan, and return the plan.

    `fraction` is the share of the training `tokens` that are at loss positions.
    """
    train = params["train"]
    params = choose_checkpointing(params, config, fraction)
    estimate, problems = check_memory(params, config, fraction)
    device, memory = machine_memory()
    plan.problems += problems
    if estimate and estimate.targets:
        plan.lines.append(("adapter", estimate.targets))
    if estimate is None:
        plan.lines.append(("memory", f"unknown: {type(config).__name__} can't be traced"))
        return plan
    plan.lines.append(("memory", f"{format_bytes(estimate.peak)} of {format_bytes(memory)} ({device}), of which"))
    recomputed = params["train"].activation_checkpointing == "on"
    parts = {**PARTS, "activations": PARTS["activations"] + (", or recomputed in it" if recomputed else "")}
    for part, meaning in parts.items():
        plan.lines.append(("", f"{format_bytes(getattr(estimate, part)):>10} {meaning}"))
    peak, problems = check_evaluation(params, config, estimate)
    plan.lines.append(("evaluate", f"{format_bytes(peak)} of memory"))
    plan.problems += problems
    reason = missing_gpu(estimate.parameters)
    try:
        dtype = torch_dtype(train.dtype)
    except MachineError as error:
        reason = reason or str(error)
    if reason:
        plan.problems.append(reason)
    else:
        speed = matmul_flops(dtype)
        seconds = estimate.flops_per_token * tokens * train.num_epochs / (speed * EFFICIENCY)
        gigaflops, teraflops = estimate.flops_per_token / 1e9, speed / 1e12
        basis = f"{gigaflops:.3g} GFLOP per token at half the {teraflops:.2f} TFLOP/s of a matmul, measured now"
        plan.lines.append(("time", f"about {format_time(seconds)} of training (estimated: {basis})"))
    return plan


def _plan_data(plan: Plan, params: dict[str, Any], folder: Path, paths: Paths) -> tuple[int, int, int]:
    """Add the line about the data to the plan.

    Return the number of rows (0 if unknown), the number of tokens, and the number of bytes to download.
    """
    data, sequence = params["data"], params["sequence"]
    columns = {column for column in sequence.columns.values() if column is not None}
    if data.source != HUB:
        files = local_split_files(folder, data.source, data.splits)
        size = sum(file.stat().st_size for listed in files.values() for file in listed)
        plan.lines.append(("data", f"{data.source}: {format_bytes(size)}, nothing to download"))
        rows, text, column_names = local_text(files["train"], columns)
        tokens = None
        try:
            check_columns(
                TEMPLATES[sequence.template].REQUIRED,
                sequence.columns,
                column_names,
                [file.name for file in files["train"]],
            )
            tokens = local_tokens(params, files["train"], paths)
        except (DataError, ParamsError) as error:
            plan.mistakes.append(str(error).removeprefix("params.yaml: "))
        return rows, text_tokens(sequence.template, rows, text) if tokens is None else tokens, 0
    name, revision = check_pinned("data", data.id, data.revision)
    listing, splits = dataset_splits(name, revision, data.subset, data.splits)
    files_of = {split: [listing.files[path] for path in paths] for split, paths in splits.items()}
    snapshot = snapshot_folder("dataset", name, revision)
    missing = sum(file.size for files in files_of.values() for file in files if not (snapshot / file.path).is_file())
    plan.lines.append(
        ("data", f"{name}@{revision[:8]}: {format_bytes(missing)} to download{_license(listing.license)}")
    )
    rows, text = hub_text(name, revision, files_of["train"], columns)
    return rows, text_tokens(sequence.template, rows, text), missing


def _plan_model(plan: Plan, params: dict[str, Any], folder: Path, data_bytes: int) -> Path:
    """Add the lines about the model and the disk to the plan, and return the folder that contains the config.

    `data_bytes` is the size in bytes of the rows to download.
    """
    from huggingface_hub.constants import HF_HOME

    model = params["model"]
    if model.source != HUB:
        plan.lines.append(("model", f"{model.source}: nothing to download"))
        return folder / model.source
    _, revision = check_pinned("model", model.id, model.revision)
    listing = list_repository("model", model.id, revision)
    snapshot = snapshot_folder("model", model.id, revision)
    weights = weight_names(listing.files)
    names = [name for name in (*CONFIGS, *TOKENIZERS, *weights) if name in listing.files]
    has_converted = converted_folder(model.id, revision).is_dir()
    if has_converted:
        names = [name for name in names if name not in weights]
    missing = sum(listing.files[name].size for name in names if not (snapshot / name).is_file())
    to_convert = any(name.endswith(".bin") for name in weights) and not has_converted
    needed = data_bytes + missing + (sum(listing.files[name].size for name in weights) if to_convert else 0)
    home = Path(HF_HOME)
    while not home.is_dir():
        home = home.parent
    free = shutil.disk_usage(home).free
    plan.lines.append(
        ("model", f"{model.id}@{revision[:8]}: {format_bytes(missing)} to download{_license(listing.license)}")
    )
    copies = " (the .bin weights and the converted safetensors)" if to_convert else ""
    plan.lines.append(("disk", f"{format_bytes(needed)} in {HF_HOME}{copies}, {format_bytes(free)} free"))
    if needed > free:
        plan.problems.append(
            f"{format_bytes(needed)} of disk space is needed, but only {format_bytes(free)} is free. "
            "Set HF_HOME to a folder on a larger disk."
        )
    configs = [listing.files[name] for name in CONFIGS if name in listing.files]
    return download("model", model.id, revision, configs)


def _license(stated: str | None) -> str:
    """Return the license as the source states it, with a note if the license forbids commercial use."""
    if not stated:
        return ", no license stated"
    forbids = "-nc" in stated.lower() or "non-commercial" in stated.lower()
    return f", license {stated}" + (" (no commercial use)" if forbids else "")
