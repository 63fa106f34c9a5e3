"""The chunked loss, compared with torch's cross entropy."""

import pytest
import torch

from recipe.model import chunked_loss as module
from recipe.model.chunked_loss import chunk_tokens, head_loss


@pytest.fixture(params=[1, 7, 30, 1000])
def chunk(request, monkeypatch):
    """Tokens per chunk: 1, a size that does not divide the total, all, more than all."""
    monkeypatch.setattr(module, "CHUNK", {"cpu": 50 * request.param})
    assert chunk_tokens(50, "cpu") == request.param


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [True, False])
def test_loss_gradient_and_accuracy_match_torch(chunk, bias, frozen):
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=bias).requires_grad_(not frozen)
    hidden, labels = torch.randn(30, 16, requires_grad=True), torch.randint(50, (30,))
    labels[:5] = head(hidden)[:5].argmax(-1)
    loss, token_losses, num_correct = head_loss(hidden, head, labels)
    (0.25 * loss).backward()
    gradient, hidden.grad = hidden.grad, None
    expected = torch.nn.functional.cross_entropy(head(hidden), labels, reduction="sum")
    (0.25 * expected).backward()
    torch.testing.assert_close(loss, expected.detach())
    each = torch.nn.functional.cross_entropy(head(hidden), labels, reduction="none").detach()
    torch.testing.assert_close(token_losses, each, rtol=1e-5, atol=1e-6)
    assert not token_losses.requires_grad
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-4, atol=1e-6)
    assert int(num_correct) == int((head(hidden).argmax(-1) == labels).sum()) >= 5


def test_zero_tokens_and_no_gradient_work():
    head = torch.nn.Linear(16, 50).requires_grad_(False)
    no_tokens = torch.zeros(0, 16, requires_grad=True), head, torch.zeros(0, dtype=torch.int64)
    loss, token_losses, num_correct = head_loss(*no_tokens)
    loss.backward()
    assert loss == 0 and num_correct == 0 and token_losses.shape == (0,)
    with torch.no_grad():
        assert head_loss(torch.randn(3, 16), head, torch.tensor([1, 2, 3]))[0] > 0


def test_extreme_logits_stay_finite():
    head = torch.nn.Linear(2, 3, bias=False).requires_grad_(False)
    head.weight.data = torch.tensor([[1e4, 0.0], [0.0, 1.0], [-1e4, 0.0]])
    hidden = torch.tensor([[1.0, 1.0]], requires_grad=True)
    loss, *_ = head_loss(hidden, head, torch.tensor([2]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4) and torch.isfinite(hidden.grad).all()


def test_the_loss_of_a_bf16_model_is_summed_in_fp32():
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 500).requires_grad_(False).bfloat16()
    hidden, labels = torch.randn(400, 64).bfloat16(), torch.randint(500, (400,))
    loss, *_ = head_loss(hidden, head, labels)
    expected = torch.nn.functional.cross_entropy(head(hidden).float(), labels, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
