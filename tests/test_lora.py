"""The fused LoRA layer, compared with PEFT's layer."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from recipe.model.fused_lora import patch_lora_layers, sample_dropout_mask


class SeededDropout(nn.Module):
    """A dropout module for PEFT's layers that draws the same masks as the fused layers."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training:
            return x
        kept = sample_dropout_mask(x, self.p, torch.randint(1 << 62, ()))
        return x * kept / (1 - self.p)


def build(p, dora=False, bias=False):
    """Two linear layers that share an input, and a third on top, with nonzero adapters."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.top = nn.Linear(24, 32), nn.Linear(24, 32, bias=False), nn.Linear(32, 8)

        def forward(self, x):
            return self.top(torch.tanh(self.left(x)) * self.right(x))

    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=12, lora_dropout=p, target_modules=["left", "right", "top"], use_dora=dora, lora_bias=bias
    )
    model = get_peft_model(Net(), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    return model.double().train()  # float64, so that rounding does not matter


def gradients(model, x):
    torch.manual_seed(7)
    x = x.clone().requires_grad_()
    out = model(x)
    out.square().mean().backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return out, {**grads, "x": x.grad}


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24), (1, 1, 24)])
def test_outputs_and_gradients_equal_pefts(p, shape):
    plain, fused = build(p), build(p)
    if p:
        for module in plain.modules():
            if hasattr(module, "lora_dropout") and len(module.lora_dropout):
                module.lora_dropout["default"] = SeededDropout(p)
    assert patch_lora_layers(fused) == 3
    x = torch.randn(shape, dtype=torch.float64)
    expected, expected_grads = gradients(plain, x)
    out, grads = gradients(fused, x)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)
    assert grads.keys() == expected_grads.keys() and len(grads) == 7
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-9, atol=1e-12, msg=name)


def test_the_gradient_matches_finite_differences():
    """In fp64, with the same mask in every call."""
    from recipe.model.fused_lora import AddLora

    y, x, a, b = (torch.randn(shape, dtype=torch.float64) for shape in [(5, 6), (5, 4), (3, 4), (6, 3)])
    inputs = [tensor.requires_grad_() for tensor in (y, x, a, b)]
    assert torch.autograd.gradcheck(lambda *tensors: AddLora.apply(*tensors, 1.5, 0.3, torch.tensor(11)), inputs)


def test_the_mask_depends_on_the_seed_and_keeps_the_right_fraction():
    x = torch.zeros(1000, 999)
    kept = sample_dropout_mask(x, 0.05, torch.tensor(5))
    assert kept.dtype == torch.bool and kept.shape == x.shape
    assert torch.equal(kept, sample_dropout_mask(x, 0.05, torch.tensor(5))) and not torch.equal(
        kept, sample_dropout_mask(x, 0.05, torch.tensor(6))
    )
    # Within five standard deviations of the mean of a million draws.
    assert abs(kept.double().mean().item() - 0.95) < 5 * (0.05 * 0.95 / 999_000) ** 0.5
    assert (
        abs((kept[:, 1:] ^ kept[:, :-1]).double().mean().item() - 2 * 0.05 * 0.95) < 2e-3
    )  # neighbors are independent


def test_seeds_come_from_torchs_generator_and_evaluation_draws_no_numbers():
    model = build(0.5)
    patch_lora_layers(model)
    x = torch.randn(4, 24, dtype=torch.float64)
    first, second = gradients(model, x)[0], gradients(model, x)[0]
    assert torch.equal(first, second) and not torch.equal(first, model(x))
    rng_state = torch.random.get_rng_state()
    model.eval()
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(model(x), merged(x), rtol=1e-9, atol=1e-12)
    assert torch.equal(rng_state, torch.random.get_rng_state())


@pytest.mark.parametrize("option", ["dora", "bias"])
def test_layers_that_are_more_than_plain_lora_are_not_patched(option):
    assert patch_lora_layers(build(0.1, **{option: True})) == 0


def test_a_single_token_without_a_batch_dimension_works():
    plain, fused = build(0.0), build(0.0)
    patch_lora_layers(fused)
    x = torch.randn(24, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_output_has_the_frozen_layers_dtype(dtype):
    """A bitsandbytes layer returns its input's dtype; the sum has it too, and gradients have the adapter's dtype."""
    model = build(0.05).float()
    patch_lora_layers(model)
    layer = model.base_model.model.left
    layer.base_layer.forward = lambda x: torch.ones(*x.shape[:-1], 32, dtype=x.dtype)
    x = torch.randn(4, 24, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == dtype and x.grad.dtype == dtype
    assert all(weight.grad.dtype == torch.float32 for name, weight in layer.named_parameters() if "lora_" in name)


def test_recomputed_activations_get_the_same_mask():
    from torch.utils.checkpoint import checkpoint

    gradients_of = []
    for recompute in (False, True):
        model = build(0.5)
        patch_lora_layers(model)
        torch.manual_seed(3)
        x = torch.randn(6, 24, dtype=torch.float64, requires_grad=True)
        out = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
        torch.randn(9)  # later layers draw numbers too
        out.square().sum().backward()
        gradients_of.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    expected, recomputed = gradients_of
    assert expected and all(torch.equal(recomputed[name], grad) for name, grad in expected.items())


def test_less_memory_is_saved_for_the_backward_pass():
    """Each layer saves its input (once if two layers share it) and r numbers per token."""
    bytes_per_token = {}
    for name in ("plain", "fused"):
        model, saved = build(0.05), {}
        if name == "fused":
            patch_lora_layers(model)
        weights = {weight.data_ptr() for weight in model.parameters()}

        def pack(tensor, saved=saved, weights=weights):
            if tensor.data_ptr() not in weights:
                saved[tensor.untyped_storage()._cdata] = tensor
            return tensor

        x = torch.randn(512, 24, dtype=torch.float64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x)
        bytes_per_token[name] = sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / 512
    activations = 8 * (32 + 32 + 32)  # tanh's output, and both factors of the product
    assert bytes_per_token["fused"] <= 8 * (24 + 32) + 8 * 3 * 4 + activations < bytes_per_token["plain"]
