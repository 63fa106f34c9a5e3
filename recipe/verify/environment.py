"""Describes the machine and the software of a training run, and what differs between two descriptions.

The train stage's command writes environment.json next to dvc.lock: dvc.lock says which bytes a run produced, and
environment.json says where. The file is not an output. It changes only if the adapter changes, so that a run which
reproduces the adapter on a different machine leaves the file as it is.
"""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from recipe.core.adapter import WEIGHTS
from recipe.core.environment import installed_lock, lock_name
from recipe.core.io import read_json, sha256_file, write_json
from recipe.core.paths import Paths, repository

FILE = "environment.json"
PACKAGES = ("torch", "transformers", "peft", "trl", "numpy")
# The instruction sets that the libraries choose their kernels by.
INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def environment(repository: Path, num_threads: int) -> dict[str, str]:
    """Return what can change the bytes of a training run, as {name: value}. GPUs are included if torch is loaded."""
    processor, lock = _processor(), installed_lock()
    facts = {
        "processor": processor.get("model name", platform.machine()),
        "instruction sets": " ".join(name for name in INSTRUCTION_SETS if name in processor.get("flags", "").split()),
        "cores": str(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else str(os.cpu_count()),
        "threads": str(num_threads),
        "system": f"{platform.system()}, {' '.join(platform.libc_ver())}".rstrip(", "),
        "python": platform.python_version(),
        "lock": f"{lock_name(repository / 'requirements', lock) or 'another lock'} {lock[:12]}",
        "image": os.environ.get("RECIPE_IMAGE", "none"),
    }
    for name in PACKAGES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    return facts | _gpu()


def record_environment(paths: Paths, num_threads: int) -> None:
    """Write environment.json, unless it describes a run that produced the same adapter."""
    adapter, file = sha256_file(paths.adapter / WEIGHTS), paths.folder / FILE
    if not file.is_file() or read_json(file).get("adapter_sha256") != adapter:
        facts = environment(repository(paths.folder), num_threads)
        write_json(file, {"adapter_sha256": adapter, **facts})


def differences(recorded: dict[str, str], here: dict[str, str]) -> list[str]:
    """Return a line for each value that differs."""
    return [
        f"{name}: {recorded.get(name, 'unknown')} (recorded), {value} (here)"
        for name, value in here.items()
        if recorded.get(name) != value
    ]


def _processor() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo, or {} on systems without this file."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _gpu() -> dict[str, str]:
    """Return the name of the GPU, and the versions of the driver and of CUDA, if torch is loaded and uses a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    driver = Path("/proc/driver/nvidia/version")
    words = driver.read_text(encoding="utf-8").split() if driver.is_file() else []
    number = next((word for word in words if word[0].isdigit() and word.count(".") >= 1), "unknown")
    return {"GPU": torch.cuda.get_device_name(), "driver": number, "CUDA": str(torch.version.cuda)}
