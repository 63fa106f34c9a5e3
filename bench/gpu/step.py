"""Measures how an optimizer step of a 7B-shaped model spends its time on this GPU, and how much memory it uses.

    python step.py peaks      compare the peak memory with the estimate that `recipe plan` makes
    python step.py profile    time a step, its GPU kernels and its host work
    python step.py parts      time each operation of a step, and possible replacements, in isolation

Run this file from the repository root, after `measure.py base` has created WORK/base. Set WORK, OUT and DRY as `run`
does. `peaks` and `profile` train with the recipe's own train stage. Output lines that begin with `= ` go to the
summary.
"""

import gc
import json
import os
import shutil
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from measure import keep, tell

ROOT, WORK = Path.cwd(), Path(os.environ["WORK"])
DRY = os.environ.get("DRY") == "1"
CUDA = torch.cuda.is_available()
TOKENS = 4096 if not DRY else 1024
WARM, TIMED, PROFILED = (4, 6, 2) if not DRY else (1, 2, 1)  # numbers of optimizer steps


def paths_in(folder: Path) -> Any:
    """Return the paths of the stage outputs in a folder."""
    from recipe.core.paths import Paths

    return Paths(
        folder=Path("/"), raw=folder / "raw", base=folder / "base", prepared=folder / "prepared",
        adapter=folder / "adapter", train_metrics=folder / "train.json", loss_curve=folder / "loss.csv",
        training=folder / "training", local=folder / "local",
    )  # fmt: skip


