"""Runs the arms on a CUDA GPU with a randomly initialized, XGen-7B-shaped model, and runs the checks that need a GPU.

    python -m bench.cuda                        run everything (about ten minutes on an H200)
    python -m bench.cuda --only bf16            run the checks, and the configurations whose names start with `bf16`
    python -m bench.cuda --shape tiny           test this script itself, on any machine

Each configuration has its own results table. The rows and the tokenizer come from the demo, but the model's vocabulary
is as large as XGen's. bench.train runs the arms.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench.arm import STOPPED
from bench.train import ROOT, arguments, lay_out, table

SHAPES = {
    "xgen-7b": {
        "vocab_size": 51200, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 8192,
    },
    "tiny": {
        "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    },
}  # fmt: skip
# Each entry contains a name, the arms, the number of training rows (about 32 per step), and options for bench.train.
# tutorial and trl-default keep their weights in fp32, which is slow, so these arms train on few rows.
CONFIGURATIONS: list[tuple[str, str, int, list[str]]] = [
    ("bf16 all-linear, tutorial and trl sft", "tutorial,trl-default", 320, ["--target-modules", "all-linear"]),
    ("bf16 all-linear", "trl-packed,recipe,recipe-deterministic", 1920, ["--target-modules", "all-linear"]),
    ("bf16 q and v", "trl-packed,recipe", 1920, []),
    ("bf16 all-linear, checkpointing, 24 GB", "trl-packed,recipe", 640,
     ["--target-modules", "all-linear", "--activation-checkpointing", "--memory-gb", "24"]),
    ("nf4 all-linear, checkpointing, 24 GB", "trl-packed,recipe", 640,
     ["--target-modules", "all-linear", "--activation-checkpointing", "--quantization", "nf4", "--memory-gb", "24"]),
    ("nf4 all-linear", "recipe", 640, ["--target-modules", "all-linear", "--quantization", "nf4"]),
]  # fmt: skip


def make_base(shape: str, folder: Path) -> None:
    """In `folder`, create a base model with random bf16 weights and the demo's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], bos_token_id=None, eos_token_id=0, dtype="bfloat16")
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo" / "base" / name, folder)


def isolation(base: Path) -> float:
    """Return the largest difference between the logits of a packed example and those of the same example alone.

    The difference is relative to the example's largest logit.
    """
    import torch

    from recipe.core.io import sha256_file
    from recipe.model.load import load_base
    from recipe.model.packed_attention import add_cu_seqlens
    from recipe.tokens.packing import collate

    files = [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in base.iterdir()]
    manifest = {"id": "x", "path": str(base), "converted": False, "remote_code": False, "files": files}
    model = load_base(manifest, Path("/"), 0, packed=True)
    print(f"attention: {model.config._attn_implementation}, on {model.device}")
    torch.manual_seed(0)
    lengths = [1, 2, 31, 64, 333]
    ids = torch.randint(2, 900, (sum(lengths),))
    row = {"input_ids": ids.numpy(), "completion_mask": [True] * len(ids), "seq_lengths": lengths}
    batch = {
        name: value.to(model.device) if hasattr(value, "to") else value
        for name, value in add_cu_seqlens(collate([row], 1)).items()
    }
    batch.pop("labels")
    largest = 0.0
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits[0].float()
        start = 0
        for length in lengths:
            alone = model(ids[None, start : start + length].to(model.device), use_cache=False).logits[0].float()
            difference = (packed[start : start + length] - alone).abs().max() / alone.abs().max()
            largest, start = max(largest, difference.item()), start + length
    return largest


def determinism(work: Path, base: Path) -> dict[str, bool]:
    """Compare the adapters of an uninterrupted run, a second such run, and a run that is stopped and resumed.

    The third run is stopped after step 6. Return {comparison: whether the bytes are the same}.
    """
    options = arguments().parse_args(["--rows", "320", "--base", str(base)])
    work.mkdir()
    plan = {**lay_out(options, work), "logging_steps": 2, "save_steps": 4}
    arm = "recipe-deterministic"
    digests = {}
    for name, stops in (("first", [0]), ("second", [0]), ("stopped", [6, 0])):
        (work / name / arm).mkdir(parents=True)
        for stop in stops:
            (work / name / "plan.json").write_text(json.dumps({**plan, "stop_after": stop}))
            command = [sys.executable, "-m", "bench.arm", arm, "--work", work / name]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode != (STOPPED if stop else 0):
                sys.exit(
                    f"{done.stderr[-2000:]}\nerror: run {name} exited with code {done.returncode}; "
                    "the end of its output is above."
                )
            if name == "stopped" and not stop and "resuming from checkpoint-4" not in done.stdout:
                sys.exit("error: the stopped run did not resume from checkpoint-4.")
        digests[name] = sha256((work / name / arm / "adapter/adapter_model.safetensors").read_bytes()).hexdigest()
    return {
        "two runs, the same bytes": digests["first"] == digests["second"],
        "stopped and resumed, the same bytes": digests["first"] == digests["stopped"],
    }


def main() -> None:
    """Run the configurations and the checks, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="xgen-7b")
    parser.add_argument("--only", default="", help="run only the configurations whose names start with this text")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--checks", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        work = Path(name)
        base = work / "base"
        make_base(options.shape, base)
        for title, arms, rows, extra_options in CONFIGURATIONS:
            if not title.startswith(options.only):
                continue
            if options.shape == "tiny":
                rows, extra_options = 64, [word for word in extra_options if word not in ("--memory-gb", "24")]
            out = work / "numbers.json"
            command = ["--base", base, "--rows", rows, "--rounds", 1, "--arms", arms, "--json", out, *extra_options]
            done = subprocess.run(
                [sys.executable, "-m", "bench.train", *map(str, command)], cwd=ROOT, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            if done.returncode != 0:
                print(f"\n## {title}\n\n{done.stdout[-1500:]}{done.stderr[-1500:]}", flush=True)
                continue
            results[title] = json.loads(out.read_text())
            print(f"\n## {title}\n\n{table(results[title]['arms'])}", flush=True)
        if options.checks:
            results["packed against alone, relative"] = isolation(base)
            results.update(determinism(work / "determinism", base))
            print(json.dumps({name: value for name, value in results.items() if not isinstance(value, dict)}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
