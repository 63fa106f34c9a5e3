"""The fused LoRA layer, held to PEFT's own."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from recipe.model.fused_lora import patch_lora_layers, sample_dropout_mask


class Given(nn.Module):
    """Dropout with the masks that the fused layers draw, as a module of PEFT's."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training:
            return x
        kept = sample_dropout_mask(x, self.p, torch.randint(1 << 62, ()))
        return x * kept / (1 - self.p)


def build(p, dora=False, bias=False):
    """Two linear layers that share an input, and one on top, with adapters that do something."""

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
    return model.double().train()  # no rounding to allow for


def gradients(model, x):
    torch.manual_seed(7)
    x = x.clone().requires_grad_()
    out = model(x)
    out.square().mean().backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return out, {**found, "x": x.grad}


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24), (1, 1, 24)])
def test_outputs_and_gradients_are_pefts(p, shape):
    plain, fused = build(p), build(p)
    if p:
        for module in plain.modules():
            if hasattr(module, "lora_dropout") and len(module.lora_dropout):
                module.lora_dropout["default"] = Given(p)
    assert patch_lora_layers(fused) == 3
    x = torch.randn(shape, dtype=torch.float64)
    wanted, wanted_grads = gradients(plain, x)
    out, grads = gradients(fused, x)
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-12)
    assert grads.keys() == wanted_grads.keys() and len(grads) == 7
    for name, grad in grads.items():
        torch.testing.assert_close(grad, wanted_grads[name], rtol=1e-9, atol=1e-12, msg=name)


def test_the_gradient_is_the_functions_own():
    """By finite differences, in fp64, with the same mask in every call."""
    from recipe.model.fused_lora import AddLora

    y, x, a, b = (torch.randn(shape, dtype=torch.float64) for shape in [(5, 6), (5, 4), (3, 4), (6, 3)])
    given = [one.requires_grad_() for one in (y, x, a, b)]
    assert torch.autograd.gradcheck(lambda *four: AddLora.apply(*four, 1.5, 0.3, torch.tensor(11)), given)


def test_a_mask_is_its_seeds_and_keeps_its_share():
    x = torch.zeros(1000, 999)
    kept = sample_dropout_mask(x, 0.05, torch.tensor(5))
    assert kept.dtype == torch.bool and kept.shape == x.shape
    assert torch.equal(kept, sample_dropout_mask(x, 0.05, torch.tensor(5))) and not torch.equal(
        kept, sample_dropout_mask(x, 0.05, torch.tensor(6))
    )
    # Five standard deviations of a mean of a million draws.
    assert abs(kept.double().mean().item() - 0.95) < 5 * (0.05 * 0.95 / 999_000) ** 0.5
    assert abs((kept[:, 1:] ^ kept[:, :-1]).double().mean().item() - 2 * 0.05 * 0.95) < 2e-3  # neighbours apart


def test_seeds_come_from_torchs_generator_and_evaluation_draws_none():
    model = build(0.5)
    patch_lora_layers(model)
    x = torch.randn(4, 24, dtype=torch.float64)
    first, again = gradients(model, x)[0], gradients(model, x)[0]
    assert torch.equal(first, again) and not torch.equal(first, model(x))
    before = torch.random.get_rng_state()
    model.eval()
    whole = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(model(x), whole(x), rtol=1e-9, atol=1e-12)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", ["dora", "bias"])
def test_a_layer_that_is_more_stays_pefts(kind):
    assert patch_lora_layers(build(0.1, **{kind: True})) == 0


def test_a_single_token_and_no_batch_are_fine():
    plain, fused = build(0.0), build(0.0)
    patch_lora_layers(fused)
    x = torch.randn(24, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_frozen_layers_dtype_stays(dtype):
    """A bitsandbytes layer returns its input's dtype; the sum is in it, and gradients in the adapter's."""
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

    found = []
    for recompute in (False, True):
        model = build(0.5)
        patch_lora_layers(model)
        torch.manual_seed(3)
        x = torch.randn(6, 24, dtype=torch.float64, requires_grad=True)
        out = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
        torch.randn(9)  # what comes after draws numbers, too
        out.square().sum().backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert all(torch.equal(found[1][name], grad) for name, grad in found[0].items()) and found[0]


def test_less_is_kept_for_the_backward_pass():
    """Of each layer its input, once where two share it, and r numbers a token."""
    kept = {}
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
        kept[name] = sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / 512
    own = 8 * (32 + 32 + 32)  # tanh's output, and both factors of the product
    assert kept["fused"] <= 8 * (24 + 32) + 8 * 3 * 4 + own < kept["plain"]
