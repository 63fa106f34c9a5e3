"""How a CPU or GPU computes: the instruction set, deterministic kernels, the dtype.

The stages pin these, so that the same inputs give the same bytes.
"""

import os
from typing import Any, Literal

from recipe.core.errors import MachineError

Dtype = Literal["auto", "bfloat16"]


def pin_processor(dtype: Dtype = "auto") -> None:
    """Choose the instruction set that ATen, oneDNN and MKL use. Read when torch is loaded, so call this before.

    For bf16 oneDNN may use AVX512-BF16 and AMX, and ATen its best, which is AVX512 on every processor that has those.
    """
    os.environ["MKL_CBWR"] = "AVX2"
    if dtype == "bfloat16":
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_AMX"
        os.environ.pop("ATEN_CPU_CAPABILITY", None)
    else:
        os.environ.update(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2")
    # Threads that wait for each other spin for this many rounds, then sleep. With libgomp's own count, two trainings on
    # two cores take 4 to 8 times as long as one; with this one twice, and one alone is as fast (docs/RESULTS.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # cuBLAS picks its workspace, and with it the order of sums, by stream unless told (CUDA docs, cuBLAS, 2.1.4).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def be_deterministic(num_threads: int) -> None:
    """Deterministic kernels and a fixed number of CPU threads; another number splits sums otherwise."""
    import torch

    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    # Would fill every new tensor with NaN, to find reads of memory never written: not needed for equal results.
    torch.utils.deterministic.fill_uninitialized_memory = False


def torch_dtype(dtype: Dtype) -> Any:
    """The torch dtype of frozen weights and of matmuls: bf16 on CUDA, fp32 on a CPU unless bf16 is asked for.

    Raises MachineError for a device that computes in bf16 only by emulating it.
    """
    import torch

    if torch.cuda.is_available():
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise MachineError(
                f"{torch.cuda.get_device_name()} can't compute in bf16, which weights and nf4 use on CUDA: that takes "
                "an Ampere GPU or a newer one (A100, RTX 30, L4, ...). CUDA_VISIBLE_DEVICES='' trains on the CPU."
            )
        return torch.bfloat16
    if dtype == "auto":
        return torch.float32
    if not {name for name, is_there in torch.cpu.get_capabilities().items() if is_there} & {"avx512_bf16", "amx_bf16"}:
        raise MachineError(
            "this processor has no bf16 (AVX512-BF16 or AMX), and would emulate it slowly. Set train.dtype: auto."
        )
    return torch.bfloat16
