"""Computes the loss of a frozen head (output layer) in chunks of tokens.

The full logits, which have shape (tokens, vocabulary), are never in memory.

loss, token_losses, num_correct = head_loss(hidden, head, labels)
"""

from typing import Any

import torch

# The number of logits per chunk. On a CPU, a chunk takes only 25 MB in fp32, because glibc's malloc returns blocks
# larger than 32 MiB to the system after every use. The page faults on new blocks would take as long as a softmax. On a
# GPU, a chunk takes 268 MB in fp32.
CHUNK = {"cpu": 6 << 20, "cuda": 1 << 26}


def chunk_tokens(vocab_size: int, device: str) -> int:
    """Return the number of tokens per chunk, which is at least 1."""
    return max(1, CHUNK["cpu" if device == "cpu" else "cuda"] // vocab_size)


def is_frozen_linear(head: Any) -> bool:
    """Return whether a head is a plain linear layer without trainable parameters."""
    return type(head) is torch.nn.Linear and not any(weight.requires_grad for weight in head.parameters())


class _HeadLoss(torch.autograd.Function):
    """The sum of -log softmax(h Wᵀ + b)[label] over all tokens. The forward pass also computes the gradients.

    W is frozen, except for the rows at the indices `ids`. `rows` contains the trained values of these rows, and has
    shape (len(ids), hidden).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor,
        rows: torch.Tensor | None, ids: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        device = hidden.device.type
        # The head of a quantized base model is in fp32. Cast the weight once, not for every chunk.
        if torch.is_autocast_enabled(device):
            weight = weight.to(torch.get_autocast_dtype(device))
        loss = torch.zeros((), device=hidden.device)
        token_losses = torch.empty(len(labels), device=hidden.device)
        num_correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        grad = torch.empty_like(hidden) if hidden.requires_grad else None
        grad_rows = None if rows is None else torch.zeros_like(rows, dtype=torch.float32)
        if rows is not None:
            weight = weight.index_copy(0, ids, rows.to(weight.dtype))
        size = chunk_tokens(len(weight), device)
        for start in range(0, len(labels), size):
            chunk, targets = hidden[start : start + size], labels[start : start + size]
            logits = torch.nn.functional.linear(chunk, weight, bias)
            indices = torch.arange(len(targets), device=targets.device)
            # `gap`, which has shape (tokens,), is the largest logit minus the logit of the label.
            gap = logits.amax(-1).float() - logits[indices, targets].float()
            num_correct += (gap == 0).sum()
            probabilities = torch.softmax(logits, -1, dtype=torch.float32)
            del logits
            # The negative log softmax at the label equals the gap minus the log of the largest probability. The largest
            # probability can't underflow.
            token_losses[start : start + size] = gap - probabilities.amax(-1).log()
            loss += token_losses[start : start + size].sum()
            if grad is not None or grad_rows is not None:
                probabilities[indices, targets] -= 1  # d loss / d logits is the softmax, minus 1 at the label
            if grad is not None:
                grad[start : start + size] = torch.mm(probabilities.to(weight.dtype), weight)
            if grad_rows is not None:
                grad_rows += torch.mm(probabilities[:, ids].T, chunk.float())
        ctx.save_for_backward(grad, grad_rows)
        ctx.mark_non_differentiable(token_losses, num_correct)
        return loss, token_losses, num_correct

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        grad, grad_rows = (None if saved is None else saved * grad_loss.to(saved.dtype) for saved in ctx.saved_tensors)
        return grad, None, None, None, grad_rows, None


def head_loss(hidden: torch.Tensor, head: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the summed loss, the loss of each token, and the number of tokens whose label has the largest logit.

    The losses are in fp32 and in nats. The losses of the tokens, which have shape (tokens,), have no gradient.

    `hidden` has shape (tokens, hidden), and `labels` has shape (tokens,). The head is a linear layer, or PEFT's wrapper
    around a frozen linear layer in which some rows are trained. Other heads are not computed in chunks.
    """
    rows = ids = None
    layer = getattr(head, "token_adapter", None)
    if layer is not None:
        [adapter] = layer.active_adapters
        rows, head = layer.trainable_tokens_delta[adapter], layer.base_layer
        ids = torch.tensor(layer.token_indices[adapter], device=rows.device)
    if is_frozen_linear(head):
        hidden = hidden.to(head.weight.dtype)
        loss, token_losses, num_correct = _HeadLoss.apply(hidden, head.weight, head.bias, labels, rows, ids)
        return loss, token_losses, num_correct
    assert rows is None, type(head)
    logits = head(hidden)
    token_losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return token_losses.sum(), token_losses.detach(), (logits.detach().argmax(-1) == labels).sum()


def logits_are_head_of_backbone(model: Any, backbone: Any, head: Any) -> bool:
    """Return whether the head, applied to the backbone's hidden states, gives the model's logits.

    The two results are compared on a short input, with a tolerance of 1e-3. NaN equals NaN, because a damaged base
    model says nothing about its head.
    """
    ids = torch.arange(8, device=model.device)[None]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        options = {"position_ids": ids, "use_cache": False}
        logits, expected = model(ids, **options).logits.float(), head(backbone(ids, **options)[0]).float()
        equal = torch.allclose(logits, expected, atol=1e-3, equal_nan=True)
    model.train(was_training)
    return equal
