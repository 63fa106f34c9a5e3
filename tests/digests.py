"""Prints a sha256 of the result of each operation that training and evaluation use, and of a short training.

    python tests/digests.py              the operations, at the shapes of the demo
    python tests/digests.py FOLDER       two training steps and an evaluation of the prepared recipe in FOLDER

tests/test_processors.py runs this program on this processor and under emulation of others, and compares the output.
The inputs are integers from NumPy's PCG64, so they are equal everywhere.
"""

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recipe.model.processor import be_deterministic, pin_processor

pin_processor()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention, silu  # noqa: E402

TOKENS, HIDDEN, WIDE, VOCABULARY, RANK, HEADS = 256, 192, 512, 1024, 16, 6


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return fp32 numbers between -1 and 1."""
    integers = np.random.Generator(np.random.PCG64(seed)).integers(-(2**20), 2**20, shape)
    return torch.from_numpy((integers / 2**20).astype(np.float32))


def digest(*tensors: torch.Tensor) -> str:
    """Return the start of the sha256 of the tensors' bytes."""
    data = b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(data).hexdigest()[:16]


def operations() -> dict[str, str]:
    """Return {operation: digest}."""
    found = {}
    shapes = [
        (TOKENS, HIDDEN, HIDDEN), (TOKENS, HIDDEN, WIDE), (TOKENS, WIDE, HIDDEN), (TOKENS, HIDDEN, RANK),
        (TOKENS, RANK, WIDE), (RANK, TOKENS, HIDDEN), (HIDDEN, TOKENS, RANK), (100, HIDDEN, VOCABULARY),
        (100, VOCABULARY, HIDDEN), (1, HIDDEN, WIDE), (7, HIDDEN, HIDDEN), (1, HIDDEN, VOCABULARY), (33, 65, 17),
    ]  # fmt: skip
    for m, k, n in shapes:
        a, b = uniform(m, k), uniform(k, n, seed=1)
        found[f"mm {m}x{k}x{n}"] = digest(a @ b)
        found[f"mm {m}x{k}x{n} transposed"] = digest(a @ b.T.contiguous().T, a.T.contiguous().T @ b)
    x, w, y = uniform(TOKENS, HIDDEN), uniform(HIDDEN, HIDDEN, seed=1), uniform(TOKENS, HIDDEN, seed=2)
    found["linear"] = digest(linear(x, w), linear(x, w, w[0]), linear(x[None], w))
    found["addmm"] = digest(torch.addmm(y, x, w, alpha=0.3), torch.addmm(y, x, w, beta=0.5))
    found["mv"] = digest(w @ x[0], torch.dot(x[0], x[1]))
    for length in (5, 60, 200):
        q, k, v = (uniform(1, HEADS, length, 32, seed=seed).requires_grad_() for seed in (3, 4, 5))
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        out.backward(uniform(1, HEADS, length, 32, seed=6))
        found[f"attention {length}"] = digest(out, q.grad, k.grad, v.grad)
    one = scaled_dot_product_attention(uniform(4, HEADS, 1, 32), uniform(4, HEADS, 50, 32), uniform(4, HEADS, 50, 32))
    found["attention of one token"] = digest(one)
    found["bmm"] = digest(uniform(3, 20, 32) @ uniform(3, 32, 20, seed=1), uniform(1, 16, 1) @ uniform(1, 1, TOKENS))
    z = uniform(TOKENS, VOCABULARY, seed=7) * 8
    found["softmax"] = digest(torch.softmax(z, -1), torch.log_softmax(z, -1))
    found["cross entropy"] = digest(cross_entropy(z, torch.arange(TOKENS), reduction="sum"))
    functions = {
        "exp": torch.exp, "log": lambda z: z.abs().add(1e-3).log(), "sqrt": lambda z: z.abs().sqrt(), "erf": torch.erf,
        "tanh": torch.tanh, "expm1": torch.expm1, "log1p": lambda z: z.abs().log1p(), "reciprocal": torch.reciprocal,
    }  # fmt: skip
    found |= {name: digest(function(z)) for name, function in functions.items()}
    found["power"] = digest(z.abs() ** 0.5, z.abs() ** 1.5, z**2)
    found["silu"] = digest(silu(z), torch.nn.functional.gelu(z), torch.sigmoid(z))
    found["norm"] = digest(torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6), torch.linalg.vector_norm(z), z.sum())
    found["rotary"] = digest(z.cos(), z.sin(), 1.0 / 10000 ** (torch.arange(0, 32, 2) / 32))
    weight = torch.nn.Parameter(uniform(HIDDEN, RANK))
    optimizer = torch.optim.AdamW([weight], lr=3e-3, fused=True)
    for seed in range(3):
        weight.grad = uniform(HIDDEN, RANK, seed=seed)
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()
    found["AdamW"] = digest(weight)
    return found


def training(folder: Path) -> dict[str, str]:
    """Train and evaluate the prepared recipe in `folder`, and return {output: digest}."""
    import os
    from functools import partial

    os.chdir(folder)
    from recipe.cli import context
    from recipe.core.environment import configure_libraries
    from recipe.core.io import sha256_tree
    from recipe.evaluate.stage import evaluate
    from recipe.train.stage import train

    configure_libraries(network=False)
    params, paths = context.params(), context.paths()
    train(params["lora"], params["train"], paths, paths.local / "checkpoints", lambda values, step: None)
    evaluate(params["evaluate"], paths, partial(lambda items, *_, **__: items))
    outputs = (
        paths.adapter,
        paths.training,
        paths.train_metrics,
        paths.loss_curve,
        paths.evaluate_metrics,
        paths.evaluation,
    )
    return {str(path): sha256_tree(path)[:16] for path in outputs}


if __name__ == "__main__":
    be_deterministic(1)
    print(json.dumps(training(Path(sys.argv[1])) if len(sys.argv) > 1 else operations(), indent=1))
