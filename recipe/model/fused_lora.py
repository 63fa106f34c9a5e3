"""A LoRA layer that keeps its input and no dropout mask: the mask is drawn again, from its seed, in the backward pass.

    patch_lora_layers(model)    # a PEFT model; its layers compute the same, in less memory and time

Under autocast the sum is made in the frozen layer's dtype, as PEFT's layers for bitsandbytes do.

PEFT computes y + scaling * B(A(dropout(x))) step by step, and autograd keeps the mask and the masked input of every
layer; on a CPU, torch draws the mask one number at a time. Here one function does both passes and keeps x, which
neighbouring layers share, and A(dropout(x)), which is small.
"""

from types import MethodType
from typing import Any

import torch

PATCHED = {
    "Linear",
    "Linear4bit",
    "Linear8bitLt",
}  # PEFT's layers by name: bitsandbytes' exist only where it is installed


@torch.library.custom_op("recipe::sample_dropout_mask", mutates_args=())
def sample_dropout_mask(x: torch.Tensor, p: float, seed: torch.Tensor) -> torch.Tensor:
    """Which elements of x dropout keeps, as bool of its shape: each with probability 1 - p, the same for a seed.

    `seed` is one int64 on the CPU, where it is read without a wait for the GPU.
    On a CPU p is rounded to a 65,536th: four elements share one 64-bit number of SFC64, whose stream NumPy keeps.
    """
    if x.device.type == "cpu":
        import numpy as np

        numbers = np.random.SFC64(seed.item()).random_raw(-(-x.numel() // 4)).view(np.uint16)[: x.numel()]
        return torch.from_numpy(numbers >= round(p * 65536)).view(x.shape)
    generator = torch.Generator(x.device).manual_seed(seed.item())
    return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - p, generator=generator)


@sample_dropout_mask.register_fake
def _(x: torch.Tensor, p: float, seed: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, dtype=torch.bool)


class AddLora(torch.autograd.Function):
    """y + scaling * dropout(x) Aᵀ Bᵀ, for x (tokens, in), y (tokens, out), A (r, in) and B (out, r)."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, p: float,
        seed: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        kept = torch.where(sample_dropout_mask(x, p, seed), x, 0.0) if p else x
        small = kept @ a.to(x.dtype).T  # (tokens, r)
        ctx.save_for_backward(x, a, b, small, seed)
        ctx.scaling, ctx.p = scaling / (1 - p), p
        if torch.is_autocast_enabled(y.device.type):  # which would hand on y, fp32 from a quantised layer, in bf16
            return y + (small @ b.to(small.dtype).T) * ctx.scaling
        return torch.addmm(y, small.to(y.dtype), b.to(y.dtype).T, alpha=ctx.scaling)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        x, a, b, small, seed = ctx.saved_tensors
        mask = sample_dropout_mask(x, ctx.p, seed) if ctx.p else None
        kept = x if mask is None else torch.where(mask, x, 0.0)
        grad_small = (grad @ b.to(grad.dtype)).to(x.dtype) * ctx.scaling  # (tokens, r)
        grad_b = (grad.T @ small.to(grad.dtype)).to(b.dtype) * ctx.scaling
        grad_a = (grad_small.T @ kept).to(a.dtype)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = grad_small @ a.to(x.dtype)
            grad_x = grad_x if mask is None else torch.where(mask, grad_x, 0.0)
        return grad, grad_x, grad_a, grad_b, None, None, None


def patch_lora_layers(model: Any) -> int:
    """Let the plain LoRA layers of a PEFT model with one adapter compute through AddLora; returns how many do.

    A layer that is more than that (DoRA, a bias, an adapter of another kind) stays as it is.
    """
    count = 0
    for module in model.modules():
        if (
            type(module).__name__ in PATCHED
            and type(module).__module__.startswith("peft.tuners.lora")
            and _plain(module)
        ):
            module.forward = MethodType(_forward, module)
            count += 1
    return count


def _plain(module: Any) -> bool:
    [adapter, *more] = module.lora_A.keys()
    down, up = module.lora_A[adapter], module.lora_B[adapter]
    linear = all(type(one) is torch.nn.Linear and one.bias is None for one in (down, up))
    return linear and not more and adapter not in module.lora_variant


def _forward(self: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
    if not self.training or self.disable_adapters or self.merged or arguments or options:
        return type(self).forward(self, x, *arguments, **options)
    [adapter] = self.active_adapters
    dropout = self.lora_dropout[adapter]
    p = getattr(dropout, "p", 0.0)  # without dropout it is an Identity
    # From torch's own generator, which checkpoints hold, and which recomputed activations are given back.
    seed = torch.randint(1 << 62, ()) if p else torch.zeros((), dtype=torch.int64)
    y = self.base_layer(x)
    # Flat outside of the function: a view that it returned could not be changed in place, as some models do.
    flat = y.reshape(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
    weights = self.lora_A[adapter].weight, self.lora_B[adapter].weight
    added = AddLora.apply(*flat, *weights, self.scaling[adapter], p, seed)
    return added.view(y.shape)
