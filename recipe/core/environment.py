"""Checks which lock file the Python environment was installed from, and configures the installed libraries."""

import logging
import os
import sys
import warnings
from pathlib import Path

from recipe.core.errors import MachineError
from recipe.core.io import sha256_file

# These files pin the packages that the stages import. In dvc.yaml, every stage except register depends on both files.
LOCKS = ("cpu.lock", "cuda.lock")
RECORD = "recipe-lock.sha256"  # `make env` and the image build write this file to the environment's folder
UNKNOWN = "unknown"


def installed_lock() -> str:
    """Return the sha256 of the lock file that this environment was installed from, or UNKNOWN if it is not recorded."""
    path = Path(sys.prefix) / RECORD
    return path.read_text(encoding="utf-8").split()[0] if path.is_file() else UNKNOWN


def lock_name(requirements: Path, sha256: str) -> str | None:
    """Return the name of the lock file in `requirements` that has this sha256, or None if there is none."""
    paths = [requirements / name for name in LOCKS if (requirements / name).is_file()]
    return next((path.name for path in paths if sha256_file(path) == sha256), None)


def check_installed_lock(requirements: Path) -> None:
    """Raise MachineError if this environment was installed from a lock file that is not in `requirements`.

    Lock files are compared by sha256. An environment without a recorded lock file was set up by the user and is not
    checked.
    """
    installed = installed_lock()
    known = {sha256_file(requirements / name) for name in LOCKS if (requirements / name).is_file()}
    if installed != UNKNOWN and known and installed not in known:
        raise MachineError(
            f"the environment {sys.prefix} was installed from a different version of "
            f"requirements/{' or '.join(LOCKS)}. Run `make env` in the repository root."
        )


def configure_libraries(*, network: bool) -> None:
    """Disable telemetry, reduce library output and, unless `network` is true, forbid downloads from the Hub.

    Call this function before the libraries are imported. None of these settings changes a stage's output.
    """
    if not network:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if not network or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # Without this setting, transformers asks a web service to convert .bin weights.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # On a CPU, bitsandbytes (imported by PEFT) tries to download kernels from the Hub, and warns if it cannot.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # PEFT 0.21 reads a property by its old name. transformers 5.23 renamed the property and warns about the old name.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
