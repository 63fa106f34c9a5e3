"""Explains errors that occur when memory runs out.

with out_of_memory("training", "Lower train.micro_batch_tokens (now 8192)."):
    ...    # raises TrainingError if memory runs out
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from recipe.core.errors import TrainingError
from recipe.core.format import format_bytes

NO_MEMORY = re.compile(r"can't allocate memory|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def out_of_memory(what: str, advice: str) -> Iterator[None]:
    """Convert the errors that torch and Python raise when memory runs out in the block to a TrainingError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _is_out_of_memory(error):
            raise
        raise TrainingError(f"{what} ran out of memory: {memory_text()}. {advice}") from None


def memory_text() -> str:
    """Return how much memory this process has used at most, and how much there is, on the device that torch uses."""
    import psutil
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        used = torch.cuda.max_memory_reserved()
        return (
            f"it used up to {format_bytes(used)} of the GPU's {format_bytes(total)}, and {format_bytes(free)} is free"
        )
    memory = psutil.virtual_memory()
    return (
        f"it used up to {format_bytes(peak_memory())}, and {format_bytes(memory.available)} of "
        f"{format_bytes(memory.total)} is available"
    )


def peak_memory() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or NO_MEMORY.search(str(error)) is not None
