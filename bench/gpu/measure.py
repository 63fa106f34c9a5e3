"""Runs one of the checks that `run` starts.

    python measure.py environment | attention | base | isolation | determinism | stages
    python measure.py arm "bf16 all-linear" recipe     run one arm of a bench.cuda configuration

Run this file from the repository root. Set WORK to a scratch folder, and OUT to the folder for numbers.json. Set DRY=1
to use tiny shapes. Output lines that begin with `= ` go to the summary. Exit code 1 means failure. The checks call the
project's own code, with so few rows and steps that they take only minutes.
"""

import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT, WORK, OUT = Path.cwd(), Path(os.environ["WORK"]), Path(os.environ["OUT"])
DRY = os.environ.get("DRY") == "1"
PACKAGES = (
    "torch", "triton", "transformers", "tokenizers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "numpy",
    "pyarrow", "pandas", "huggingface_hub", "safetensors", "pydantic", "mlflow",
)  # fmt: skip
LAYERS = 4  # number of layers in the base model `wide`, which has the full model's width but runs faster
ROWS = 960  # maximum number of training rows in a timed arm: 30 steps of 4,096 tokens
KEPT = ("models/adapter/adapter_model.safetensors", "models/adapter/adapter_config.json", "metrics/loss.csv")


def tell(line: str) -> None:
    """Print a line that `run` adds to the summary."""
    print(f"= {line}", flush=True)


def keep(name: str, value: Any) -> None:
    """Add a value to OUT/numbers.json under a lock, because several processes write to this file."""
    with (OUT / "numbers.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        found = json.loads(file.read() or "{}")
        file.seek(0)
        file.truncate()
        json.dump({**found, name: value}, file, indent=1)


def digest(path: Path) -> str:
    """Return the sha256 of a file."""
    return sha256(path.read_bytes()).hexdigest()


def environment() -> bool:
    """Report versions, the GPU and its peak speeds, and check variable-length attention and bitsandbytes."""
    import bitsandbytes
    import torch
    from torch.nn.attention.varlen import varlen_attn

    from bench.train import matmul_flops

    versions = {name: version(name) for name in PACKAGES}
    tell(f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {one}" for name, one in versions.items()))
    keep("versions", versions)
    cuda = torch.cuda.is_available()
    if not cuda and not DRY:
        tell("torch found no CUDA device. Use --dry to run the checks without a GPU.")
        return False
    device = "cuda" if cuda else "cpu"
    tell(f"{torch.cuda.get_device_name() if cuda else 'no GPU'}, CUDA {torch.version.cuda}, {os.cpu_count()} cores")
    peak = matmul_flops(os.cpu_count() or 1)
    keep("matmul_flops", peak)
    tell(f"matmul peak {peak / 1e12:,.1f} TFLOP/s")
    if cuda:
        from_, to = (torch.empty(1 << 31, dtype=torch.uint8, device=device) for _ in range(2))
        to.copy_(from_)
        torch.cuda.synchronize()
        started = time.monotonic()
        for _ in range(10):
            to.copy_(from_)
        torch.cuda.synchronize()
        tell(f"copy speed {10 * 2 * (1 << 31) / (time.monotonic() - started) / 1e12:.2f} TB/s, reads plus writes")
    print(f"varlen_attn is {varlen_attn.__module__}.{varlen_attn.__qualname__}")
    weight = torch.randn(512, 512, device=device, dtype=torch.bfloat16)
    made, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    error = (bitsandbytes.functional.dequantize_4bit(made, state) - weight).norm() / weight.norm()
    tell(f"bitsandbytes {bitsandbytes.__version__}: relative error of nf4 quantization {error:.3f} (expected: 0.09)")
    return bool(error < 0.12)


def attention() -> bool:
    """Compare `attend_by_document` with per-document attention in fp64, and time one layer's attention on a GPU.

    The comparison covers the outputs and the gradients.
    """
    import torch

    from recipe.model.packed_attention import attend_by_document

    device = "cuda" if torch.cuda.is_available() else "cpu"
    lengths = [1, 2, 31, 64, 333, 593] if not DRY else [1, 2, 31, 64]
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
    limits = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
    well = True

    def run(inputs: "list[torch.Tensor]", grad: "torch.Tensor") -> "list[torch.Tensor]":
        leaves = [one.detach().clone().requires_grad_() for one in inputs]
        made, _ = attend_by_document(None, *leaves, None, position_ids=positions)
        made.backward(grad)
        return [made.detach(), *(leaf.grad for leaf in leaves)]

    def reference(inputs: "list[torch.Tensor]", grad: "torch.Tensor") -> "list[torch.Tensor]":
        leaves = [one.detach().double().requires_grad_() for one in inputs]
        query, key, value = leaves
        share = query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(share, 1) for one in (key, value))
        pieces, start = [], 0
        for length in lengths:
            q, k, v = (one[:, :, start : start + length] for one in (query, key, value))
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
            pieces.append(scores.masked_fill(future, float("-inf")).softmax(-1) @ v)
            start += length
        made = torch.cat(pieces, 2).transpose(1, 2)
        made.backward(grad.double())
        return [made.detach(), *(leaf.grad for leaf in leaves)]

    for dtype, limit in limits.items():
        for heads, key_heads, dim in ((8, 8, 128), (8, 2, 128), (6, 6, 32)):
            torch.manual_seed(heads + key_heads)
            tokens = sum(lengths)
            shapes = [(1, heads, tokens, dim), (1, key_heads, tokens, dim), (1, key_heads, tokens, dim)]
            inputs = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
            grad = torch.randn(1, tokens, heads, dim, device=device).to(dtype)
            right = reference(inputs, grad)
            torch.use_deterministic_algorithms(True)
            first, second = run(inputs, grad), run(inputs, grad)
            torch.use_deterministic_algorithms(False)
            errors = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(first, right, strict=True)]
            same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            good = max(errors) < limit and same
            well &= good
            name = f"{str(dtype).removeprefix('torch.')}, {heads} heads over {key_heads} of {dim}"
            said = ", ".join(
                f"{what} {error:.1e}" for what, error in zip(("out", "dq", "dk", "dv"), errors, strict=True)
            )
            tell(f"{'ok' if good else 'WRONG'} {name}: {said}; the same bits in two runs: {same}")
            keep(f"attention {name}", {"errors": errors, "same": same})
    if device == "cuda":
        _attention_cost()
    return well


