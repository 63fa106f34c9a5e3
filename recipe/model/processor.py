"""The settings of a CPU or GPU: the instruction set, deterministic kernels, the dtype.

The stages pin these, so that the same inputs give the same bytes.
"""

import os
from typing import Any, Literal

from recipe.core.errors import MachineError

Dtype = Literal["auto", "bfloat16"]
Quantization = Literal["none", "int8", "nf4"]  # of the frozen base model


def pin_processor(dtype: Dtype = "auto") -> None:
    """Set the instruction set that ATen, oneDNN and MKL use. Call it before importing torch, which reads it then.

    For bf16, oneDNN may use AVX512-BF16 and AMX, and ATen its default, AVX512 on every processor that has those.
    """
    os.environ["MKL_CBWR"] = "AVX2"
    if dtype == "bfloat16":
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_AMX"
        os.environ.pop("ATEN_CPU_CAPABILITY", None)
    else:
        os.environ.update(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2")
    # Waiting threads spin for this many rounds, then sleep. With libgomp's default, two training runs on two cores take
    # 4 to 8 times as long as one; with this value, twice as long, and a single run is as fast (docs/RESULTS.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # By default, cuBLAS chooses its workspace, and so the order of sums, by stream (CUDA docs, cuBLAS, 2.1.4).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def be_deterministic(num_threads: int) -> None:
    """Use deterministic kernels and a fixed number of CPU threads, which determines how sums are split."""
    import torch

    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    # True would fill new tensors with NaN to detect reads of uninitialized memory; not needed for equal results.
    torch.utils.deterministic.fill_uninitialized_memory = False


def torch_dtype(dtype: Dtype) -> Any:
    """The torch dtype of frozen weights and matmuls: bf16 on CUDA, fp32 on a CPU unless `dtype` is bfloat16.

    Raises MachineError for a device that can only emulate bf16.
    """
    import torch

    if torch.cuda.is_available():
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise MachineError(
                f"{torch.cuda.get_device_name()} can't compute in bf16, which weights and nf4 use on CUDA. Use an "
                "Ampere GPU or newer (A100, RTX 30, L4, ...), or set CUDA_VISIBLE_DEVICES='' to train on the CPU."
            )
        return torch.bfloat16
    if dtype == "auto":
        return torch.float32
    supported = {name for name, available in torch.cpu.get_capabilities().items() if available}
    if not supported & {"avx512_bf16", "amx_bf16"}:
        raise MachineError(
            "this processor has no bf16 support (AVX512-BF16 or AMX) and would emulate it slowly. "
            "Set train.dtype: auto."
        )
    return torch.bfloat16
