"""Checks that this machine has enough memory for training, and a GPU if the model is large.

`recipe plan` shows the result. Unless --force is set, two stages also run these checks. If a Hub model needs a GPU and
there is none, the fetch stage fails before the download. If there is too little memory, the train stage fails.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.core.errors import MachineError
from recipe.core.format import first_line, format_bytes
from recipe.core.hub_cache import base_folder
from recipe.core.io import read_json
from recipe.core.paths import Paths
from recipe.planning.activation_trace import Untraceable
from recipe.planning.evaluation_memory import evaluation_memory
from recipe.planning.memory_estimate import MemoryEstimate, count_parameters, estimate_training_memory

AUTO_MARGIN = 1.15  # the memory estimate is accurate to within 15% (tests/test_memory.py)
CPU_PARAMETERS = 1_000_000_000  # larger models are too slow to train on a CPU
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
DEMO_HINT = "The demo needs no GPU. To try it, run `make demo` in the repository root."
FORCE_HINT = "To run anyway, use --force or RECIPE_FORCE=1."


def load_config(folder: Path) -> Any:
    """Load the transformers config in a model's folder, without remote code. Raises MachineError if that fails.

    If the weights are already quantized, the config's quantization settings are removed, because `train.quantization`
    specifies the same quantization.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise MachineError(f"the model's config in {folder} can't be read: {first_line(error)}") from None
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def missing_gpu(count: int) -> str | None:
    """Return an error message if a model with `count` parameters needs a GPU and there is none, otherwise None."""
    import torch

    if torch.cuda.is_available() or count <= CPU_PARAMETERS:
        return None
    return f"{count / 1e9:.1f} billion parameters are too many to train on a CPU, and there is no CUDA GPU. {DEMO_HINT}"


def refuse_without_gpu(config: Any, name: str) -> None:
    """Raise MachineError if the model needs a GPU and this machine has none.

    The fetch stage calls this function before it downloads the weights.
    """
    reason = missing_gpu(count_parameters(config))
    if reason:
        raise MachineError(f"{name}: {reason} {FORCE_HINT}")


def machine_memory() -> tuple[str, int]:
    """Return the name of the training device and its memory in bytes.

    For a CPU, this is the available memory, or the container's limit if that is lower.
    """
    import psutil
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return device.name, device.total_memory
    # psutil reports the host's memory. A container's memory limit is in a cgroup v2 or v1 file.
    limits = [path.read_text().strip() for path in MEMORY_LIMITS if path.is_file()]
    return "CPU", min([psutil.virtual_memory().available, *(int(limit) for limit in limits if limit.isdigit())])


def estimate_for(params: dict[str, Any], config: Any, trained_fraction: float, *, cuda: bool) -> MemoryEstimate:
    """Return the memory estimate for a recipe's params. `activation_checkpointing` must be on or off, not auto."""
    train, max_length = params["train"], params["sequence"].max_length
    return estimate_training_memory(
        config, params["lora"], quantization=train.quantization, cuda=cuda, dtype=train.dtype,
        activation_checkpointing=train.activation_checkpointing == "on",
        micro_batch_size=train.micro_batch_size(max_length), max_length=max_length, trained_fraction=trained_fraction,
    )  # fmt: skip


def choose_checkpointing(params: dict[str, Any], config: Any, trained_fraction: float) -> dict[str, Any]:
    """Return the params with `activation_checkpointing: auto` resolved to off if memory allows, and to on otherwise.

    The value is also on if the model can't be traced. Both settings produce the same adapter, byte for byte.
    """
    import torch

    if params["train"].activation_checkpointing != "auto":
        return params
    off, on = (
        {**params, "train": params["train"].model_copy(update={"activation_checkpointing": value})}
        for value in ("off", "on")
    )
    try:
        estimate = estimate_for(off, config, trained_fraction, cuda=torch.cuda.is_available())
    except Untraceable:
        return on
    return off if estimate.peak * AUTO_MARGIN <= machine_memory()[1] else on