def prepared_rows() -> Path:
    """Prepare rows for the 7B shape if they do not exist yet, and return their folder.

    The base model's manifest in this folder lists no files, so no time is spent hashing 13.8 GB.
    """
    from recipe.cli.context import sections
    from recipe.core.config import read_params
    from recipe.core.io import sha256_file
    from recipe.fetch.stage import base_tokenizer, fetch_data
    from recipe.prepare.stage import prepare
    from recipe.tokens.tokenizer import give_padding_token

    folder = WORK / "step"
    if (folder / "base").is_dir():
        return folder
    [source] = sorted((ROOT / "demo/rows").glob("train.*"))
    (folder / "rows").mkdir(parents=True)
    steps = WARM + TIMED + PROFILED
    lines = source.read_text().splitlines()[: 40 * (steps + 2) if not DRY else 200]
    (folder / "rows/train.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = base_tokenizer(WORK / "base", code=False)
    give_padding_token(tokenizer)
    tokenizer.save_pretrained(folder / "base/tokenizer")
    manifest = {"id": "shape", "revision": None, "sha256": "0" * 64, "path": str(WORK / "base"), "converted": False}
    files = [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in (WORK / "base").iterdir()
        if path.is_file()
    ]
    (folder / "base/manifest.json").write_text(json.dumps({**manifest, "remote_code": False, "files": files}))
    params = read_params(ROOT / "params.yaml", sections())
    from_folder = {"source": str(folder / "rows"), "sha256": None, "validation_split": None, "general": None}
    data = params["data"].model_copy(update=from_folder)
    fetch_data(data, paths_in(folder))
    sequence = params["sequence"].model_copy(update={"max_length": TOKENS // 4, "on_overlong": "truncate"})
    prepare(sequence, paths_in(folder), lambda items, *_: items)
    return folder


def train(
    name: str, callback: Any, *, deterministic: bool, quantization: str = "none", checkpointing: bool = False
) -> Any:
    """Train an adapter for WORK/base with a trainer callback, and return the LoRA and training params."""
    from transformers import trainer

    from recipe.train import stage

    folder = prepared_rows()
    set_up = stage.be_deterministic
    if not deterministic:
        stage.be_deterministic = torch.set_num_threads
        torch.use_deterministic_algorithms(False)
    params = stage.TrainParams(
        num_epochs=1, global_batch_size=4, micro_batch_tokens=TOKENS, learning_rate=2e-4, lr_schedule="linear",
        warmup_ratio=0.1, weight_decay=0.0, max_grad_norm=1.0, dtype="auto", quantization=quantization,
        activation_checkpointing="on" if checkpointing else "off", seed=1, num_threads=os.cpu_count() or 1,
        logging_steps=1000, save_steps=1000, save_minutes=1000, keep_checkpoints=False,
    )  # fmt: skip
    lora = stage.LoraParams(r=16, alpha=32, dropout=0.05, target_modules="all-linear", untrained_tokens="train")
    plain = list(trainer.DEFAULT_CALLBACKS)
    trainer.DEFAULT_CALLBACKS.append(callback)
    out = WORK / "step" / name
    try:
        with suppress(Enough):
            stage.train(lora, params, paths_in(folder), out / "checkpoints", lambda *_: None)
    finally:
        trainer.DEFAULT_CALLBACKS[:] = plain
        stage.be_deterministic = set_up
        shutil.rmtree(out, ignore_errors=True)
        gc.collect()  # reference counting cannot free the trainer and its model, which refer to each other
    return lora, params


class Enough(Exception):
    """Raised to end a training run once everything has been measured."""


def watch(profiler: Any) -> Any:
    """Return a callback that times steps, then profiles steps if a profiler is given, and then ends the training."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        seconds = 0.0
        allocated = reserved = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (WARM, WARM + TIMED, WARM + TIMED + PROFILED) and CUDA:
                torch.cuda.synchronize()
            if state.global_step == WARM:
                self.started = time.monotonic()
            if state.global_step == WARM + TIMED:
                self.seconds = (time.monotonic() - self.started) / TIMED
                if CUDA:
                    self.allocated, self.reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
                if profiler is None:
                    raise Enough
                profiler.start()
                self.profile_started = time.monotonic()
            if state.global_step == WARM + TIMED + PROFILED:
                self.profiled_seconds = (time.monotonic() - self.profile_started) / PROFILED
                profiler.stop()
                raise Enough

    return Watch()


def peaks() -> bool:
    """Report the measured and the estimated peak memory for nf4 and bf16, both with activation checkpointing."""
    from transformers import AutoConfig

    from recipe.planning.memory_estimate import estimate_training_memory

    meta = json.loads((prepared_rows() / "prepared/meta.json").read_text())
    fraction = meta["tokens"]["train_loss_tokens"] / meta["tokens"]["train"]
    for quantization in ("nf4", "none"):
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seen = watch(None)
        lora, params = train("peaks", seen, deterministic=True, quantization=quantization, checkpointing=True)
        need = estimate_training_memory(
            AutoConfig.from_pretrained(WORK / "base"), lora, quantization=quantization, activation_checkpointing=True,
            micro_batch_size=params.micro_batch_size(TOKENS // 4), max_length=TOKENS // 4, trained_fraction=fraction,
            cuda=CUDA,
        )  # fmt: skip
        context = 600_000_000 if CUDA else 0
        name = f"{'nf4' if quantization == 'nf4' else 'bf16'}, activation checkpointing, {TOKENS:,} tokens"
        tell(
            f"{name}: peak {seen.allocated / 2**30:.2f} GiB allocated, {seen.reserved / 2**30:.2f} GiB reserved; "
            f"estimate {(need.peak - context) / 2**30:.2f} GiB, plus {context / 2**30:.2f} GiB for the driver"
        )
        keep(f"peak, {name}", {"allocated": seen.allocated, "reserved": seen.reserved, "estimate": need.peak})
    return True


GROUPS = {
    "products": ("gemm", "nvjet", "cutlass", "xmma", "splitk"),
    "attention": ("flash", "fmha", "cudnn"),
    "random masks": ("distribution", "bernoulli", "philox"),
    "nf4 expansion": ("dequant",),
    "copies and casts": ("copy", "memcpy", "memset", "fill"),
    "where, elementwise": ("elementwise", "where"),
    "reductions, softmax, norms": ("reduce", "softmax", "norm"),
    "optimizer": ("multi_tensor", "adam"),
    "sort, index": ("sort", "index", "scan", "radix", "gather", "scatter"),
}


def group_of(kernel: str) -> str:
    """Return the group in GROUPS that matches a kernel's name, or "other"."""
    name = kernel.lower()
    for group, words in GROUPS.items():
        if any(word in name for word in words):
            return group
    return "other"


def profile() -> bool:
    """Profile a training step in bf16, in bf16 with deterministic algorithms, and with an nf4 base model."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if CUDA else [])
    cases = {"bf16": (False, "none"), "bf16 deterministic": (True, "none"), "nf4": (False, "nf4")}
    for name, (deterministic, quantization) in cases.items():
        profiler = torch_profile(activities=activities, acc_events=True)
        seen = watch(profiler)
        train("profile", seen, deterministic=deterministic, quantization=quantization)
        if CUDA:
            torch.cuda.empty_cache()
        events = profiler.key_averages()
        kernels = [event for event in events if event.device_type == DeviceType.CUDA]
        busy = sum(event.self_device_time_total for event in kernels) / 1e3 / PROFILED
        groups: dict[str, float] = defaultdict(float)
        for event in kernels:
            groups[group_of(event.key)] += event.self_device_time_total / 1e3 / PROFILED
        shown = ", ".join(f"{group} {ms:.0f}" for group, ms in sorted(groups.items(), key=lambda item: -item[1]))
        launches = sum(event.count for event in kernels) // PROFILED
        tell(
            f"{name}: {seen.seconds * 1e3:.0f} ms per step, {seen.profiled_seconds * 1e3:.0f} ms with the profiler; "
            f"the kernels take {busy:.0f} ms in {launches:,} launches"
        )
        tell(f"{name}, ms per step by kernel group: {shown}")
        keep(f"step, {name}", {"ms": seen.seconds * 1e3, "kernel_ms": busy, "launches": launches, "groups": groups})
        print(f"## {name}: ms per step, launches per step, and name of each kernel")
        for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:45]:
            print(
                f"{event.self_device_time_total / 1e3 / PROFILED:9.2f} {event.count // PROFILED:6d}  {event.key[:150]}"
            )
        print(f"## {name}: own ms per step, calls per step, and name of each operation on the host")
        hosts = [event for event in events if event.device_type == DeviceType.CPU]
        for event in sorted(hosts, key=lambda event: -event.self_cpu_time_total)[:35]:
            print(f"{event.self_cpu_time_total / 1e3 / PROFILED:9.2f} {event.count // PROFILED:6d}  {event.key[:100]}")
    return True


def milliseconds(run: Any, repeat: int = 12) -> float:
    """Return the median time of `repeat` calls in milliseconds.

    On a GPU, CUDA events measure the time.
    """
    for _ in range(3):
        run()
    times = []
    for _ in range(repeat):
        if CUDA:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        else:
            started = time.monotonic()
            run()
            times.append((time.monotonic() - started) * 1e3)
    return sorted(times)[len(times) // 2]


def parts() -> bool:
    """Time the operations of a step in isolation, forward and backward, with the 7B shape."""
    device = "cuda" if CUDA else "cpu"
    hidden, wide, heads = (4096, 11008, 32) if not DRY else (64, 128, 4)
    kind = {"device": device, "dtype": torch.bfloat16}
    torch.manual_seed(0)

    def there_and_back(make: Any, *inputs: torch.Tensor) -> float:
        leaves = [one.detach().requires_grad_(one.is_floating_point()) for one in inputs]
        made = make(*leaves)
        grad = torch.randn_like(made)
        return milliseconds(lambda: torch.autograd.grad(make(*leaves), leaves, grad, allow_unused=True))

    def note(name: str, measure: Any) -> None:
        try:
            value = measure()
        except Exception as error:  # noqa: BLE001 # if torch lacks an operation, still measure the others
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
            return
        print(f"{value:9.3f} ms  {name}", flush=True)
        keep(f"ms, {name}", round(value, 4))

    from recipe.model.fused_lora import AddLora, sample_dropout_mask

    seed = torch.zeros((), dtype=torch.int64)
    for inputs, outputs in ((hidden, hidden), (hidden, wide), (wide, hidden)):
        x, weight = torch.randn(TOKENS, inputs, **kind), torch.randn(outputs, inputs, **kind)
        a, b = torch.randn(16, inputs, device=device), torch.randn(outputs, 16, device=device)
        y = x @ weight.T
        shape = f"{inputs} to {outputs}"
        note(f"frozen product, {shape}, there", lambda x=x, weight=weight: milliseconds(lambda: x @ weight.T))
        note(f"frozen product, {shape}, back", lambda y=y, weight=weight: milliseconds(lambda: y @ weight))
        for p in (0.05, 0.0):
            note(
                f"AddLora p {p}, {shape}, there and back",
                lambda y=y, x=x, a=a, b=b, p=p: there_and_back(
                    lambda *more: AddLora.apply(*more, 2.0, p, seed), y, x, a, b
                ),
            )
        note(f"sample_dropout_mask, {inputs}", lambda x=x: milliseconds(lambda: sample_dropout_mask(x, 0.05, seed)))
        note(f"native dropout, {inputs}", lambda x=x: milliseconds(lambda: torch.nn.functional.dropout(x, 0.05)))
        note(f"x A', {shape}", lambda x=x, a=a: milliseconds(lambda: x @ a.to(x.dtype).T))
        note(
            f"addmm of rank 16, {shape}",
            lambda y=y, b=b: milliseconds(lambda: torch.addmm(y, y[:, :16].contiguous(), b.to(y.dtype).T)),
        )
        note(f"grad' small, {shape}", lambda y=y: milliseconds(lambda: y.T @ y[:, :16].contiguous()))
    x = torch.randn(1, TOKENS, hidden, **kind)
    from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

    norm = LlamaRMSNorm(hidden).to(**kind)
    norm.weight.requires_grad_(False)
    note("RMSNorm of transformers", lambda: there_and_back(norm, x))
    with torch.autocast(device, torch.bfloat16):
        note("RMSNorm of transformers, autocast", lambda: there_and_back(norm, x))
    note(
        "RMSNorm of torch",
        lambda: there_and_back(lambda x: torch.nn.functional.rms_norm(x, (hidden,), norm.weight, 1e-6), x),
    )
    note("RMSNorm compiled", lambda: there_and_back(torch.compile(norm), x))
    gate, up = (torch.randn(1, TOKENS, wide, **kind) for _ in range(2))

    def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(gate) * up

    note("SwiGLU", lambda: there_and_back(swiglu, gate, up))
    note("SwiGLU compiled", lambda: there_and_back(torch.compile(swiglu), gate, up))
    q = torch.randn(1, heads, TOKENS, hidden // heads, **kind)
    cos, sin = (torch.randn(1, TOKENS, hidden // heads, **kind) for _ in range(2))

    def rotate(q: torch.Tensor) -> torch.Tensor:
        return apply_rotary_pos_emb(q, q, cos, sin)[0]

    note("rotary of q and q", lambda: there_and_back(rotate, q))
    note("rotary compiled", lambda: there_and_back(torch.compile(rotate), q))
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        with sdpa_kernel(backend):
            note(
                f"causal attention over {TOKENS:,}, {backend.name}",
                lambda: there_and_back(
                    lambda *qkv: torch.nn.functional.scaled_dot_product_attention(*qkv, is_causal=True), q, q, q
                ),
            )
    from recipe.model.packed_attention import attend_by_document

    positions = torch.cat([torch.arange(TOKENS // 32)] * 32)[None].to(device)
    note(
        "attend_by_document, 32 examples",
        lambda: there_and_back(lambda *qkv: attend_by_document(None, *qkv, None, position_ids=positions)[0], q, q, q),
    )
    from recipe.model.chunked_loss import head_loss

    head = torch.nn.Linear(hidden, 51200 if not DRY else 500, bias=False).to(**kind).requires_grad_(False)
    for count in (400, TOKENS):
        labels = torch.randint(0, 400, (count,), device=device)
        note(
            f"head_loss of {count:,}",
            lambda labels=labels, count=count: there_and_back(lambda x: head_loss(x[0, :count], head, labels)[0], x),
        )
        torch.use_deterministic_algorithms(True)
        note(
            f"head_loss of {count:,}, deterministic",
            lambda labels=labels, count=count: there_and_back(lambda x: head_loss(x[0, :count], head, labels)[0], x),
        )
        torch.use_deterministic_algorithms(False)
    tell("step.log has the milliseconds of each operation of a step")
    return True


def main() -> None:
    """Run the check named on the command line."""
    checks = {check.__name__: check for check in (peaks, profile, parts)}
    sys.exit(0 if checks[sys.argv[1]]() else 1)


if __name__ == "__main__":
    main()
