"""The loss of a frozen head, a few tokens at a time, so that no (tokens, vocabulary) tensor stands in memory.

loss, num_right = head_loss(hidden, head, labels)    # summed cross entropy; how often no other is ranked above
"""

from typing import Any

import torch

# Logits at once: 25 MB in fp32 on a CPU, where glibc's malloc hands larger blocks back after every use, and the page
# faults of new ones cost as much as a softmax; 256 MB on a GPU.
CHUNK = {"cpu": 6 << 20, "cuda": 1 << 26}


def chunk_tokens(vocab_size: int, device: str) -> int:
    """How many tokens are projected at once."""
    return max(1, CHUNK["cpu" if device == "cpu" else "cuda"] // vocab_size)


def is_frozen_linear(head: Any) -> bool:
    """Whether a head is a plain linear layer that is not trained."""
    return type(head) is torch.nn.Linear and not any(weight.requires_grad for weight in head.parameters())


class _HeadLoss(torch.autograd.Function):
    """Sum of -log softmax(h Wᵀ + b)[label] over h (tokens, hidden). Its gradient is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = hidden.device.type
        if torch.is_autocast_enabled(device):  # a quantised base has its head in fp32; cast once, not for every chunk
            weight = weight.to(torch.get_autocast_dtype(device))
        loss = torch.zeros((), device=hidden.device)
        right = torch.zeros((), dtype=torch.int64, device=hidden.device)
        grad = torch.empty_like(hidden) if hidden.requires_grad else None
        size = chunk_tokens(len(weight), device)
        for start in range(0, len(labels), size):
            part, wanted = hidden[start : start + size], labels[start : start + size]
            logits = torch.nn.functional.linear(part, weight, bias)
            rows = torch.arange(len(wanted), device=wanted.device)
            behind = logits.amax(-1).float() - logits[rows, wanted].float()  # (tokens,), of the label to the first
            right += (behind == 0).sum()
            probabilities = torch.softmax(logits, -1, dtype=torch.float32)
            del logits
            # -log softmax at the label, from the largest probability, which is never too small for a logarithm.
            loss += (behind - probabilities.amax(-1).log()).sum()
            if grad is not None:
                probabilities[rows, wanted] -= 1  # d loss / d logits = softmax - 1 at the label
                grad[start : start + size] = torch.mm(probabilities.to(weight.dtype), weight)
        if grad is not None:
            ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        [grad] = ctx.saved_tensors
        return grad * grad_loss.to(grad.dtype), None, None, None


def head_loss(hidden: torch.Tensor, head: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss, fp32, and the number of labels ranked first, of hidden (tokens, hidden) and labels (tokens,)."""
    if is_frozen_linear(head):
        loss, right = _HeadLoss.apply(hidden.to(head.weight.dtype), head.weight, head.bias, labels)
        return loss, right
    logits = head(hidden)
    loss = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    return loss, (logits.detach().argmax(-1) == labels).sum()
