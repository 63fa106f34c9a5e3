"""Configures the CPU or GPU: the instruction set, deterministic kernels and the dtype.

The stages use these settings so that the same inputs produce the same bytes.
"""

import os
from typing import Any, Literal

from recipe.core.errors import MachineError

Dtype = Literal["auto", "bfloat16"]
Quantization = Literal["none", "int8", "nf4"]  # the quantization of the frozen base model


def pin_processor(dtype: Dtype = "auto") -> None:
    """Select the instruction set that ATen, oneDNN and MKL use. Call this function before importing torch.

    If `dtype` is bfloat16, oneDNN may also use AVX512-BF16 and AMX. ATen then uses its default instruction set, which
    is AVX512 on every processor that has AVX512-BF16 or AMX.
    """
    # COMPATIBLE is the only setting of MKL that also applies to AMD processors (MKL developer guide, section
    # "Specifying Code Branches"). It halves MKL's speed, so be_deterministic routes most products to oneDNN.
    os.environ["MKL_CBWR"] = "COMPATIBLE"
    if dtype == "bfloat16":
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_AMX"
        os.environ.pop("ATEN_CPU_CAPABILITY", None)
    else:
        os.environ.update(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2")
    # A waiting thread spins for this many iterations and then sleeps. With libgomp's default, two simultaneous training
    # runs on two cores take 4 to 9 times as long as a single run. With this value, two simultaneous runs take twice as
    # long as a single run, and a single run is as fast as with the default (docs/RESULTS.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # By default, cuBLAS selects a workspace for each stream. The choice can change the order in which numbers are added
    # (CUDA documentation, cuBLAS, section 2.1.4).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def be_deterministic(num_threads: int) -> None:
    """Use deterministic and portable kernels and a fixed number of CPU threads in this process.

    The number of threads determines how sums are split.
    """
    import torch

    from recipe.model.portable_kernels import use_portable_kernels

    use_portable_kernels()
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    # If this setting were True, torch would fill new tensors with NaN to expose reads of uninitialized memory.
    # Reproducible results do not require this setting.
    torch.utils.deterministic.fill_uninitialized_memory = False


def torch_dtype(dtype: Dtype) -> Any:
    """Return the torch dtype for frozen weights and matrix multiplications.

    On CUDA, the dtype is bf16. On a CPU, the dtype is fp32 unless `dtype` is bfloat16. Raises MachineError if bf16 is
    needed but the device can only emulate it.
    """
    import torch

    if torch.cuda.is_available():
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise MachineError(
                f"{torch.cuda.get_device_name()} can't compute in bf16, which recipes always use on CUDA. Use an "
                "Ampere or newer GPU (A100, RTX 30, L4, ...), or set CUDA_VISIBLE_DEVICES='' to use the CPU."
            )
        return torch.bfloat16
    if dtype == "auto":
        return torch.float32
    supported = {name for name, available in torch.cpu.get_capabilities().items() if available}
    if not supported & {"avx512_bf16", "amx_bf16"}:
        raise MachineError(
            "this processor has no bf16 instructions (AVX512-BF16 or AMX) and would emulate them slowly. "
            "Set train.dtype to auto in params.yaml."
        )
    return torch.bfloat16
