"""Replaces CPU kernels of torch whose results depend on the processor with ones that do not.

    use_portable_kernels()    # from now on in this process, torch.mm, torch.addmm and linear layers use oneDNN

By default, torch computes matrix products and some functions with MKL, whose code depends on the processor's vendor:
the setting that selects an instruction set works only on Intel processors. With MKL_CBWR=COMPATIBLE, MKL computes the
same bytes everywhere, but at less than half the speed, and some functions still differ. This module replaces what
matters:

- fp32 matrix products use oneDNN. With ONEDNN_MAX_CPU_ISA=AVX2, oneDNN computes the same bytes on every processor that
  has AVX2, and is as fast as MKL's own choice (docs/RESULTS.md).
- fp32 square roots use NumPy, which rounds correctly (IEEE 754), as the processor's instruction does.

Products that are not replaced, such as those inside attention, use MKL in COMPATIBLE mode. tests/test_processors.py
compares the results on emulated processors.
"""

import functools
import warnings
from typing import Any

import numpy as np
import torch


@functools.cache
def use_portable_kernels() -> None:
    """Replace the kernels in this process. Later calls have no effect."""
    library = torch.library.Library("aten", "IMPL")
    kernels = {"mm": _mm, "addmm": _addmm, "sqrt": _sqrt, "sqrt_": _sqrt_in_place, "pow.Tensor_Scalar": _power}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that its kernels are replaced
        for name, kernel in kernels.items():
            library.impl(name, kernel, "CPU", allow_override=True)
    _LIBRARIES.append(library)


_LIBRARIES: list[Any] = []  # torch restores its own kernels when a library is garbage-collected


def _mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a @ b, for a of shape (m, k) and b of shape (k, n)."""
    if _supported(a, b):
        return _product(a, b.t(), None)
    return torch.ops.aten.mm.out(a, b, out=a.new_empty(a.shape[0], b.shape[1]))


def _addmm(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1, alpha: float = 1) -> torch.Tensor:
    """Return beta * c + alpha * a @ b. As in torch, NaN in `c` has no effect if beta is 0."""
    if not (_supported(a, b) and c.dtype == torch.float32):
        return torch.ops.aten.addmm.out(c, a, b, beta=beta, alpha=alpha, out=c.new_empty(a.shape[0], b.shape[1]))
    if c.dim() == 1 and len(c) == b.shape[1] and beta == alpha == 1:
        return _product(a, b.t(), c)
    product = _product(a, b.t(), None)
    if alpha != 1:
        product.mul_(alpha)
    return product.add_(c, alpha=beta) if beta else product


def _supported(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether oneDNN can compute a @ b: both are fp32, and no dimension is 0."""
    return a.dtype == b.dtype == torch.float32 and a.numel() > 0 and b.numel() > 0


def _product(a: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return a @ weightᵀ + bias, for a weight of shape (n, k)."""
    return torch.ops.mkldnn._linear_pointwise.default(a, weight, bias, "none", [], "")


def _sqrt(x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32:
        dtype = x.dtype if x.is_floating_point() or x.is_complex() else torch.get_default_dtype()
        return torch.ops.aten.sqrt.out(x, out=torch.empty_like(x, dtype=dtype))
    with np.errstate(invalid="ignore"):  # the square root of a negative number is NaN, without a warning
        return torch.from_numpy(np.asarray(np.sqrt(x.detach().numpy())))


def _sqrt_in_place(x: torch.Tensor) -> torch.Tensor:
    return x.copy_(_sqrt(x))


def _power(x: torch.Tensor, exponent: float) -> torch.Tensor:
    if x.dtype == torch.float32 and exponent == 0.5:  # torch computes a square root
        return _sqrt(x)
    out = torch.empty_like(x, dtype=torch.result_type(x, exponent))
    return torch.ops.aten.pow.Tensor_Scalar_out(x, exponent, out=out)