def suggest_fix(params: dict[str, Any], fits: Callable[[dict[str, Any]], bool]) -> str:
    """Return a sentence that suggests how to make training fit in memory.

    It suggests the cheapest sufficient change to the `train` section. If no change to that section is sufficient, it
    suggests a shorter max_length, a smaller model or a larger GPU.
    """
    train, max_length = params["train"], params["sequence"].max_length
    changes: list[dict[str, Any]] = []
    one_sequence = {"micro_batch_tokens": max_length}
    if train.micro_batch_size(max_length) > 1:
        changes.append(one_sequence)
    if train.activation_checkpointing == "off":
        changes.append({"activation_checkpointing": "on"})
        changes.append({**one_sequence, "activation_checkpointing": "on"})
    if train.quantization != "nf4":
        changes.append({"quantization": "nf4", **one_sequence, "activation_checkpointing": "on"})
    for change in changes:
        if fits({**params, "train": train.model_copy(update=change)}):
            return "Set " + ", ".join(f"train.{key}: {value}" for key, value in change.items()) + "."
    return "Lower sequence.max_length, or choose a smaller model or a larger GPU."


def check_memory(
    params: dict[str, Any], config: Any, trained_fraction: float
) -> tuple[MemoryEstimate | None, list[str]]:
    """Return the memory estimate and a list of problems, which is empty if training fits in memory.

    If the model can't be traced, the estimate is None and the list is empty.
    `params` must come from `choose_checkpointing`.
    """
    import torch

    cuda, (device, memory) = torch.cuda.is_available(), machine_memory()
    try:
        estimate = estimate_for(params, config, trained_fraction, cuda=cuda)
    except Untraceable:
        return None, []
    if estimate.peak <= memory:
        return estimate, []
    change = suggest_fix(params, lambda fix: estimate_for(fix, config, trained_fraction, cuda=cuda).peak <= memory)
    needed, available = format_bytes(estimate.peak), format_bytes(memory)
    return estimate, [f"training needs {needed} of memory, but the device ({device}) has {available}. {change}"]


def check_evaluation(params: dict[str, Any], config: Any, training: MemoryEstimate) -> tuple[int, list[str]]:
    """Return the evaluate stage's estimated peak memory in bytes, and a list of problems.

    The list is empty if the stage fits in memory. `training` is the estimate for the train stage.
    """
    import torch

    evaluate, (device, memory) = params["evaluate"], machine_memory()
    peak = evaluation_memory(
        config, training, batch_tokens=evaluate.batch_tokens, quantization=params["train"].quantization,
        longest=params["sequence"].max_length + evaluate.max_new_tokens, cuda=torch.cuda.is_available(),
    )  # fmt: skip
    if peak <= memory:
        return peak, []
    needed, available = format_bytes(peak), format_bytes(memory)
    return peak, [
        f"evaluation needs {needed} of memory, but the device ({device}) has {available}. Lower evaluate.batch_tokens, "
        "or set train.quantization: nf4."
    ]


def fit_to_machine(params: dict[str, Any], paths: Paths, *, force: bool) -> Any:
    """Return the `train` section with `activation_checkpointing: auto` resolved to on or off for this machine.

    Raises MachineError if training needs more memory than the machine has, unless `force` is true.
    """
    folder = base_folder(read_json(paths.base / "manifest.json"), paths.folder)
    if not (folder / "config.json").is_file() or params["model"].trust_remote_code:
        # The train stage reports missing files itself. A model with remote code can't be traced.
        setting = params["train"].activation_checkpointing
        return params["train"].model_copy(update={"activation_checkpointing": "on" if setting == "auto" else setting})
    tokens, config = read_json(paths.prepared / "meta.json")["tokens"], load_config(folder)
    params = choose_checkpointing(params, config, tokens["train_loss_tokens"] / tokens["train"])
    problems = [] if force else check_memory(params, config, tokens["train_loss_tokens"] / tokens["train"])[1]
    if problems:
        raise MachineError(f"{problems[0]} {FORCE_HINT}")
    return params["train"]
