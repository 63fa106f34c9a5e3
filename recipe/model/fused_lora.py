"""Computes LoRA layers without saving the dropout mask. The backward pass generates the mask again from the same seed.

    patch_lora_layers(model)    # the PEFT model's LoRA layers then need less memory and time

PEFT computes y + scaling * B(A(dropout(x))) step by step, so autograd saves the mask and the masked input of every
layer. On a CPU, torch also generates the mask one number at a time. In this module, a single autograd function
implements the forward and backward passes. The function saves x, which is shared by layers with the same input, and the
small tensor A(dropout(x)).

Under autocast, the output has the dtype of the frozen layer's output, as in PEFT's bitsandbytes layers.
"""

from types import MethodType
from typing import Any

import torch

PATCHED = {
    "Linear",
    "Linear4bit",
    "Linear8bitLt",
}  # names instead of classes, because PEFT defines the bitsandbytes classes only if bitsandbytes is installed


@torch.library.custom_op("recipe::sample_dropout_mask", mutates_args=())
def sample_dropout_mask(x: torch.Tensor, p: float, seed: torch.Tensor) -> torch.Tensor:
    """Return the dropout mask for x, which is a bool tensor of the same shape.

    Each element is True (keep) with probability 1 - p. The seed, a scalar int64 tensor, determines the mask.
    The seed is on the CPU, so that reading it does not require waiting for the GPU.

    On a CPU, p is rounded to a multiple of 1/65,536, because each 64-bit random number provides four mask elements. The
    random numbers come from SFC64, whose stream is stable across NumPy versions.
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


def drop(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return x where the mask is True, and 0 elsewhere. On a CPU, this is four times as fast as torch.where."""
    return x * mask.view(torch.int8)


class AddLora(torch.autograd.Function):
    """The function y + scaling * dropout(x) Aᵀ Bᵀ.

    The shapes are (tokens, in) for x, (tokens, out) for y, (r, in) for A, and (out, r) for B.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, p: float,
        seed: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        dropped = drop(x, sample_dropout_mask(x, p, seed)) if p else x
        low_rank = dropped @ a.to(x.dtype).T  # (tokens, r)
        ctx.save_for_backward(x, a, b, low_rank, seed)
        ctx.scaling, ctx.p = scaling / (1 - p), p
        if torch.is_autocast_enabled(y.device.type):  # addmm would cast y to bf16, but in a quantized model, y is fp32
            return y + (low_rank @ b.to(low_rank.dtype).T) * ctx.scaling
        return torch.addmm(y, low_rank.to(y.dtype), b.to(y.dtype).T, alpha=ctx.scaling)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        x, a, b, low_rank, seed = ctx.saved_tensors
        mask = sample_dropout_mask(x, ctx.p, seed) if ctx.p else None
        dropped = x if mask is None else drop(x, mask)
        grad_low_rank = (grad @ b.to(grad.dtype)).to(x.dtype) * ctx.scaling  # (tokens, r)
        # Not grad.T @ low_rank, because copying the small factor into another layout takes less time.
        grad_b = (low_rank.to(grad.dtype).T @ grad).T.to(b.dtype) * ctx.scaling
        grad_a = (grad_low_rank.T @ dropped).to(a.dtype)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = grad_low_rank @ a.to(x.dtype)
            grad_x = grad_x if mask is None else drop(grad_x, mask)
        return grad, grad_x, grad_a, grad_b, None, None, None


def patch_lora_layers(model: Any) -> int:
    """Make the plain LoRA layers of a PEFT model use AddLora. Returns the number of patched layers.

    Layers with DoRA, a LoRA bias, several adapters or a different type of adapter are not changed.
    """
    count = 0
    for module in model.modules():
        if (
            type(module).__name__ in PATCHED
            and type(module).__module__.startswith("peft.tuners.lora")
            and _is_plain_lora(module)
        ):
            module.forward = MethodType(_forward, module)
            count += 1
    return count


def _is_plain_lora(module: Any) -> bool:
    [adapter, *other_adapters] = module.lora_A.keys()
    down, up = module.lora_A[adapter], module.lora_B[adapter]
    linear = all(type(layer) is torch.nn.Linear and layer.bias is None for layer in (down, up))
    return linear and not other_adapters and adapter not in module.lora_variant


def _forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if not self.training or self.disable_adapters or self.merged or args or kwargs:
        return type(self).forward(self, x, *args, **kwargs)
    [adapter] = self.active_adapters
    dropout = self.lora_dropout[adapter]
    p = getattr(dropout, "p", 0.0)  # without dropout, this module is an nn.Identity
    # The seed comes from torch's global generator. Training checkpoints save the generator's state, and activation
    # checkpointing restores that state.
    seed = torch.randint(1 << 62, ()) if p else torch.zeros((), dtype=torch.int64)
    y = self.base_layer(x)
    # Reshape outside AddLora, because some models change the output in place. Autograd forbids such changes to
    # a view that a custom function created.
    flat_inputs = y.reshape(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
    weights = self.lora_A[adapter].weight, self.lora_B[adapter].weight
    output = AddLora.apply(*flat_inputs, *weights, self.scaling[adapter], p, seed)
    return output.view(y.shape)
