"""The environment that a process runs in: which lock file it was installed from, and how libraries behave in it."""

import logging
import os
import sys
import warnings
from pathlib import Path

from recipe.core.errors import MachineError
from recipe.core.io import sha256_file

LOCKS = ("cpu.lock", "cuda.lock")  # what the stages import, pinned and hashed; an input of the stages
RECORD = "recipe-lock.sha256"  # `make env` and the image write it into the environment's folder
UNKNOWN = "unknown"


def installed_lock() -> str:
    """The sha256 of the lock file that this environment was installed from, or UNKNOWN."""
    path = Path(sys.prefix) / RECORD
    return path.read_text(encoding="utf-8").split()[0] if path.is_file() else UNKNOWN


def check_installed_lock(requirements: Path) -> None:
    """Raise MachineError if this environment was installed from a lock file that is not in `requirements` (now).

    An environment that records no lock file is the user's own: nothing is known of it, and it is let through.
    """
    installed = installed_lock()
    known = {sha256_file(requirements / name) for name in LOCKS if (requirements / name).is_file()}
    if installed != UNKNOWN and known and installed not in known:
        raise MachineError(
            f"the environment {sys.prefix} was installed from another version of requirements/{' or '.join(LOCKS)}. "
            "Run `make env` in the repository's root."
        )


def configure_libraries(*, network: bool) -> None:
    """Before libraries are imported: no telemetry, no downloads but where `network` allows them, no noise.

    Nothing here changes an output.
    """
    if not network:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if not network or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_XET"] = "1"  # plain HTTP is what the tests try
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # transformers would ask a service to convert .bin weights
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # bitsandbytes, which PEFT imports, asks for kernels from the Hub on a CPU, and warns that it may not have them.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # PEFT 0.21 reads a property that transformers 5.23 has renamed.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
