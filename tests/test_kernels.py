"""Portable kernels: matrix products equal fp64 products, for every shape and layout, and square roots are exact."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from recipe.model.portable_kernels import _addmm, _mm, _power, _sqrt, _sqrt_in_place

sizes = st.integers(0, 40)


def matrix(m, k, seed, transposed):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn((k, m) if transposed else (m, k), generator=generator).to(torch.float32).T
        if transposed
        else (torch.randn((m, k), generator=generator))
    )


@given(sizes, sizes, sizes, st.booleans(), st.booleans())
def test_products_of_all_shapes_and_layouts_are_right(m, k, n, a_transposed, b_transposed):
    a, b = matrix(m, k, 1, a_transposed), matrix(k, n, 2, b_transposed)
    expected = a.double() @ b.double()
    torch.testing.assert_close(_mm(a, b).double(), expected, rtol=1e-4, atol=1e-4)
    c = torch.randn(m, n)
    torch.testing.assert_close(
        _addmm(c, a, b, beta=0.5, alpha=2).double(), 0.5 * c.double() + 2 * expected, rtol=1e-4, atol=1e-4
    )
    for row in (torch.randn(n), torch.randn(1, n), torch.randn(m, 1), torch.randn(())):
        result = _addmm(row, a, b)
        assert result.shape == (m, n)
        torch.testing.assert_close(result.double(), row.double() + expected, rtol=1e-4, atol=1e-4)


def test_a_slice_with_steps_and_an_expanded_matrix_work():
    a, b = torch.randn(8, 30)[:, ::3], torch.randn(1, 5).expand(10, 5)
    torch.testing.assert_close(_mm(a, b), (a.double() @ b.double()).float())


def test_nan_in_c_has_no_effect_if_beta_is_0_and_c_is_never_changed():
    a, b, c = torch.randn(2, 3), torch.randn(3, 4), torch.full((2, 4), torch.nan)
    assert not _addmm(c, a, b, beta=0).isnan().any()
    assert c.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.complex64])
def test_other_dtypes_use_torchs_kernels(dtype):
    a, b = torch.arange(6).reshape(2, 3).to(dtype), torch.arange(12).reshape(3, 4).to(dtype)
    expected = a @ b
    assert torch.equal(_mm(a, b), expected) and _mm(a, b).dtype == dtype
    assert torch.equal(_addmm(expected, a, b), expected + expected)


def test_square_roots_are_rounded_correctly():
    x = torch.rand(3, 1000)[:, ::3] * 8
    exact = x.double().sqrt().float()
    assert torch.equal(_sqrt(x), exact) and torch.equal(_power(x, 0.5), exact) and torch.equal(_sqrt(x.T), exact.T)
    assert _sqrt(torch.tensor(-1.0)).isnan() and _sqrt(torch.tensor(4.0)).shape == ()
    assert _sqrt(torch.tensor([4, 9])).tolist() == [2, 3] and _sqrt(torch.ones(2).bfloat16()).dtype == torch.bfloat16
    copy = x.clone()
    assert _sqrt_in_place(copy) is copy and torch.equal(copy, exact)
    for exponent in (2, -0.5, 3.0):
        assert torch.equal(_power(x, exponent), x**exponent)
    assert (
        torch.equal(_power(torch.arange(3), 2), torch.arange(3) ** 2) and _power(torch.arange(3), 0.5).dtype == x.dtype
    )


PROGRAM = """
import torch
from recipe.model.processor import be_deterministic, pin_processor
pin_processor()
before = torch.ops.mkldnn._linear_pointwise.default
be_deterministic(2)
be_deterministic(2)
from torch.profiler import profile
layer, x = torch.nn.Linear(8, 4), torch.randn(2, 3, 8, requires_grad=True)
with profile() as events:
    layer(x).sum().backward()
names = [event.name for event in events.events()]
print(names.count("mkldnn::_linear_pointwise"), layer.weight.grad.shape, x.grad.shape)
"""


def test_linear_layers_and_their_backward_passes_are_routed_in_the_stages_process():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == "3 torch.Size([4, 8]) torch.Size([2, 3, 8])", done.stdout + done.stderr
    assert "Warning" not in done.stderr