def _attention_cost() -> None:
    """Report how many milliseconds one layer's attention takes, forward and backward, at the 7B shape's width."""
    import torch

    from recipe.model.packed_attention import add_cu_seqlens, attend_by_document

    lengths = [256] * 16
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    borders = add_cu_seqlens({"position_ids": positions})
    more = {name: one for name, one in borders.items() if name != "position_ids"}
    inputs = [torch.randn(1, 32, 4096, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    grad = torch.randn(1, 4096, 32, 128, device="cuda", dtype=torch.bfloat16)
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        times = []
        for _ in range(25):
            torch.cuda.synchronize()
            started = time.monotonic()
            made, _ = attend_by_document(None, *inputs, None, position_ids=positions.cuda(), **more)
            made.backward(grad)
            torch.cuda.synchronize()
            times.append(time.monotonic() - started)
        torch.use_deterministic_algorithms(False)
        milliseconds = sorted(times)[len(times) // 2] * 1e3
        tell(
            f"one layer's attention, 4,096 tokens, forward and backward: {milliseconds:.2f} ms, "
            f"deterministic {deterministic}"
        )
        keep(f"attention ms, deterministic {deterministic}", milliseconds)


def base() -> bool:
    """Create two base models with random weights: one 7B-shaped, the other equally wide but with few layers."""
    from bench import cuda

    shape = "tiny" if DRY else "xgen-7b"
    for name, layers in (("base", None), ("wide", LAYERS)):
        started = time.monotonic()
        cuda.SHAPES["made"] = cuda.SHAPES[shape] | ({"num_hidden_layers": layers} if layers else {})
        cuda.make_base("made", WORK / name)
        size = (
            (WORK / name / "model.safetensors").stat().st_size if (WORK / name / "model.safetensors").is_file() else 0
        )
        tell(f"{name}: {size / 1e9:.1f} GB in {time.monotonic() - started:.0f} s")
    return True


def isolation() -> bool:
    """Run the bench.cuda check that compares the logits of packed examples with those of each example alone."""
    from bench.cuda import isolation as difference

    found = difference(WORK / "base")
    keep("packed against alone, relative", found)
    tell(f"logits of packed and single examples differ by up to {found:.1e} of the largest logit")
    return found < (1e-4 if DRY else 0.1)


def determinism() -> bool:
    """Run the bench.cuda check that compares two runs with each other and with a run that is stopped and resumed."""
    from bench.cuda import determinism as compare

    started = time.monotonic()
    found = compare(WORK / "determinism", WORK / "wide")
    for name, value in found.items():
        keep(f"{LAYERS} layers, {name}", value)
        tell(f"{name}: {value}")
    tell(f"the runs with {LAYERS} layers took {time.monotonic() - started:.0f} s")
    shutil.rmtree(WORK / "determinism")
    return all(found.values())


def arm(title: str, name: str) -> bool:
    """Run one arm of a bench.cuda configuration."""
    from safetensors import safe_open

    from bench.cuda import CONFIGURATIONS
    from bench.train import arguments, lay_out, parameters_in_matmuls, run_arm

    rows, more = next((rows, list(more)) for found, _, rows, more in CONFIGURATIONS if found == title)
    if DRY:
        rows, more = 64, [one for one in more if one not in ("--memory-gb", "24")]
    options = arguments().parse_args(["--base", str(WORK / "base"), "--rows", str(min(rows, ROWS)), *more])
    work = WORK / re.sub(r"\W+", "-", title)
    if not (work / "plan.json").is_file():
        work.mkdir(exist_ok=True)
        lay_out(options, work)
    try:
        result = run_arm(name, work, options.threads)
    finally:
        print((work / f"{name}.log").read_text()[-20000:])
    [adapter] = sorted((work / name / "adapter").rglob("adapter_model.safetensors"))[:1]
    with safe_open(adapter, framework="numpy") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    trainable = sum(math.prod(shape) for shape in shapes)
    passes = 6 if name in ("tutorial", "trl-default") or options.activation_checkpointing else 4
    flops = passes * parameters_in_matmuls(str(WORK / "base")) + 6 * trainable
    peak = json.loads((OUT / "numbers.json").read_text())["matmul_flops"]
    rate = result["tokens_per_second"] * flops
    keep(f"{title}: {name}", {**result, "flops_per_token": flops, "adapter_sha256": digest(adapter)})
    tell(
        f"{result['tokens_per_second']:,.0f} tokens/s x {flops / 1e9:,.1f} GFLOP = {rate / 1e12:,.1f} TFLOP/s, "
        f"{rate / peak:.0%} of the matmul peak; {result['steps']} steps, {result['seconds_to_first_step']:.0f} s to "
        f"the first step, {result['peak_bytes'] / 1e9:,.1f} GB; adapter {digest(adapter)[:12]}"
    )
    shutil.rmtree(work / name)
    return True


def stages() -> bool:
    """Run the demo's stages several times, and compare the bytes of the outputs.

    The runs are two uninterrupted runs, a run that is killed and resumed, and nf4 runs.
    """
    first = _copy("first")
    small = {
        "num_epochs: 1 ": "num_epochs: 0.02 ",
        "max_generations: 450": "max_generations: 8",
        "save_steps: 100": "save_steps: 5",
        "logging_steps: 10 ": "logging_steps: 5 ",
    }
    _change(first, small if DRY else {})
    for stage in (["fetch", "data"], ["fetch", "model"], ["prepare"]):
        _stage(first, *stage)
    _stage(first, "analyze")  # before train, because only one stage at a time can run in a recipe folder
    names = ["second", "killed", "nf4"] + ([] if DRY else ["nf4-second"])
    copies = {"first": first} | {name: WORK / name for name in names}
    for name in names:
        shutil.copytree(first, copies[name], symlinks=True)
        if name.startswith("nf4"):
            _change(copies[name], {"quantization: none": "quantization: nf4"})
    with ThreadPoolExecutor(1 if DRY else len(copies)) as pool:
        doing = {name: pool.submit(_killed if name == "killed" else _stage, copies[name], "train") for name in copies}
        for name, one in doing.items():
            one.result()
            made = {file: digest(copies[name] / file) for file in KEPT}
            keep(f"stages, {name}", made)
            print(name, json.dumps(made, indent=1))
    well = True
    pairs = [("first", "second"), ("first", "killed")] + ([] if DRY else [("nf4", "nf4-second")])
    for one, other in pairs:
        differing = [file for file in KEPT if digest(copies[one] / file) != digest(copies[other] / file)]
        well &= not differing
        tell(f"train {one} and {other}: {'the same bytes' if not differing else 'DIFFERENT: ' + ', '.join(differing)}")
    metrics = json.loads((first / "metrics/train.json").read_text())
    tell(
        f"trained {metrics['steps']} steps in {metrics['dtype']}, "
        f"loss from {metrics['first_loss']} to {metrics['last_loss']}"
    )
    with ThreadPoolExecutor(1 if DRY else 3) as pool:
        evaluated = [pool.submit(_stage, copies[name], "evaluate") for name in ("first", "second", "nf4")]
        said = [one.result().strip().splitlines()[-1] for one in evaluated]
    tell(said[0])
    tell(f"nf4: {said[2]}")
    for file in ("metrics/evaluate.json", "reports/evaluation/generations.jsonl"):
        same = digest(first / file) == digest(copies["second"] / file)
        well &= same
        tell(f"evaluate, {file} of two runs: {'the same bytes' if same else 'DIFFERENT'}")
    tell(f"register: {_stage(first, 'register').strip().splitlines()[-1]}")
    return well


def _copy(name: str) -> Path:
    """Copy the working tree, without stage outputs and other ignored folders, to WORK, and return the copy's path."""
    left_out = shutil.ignore_patterns(
        ".git", ".whl", ".venv", "data", "models", "metrics", "reports", "mlflow", ".recipe", "__pycache__"
    )
    shutil.copytree(ROOT, WORK / name, symlinks=True, ignore=left_out)
    return WORK / name


def _change(folder: Path, changes: dict[str, str]) -> None:
    """Replace strings in params.yaml, each of which must occur in the file."""
    path = folder / "params.yaml"
    text = path.read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)


def _command(stage: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-P", "recipe/__main__.py", *stage]


def _environment() -> dict[str, str]:
    """Return the environment variables without the working tree in PYTHONPATH, so that a copy runs its own code."""
    paths = [path for path in os.environ["PYTHONPATH"].split(os.pathsep) if Path(path) != ROOT]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _stage(folder: Path, *stage: str) -> str:
    """Run a stage and return its output.

    Raise RuntimeError, which ends the check, if the stage fails.
    """
    started = time.monotonic()
    done = subprocess.run(_command(stage), cwd=folder, env=_environment(), capture_output=True, text=True, check=False)
    print(
        f"## {folder.name}: {' '.join(stage)}, {time.monotonic() - started:.1f} s\n{done.stdout}{done.stderr[-3000:]}",
        flush=True,
    )
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RuntimeError(f"{folder.name}: {' '.join(stage)} exited with code {done.returncode}: {last}")
    keep(f"seconds, {folder.name} {' '.join(stage)}", round(time.monotonic() - started, 1))
    return done.stdout


def _killed(folder: Path, *stage: str) -> str:
    """Run train, kill it after its first checkpoint, run it again, and return the second run's output."""
    every = int(re.search(r"save_steps: (\d+)", (folder / "params.yaml").read_text())[1])
    running = subprocess.Popen(_command(stage), cwd=folder, env=_environment(), stdout=subprocess.PIPE, text=True)
    killed_at = None
    for line in running.stdout:
        found = re.match(r"step (\d+)/", line)
        if found and int(found[1]) > every:
            killed_at = int(found[1])
            running.send_signal(signal.SIGKILL)
            break
    running.wait()
    if killed_at is None:
        raise RuntimeError(f"killed: train exited with code {running.returncode} before it was killed")
    said = _stage(folder, *stage)
    gone_on = re.search(r"resuming from (checkpoint-\d+)", said)
    if not gone_on:
        raise RuntimeError("killed: train did not resume from a checkpoint")
    tell(f"train was killed at step {killed_at} and resumed from {gone_on[1]}")
    return said


def main() -> None:
    """Run the check named on the command line."""
    checks = {one.__name__: one for one in (environment, attention, base, isolation, determinism, arm, stages)}
    name, *arguments = sys.argv[1:]
    sys.exit(0 if checks[name](*arguments) else 1)


if __name__ == "__main__":
    main()
