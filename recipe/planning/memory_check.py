"""Whether training fits this machine: its memory, and whether it has a GPU for a large model.

`recipe plan` shows it; fetch and train refuse what can't fit.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.core.errors import MachineError
from recipe.core.format import format_bytes
from recipe.core.hub_cache import base_folder
from recipe.core.io import read_json
from recipe.core.paths import Paths
from recipe.planning.activation_trace import Untraceable
from recipe.planning.memory_estimate import MemoryEstimate, count_parameters, estimate_training_memory

AUTO_MARGIN = 1.15  # what a step needs is stated to within 15% (tests/test_memory.py)
CPU_PARAMETERS = 1_000_000_000  # a larger model is no work for a CPU
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
EMBEDDED = "The embedded default needs none: `make demo` in the repository's root."
ANYWAY = "To go on all the same: --force, or RECIPE_FORCE=1."


def load_config(folder: Path) -> Any:
    """transformers' config of a model's folder; remote code is never run for it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise MachineError(f"the model's config in {folder} can't be read: {str(error).splitlines()[0]}") from None


def missing_gpu(count: int) -> str | None:
    """Why a model of `count` parameters is no work for this machine; None where it is."""
    import torch

    if torch.cuda.is_available() or count <= CPU_PARAMETERS:
        return None
    return f"{count / 1e9:.1f} billion parameters are no work for a CPU, and there is no CUDA GPU. {EMBEDDED}"


def refuse_without_gpu(config: Any, name: str) -> None:
    """Raise MachineError for a large model on a machine without CUDA, before its weights are downloaded."""
    reason = missing_gpu(count_parameters(config))
    if reason:
        raise MachineError(f"{name}: {reason} {ANYWAY}")


def machine_memory() -> tuple[str, int]:
    """The device that trains, and its memory in bytes; of a CPU, what is available, in a container too."""
    import psutil
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return device.name, device.total_memory
    # A container's limit, in version 2 of cgroups and in version 1; psutil sees the host's memory.
    limits = [path.read_text().strip() for path in MEMORY_LIMITS if path.is_file()]
    return "CPU", min([psutil.virtual_memory().available, *(int(one) for one in limits if one.isdigit())])


def estimate_for(params: dict[str, Any], config: Any, trained_fraction: float, *, cuda: bool) -> MemoryEstimate:
    """estimate_training_memory of a recipe's params, in which activation checkpointing is on or off."""
    train, max_length = params["train"], params["sequence"].max_length
    return estimate_training_memory(
        config, params["lora"], quantization=train.quantization, cuda=cuda, dtype=train.dtype,
        activation_checkpointing=train.activation_checkpointing == "on",
        micro_batch_size=train.micro_batch_size(max_length), max_length=max_length, trained_fraction=trained_fraction,
    )  # fmt: skip


def choose_checkpointing(params: dict[str, Any], config: Any, trained_fraction: float) -> dict[str, Any]:
    """The params with `activation_checkpointing: auto` made off where memory allows, else on.

    Both end in the same bytes. On, too, for a model that can't be traced.
    """
    import torch

    if params["train"].activation_checkpointing != "auto":
        return params
    off, on = (
        {**params, "train": params["train"].model_copy(update={"activation_checkpointing": value})}
        for value in ("off", "on")
    )
    try:
        need = estimate_for(off, config, trained_fraction, cuda=torch.cuda.is_available())
    except Untraceable:
        return on
    return off if need.peak * AUTO_MARGIN <= machine_memory()[1] else on


def suggest_fix(params: dict[str, Any], fits: Callable[[dict[str, Any]], bool]) -> str:
    """The first change of train's keys, from the cheapest on, after which it fits."""
    train, max_length = params["train"], params["sequence"].max_length
    changes: list[dict[str, Any]] = []
    one = {"micro_batch_tokens": max_length}
    if train.micro_batch_size(max_length) > 1:
        changes.append(one)
    if train.activation_checkpointing == "off":
        changes.append({"activation_checkpointing": "on"})
        changes.append({**one, "activation_checkpointing": "on"})
    if train.quantization != "nf4":
        changes.append({"quantization": "nf4", **one, "activation_checkpointing": "on"})
    for change in changes:
        if fits({**params, "train": train.model_copy(update=change)}):
            return "Set " + ", ".join(f"train.{key}: {value}" for key, value in change.items()) + "."
    return "Lower sequence.max_length, or choose a smaller model or a larger GPU."


def check_memory(
    params: dict[str, Any], config: Any, trained_fraction: float
) -> tuple[MemoryEstimate | None, list[str]]:
    """What training needs, and a line for what does not fit; None for a model that can't be traced.

    The params are those of `choose_checkpointing`.
    """
    import torch

    cuda, (device, memory) = torch.cuda.is_available(), machine_memory()
    try:
        need = estimate_for(params, config, trained_fraction, cuda=cuda)
    except Untraceable:
        return None, []
    if need.peak <= memory:
        return need, []
    change = suggest_fix(params, lambda one: estimate_for(one, config, trained_fraction, cuda=cuda).peak <= memory)
    return need, [f"training needs {format_bytes(need.peak)} of memory, {device} has {format_bytes(memory)}. {change}"]


def fit_to_machine(params: dict[str, Any], paths: Paths, *, force: bool) -> Any:
    """The section `train` with activation checkpointing on or off, as this machine's memory allows.

    Raises MachineError where training needs more memory than the machine has; with `force`, it does not.
    """
    folder = base_folder(read_json(paths.base / "manifest.json"), paths.folder)
    if not (folder / "config.json").is_file() or params["model"].trust_remote_code:
        # train says what is missing; nothing is known of a model with its own code.
        chosen = params["train"].activation_checkpointing
        return params["train"].model_copy(update={"activation_checkpointing": "on" if chosen == "auto" else chosen})
    tokens, config = read_json(paths.prepared / "meta.json")["tokens"], load_config(folder)
    params = choose_checkpointing(params, config, tokens["train_loss_tokens"] / tokens["train"])
    problems = [] if force else check_memory(params, config, tokens["train_loss_tokens"] / tokens["train"])[1]
    if problems:
        raise MachineError(f"{problems[0]} {ANYWAY}")
    return params["train"]
