"""Compares the recipe's training speed and memory use with those of the tools that users would otherwise run.

    python -m bench.train                                   use the demo's rows and base model
    python -m bench.train --data rows.json --vocabulary FOLDER --rows 96      use a random Llama with 20M parameters
    python -m bench.train --to-loss                         also time each arm up to the first arm's final loss

Each arm runs in a separate process (bench/arm.py describes the arms). The order of the arms rotates from round to
round, and the table shows medians. FOLDER contains GPT-2's `vocab.json` and `merges.txt` (or `encoder.json` and
`vocab.bpe`).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.arm import ARMS, BF16_ARMS
from recipe.text.alpaca import alpaca_turns
from recipe.text.readers import read_rows
from recipe.text.rows import BadRow, pick_columns

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
REQUIRED, OPTIONAL = {"instruction": "instruction", "output": "output"}, {"input": "input"}


def random_llama(vocabulary: Path, folder: Path) -> Path:
    """Create a random 20M-parameter Llama (6 layers, hidden size 288, tied head) with GPT-2's vocabulary."""
    import torch
    from transformers import GPT2TokenizerFast, LlamaConfig, LlamaForCausalLM

    names = ("vocab.json", "merges.txt") if (vocabulary / "vocab.json").is_file() else ("encoder.json", "vocab.bpe")
    tokenizer = GPT2TokenizerFast(*(str(vocabulary / name) for name in names))
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def lay_out(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Write the rows in each arm's format, write the plan that all arms read, and return the plan."""
    from transformers import AutoConfig, AutoTokenizer

    files = sorted(options.data.glob("train.*")) if options.data.is_dir() else [options.data]
    rows = []
    for file in files:
        for row in read_rows(file):
            picked = row if isinstance(row, BadRow) else pick_columns(row, REQUIRED, OPTIONAL)
            if isinstance(picked, BadRow):
                sys.exit(f"error: {picked.file}, {picked.place}: {picked.reason}")
            rows.append(picked)
    validation_rows = rows[:: max(2, len(rows) // 48)][:48]
    train_rows = [row for row in rows if row not in validation_rows][: options.rows or None]
    base = options.base or random_llama(options.vocabulary, work / "model")
    tokenizer = AutoTokenizer.from_pretrained(base)
    turns = [alpaca_turns(row)[0] for row in train_rows]
    lengths = [len(tokenizer(turn.prompt + turn.completion)["input_ids"]) + 1 for turn in turns]
    for split, split_rows in (("train", train_rows), ("validation", validation_rows)):
        _write(work / "rows" / f"{split}.jsonl", split_rows)
    _write(work / "text.jsonl", [{"text": turn.prompt + turn.completion} for turn in turns])
    _write(work / "trl" / "train.jsonl", [{"prompt": t.prompt, "completion": t.completion} for t in turns])
    validation = []
    for row in validation_rows:
        [turn] = alpaca_turns(row)
        prompt = tokenizer(turn.prompt, add_special_tokens=False)["input_ids"]
        completion = [*tokenizer(turn.completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = (prompt + completion)[: options.max_length]
        validation.append((ids, ([False] * len(prompt) + [True] * len(completion))[: len(ids)]))
    (work / "validation.json").write_text(json.dumps(validation))
    config = AutoConfig.from_pretrained(base)
    pad = tokenizer.pad_token_id
    plan = {
        "base": str(base), "rows": str(work / "rows"), "text": str(work / "text.jsonl"),
        "completions": str(work / "trl" / "train.jsonl"), "max_length": options.max_length,
        "batch_size": options.batch_size,
        "micro_batch_tokens": options.micro_batch_tokens or options.batch_size * options.max_length,
        "learning_rate": options.learning_rate, "target_modules": _targets(options.target_modules), "seed": 1,
        "num_threads": options.threads, "tokens_per_step": options.batch_size * options.max_length,
        "tokens_per_row": sum(lengths) / len(lengths), "score_every": 0,
        # If the tokenizer has no separate padding token, recipe/tokens/tokenizer.py adds one with this id.
        "pad_token_id": len(tokenizer) if pad is None or pad == tokenizer.eos_token_id else pad,
        "vocab_size": config.vocab_size, "quantization": options.quantization, "memory_gb": options.memory_gb,
        "activation_checkpointing": options.activation_checkpointing,
        "logging_steps": 10, "save_steps": 10_000, "stop_after": 0,
    }  # fmt: skip
    (work / "plan.json").write_text(json.dumps(plan))
    print(
        f"{len(train_rows):,} rows, {sum(lengths):,} tokens; {len(validation_rows)} validation rows; "
        f"{plan['tokens_per_step']:,} tokens per step"
    )
    return plan


def _targets(text: str) -> str | list[str]:
    return text if text == "all-linear" else text.split(",")


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_arm(arm: str, work: Path, threads: int) -> dict[str, Any]:
    """Run an arm in a separate process and return its result."""
    out = work / arm
    subprocess.run(["rm", "-rf", str(out)], check=True)
    out.mkdir()
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "cache"),
        "HF_DATASETS_CACHE": str(out / "datasets"), "TOKENIZERS_PARALLELISM": "true",
    }  # fmt: skip
    with (work / f"{arm}.log").open("w") as log:
        command = [sys.executable, "-m", "bench.arm", arm, "--work", str(work)]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        last_lines = (work / f"{arm}.log").read_text().splitlines()[-15:]
        sys.exit("\n".join([*last_lines, f"error: arm {arm} failed; the end of its output is above."]))
    return json.loads((out / "result.json").read_text())


def matmul_flops(threads: int) -> float:
    """Measure the peak FLOP/s of a large matmul, in bf16 on CUDA or in fp32 on a CPU."""
    import torch

    from recipe.planning import plan

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        return plan.matmul_flops(torch.bfloat16)
    return plan.matmul_flops(torch.float32, size=1536)


def parameters_in_matmuls(base: str) -> int:
    """Count the parameters used in matmuls: all except those of an embedding that is not tied to the head."""
    from transformers import AutoConfig

    from recipe.planning.memory_estimate import count_parameters

    config = AutoConfig.from_pretrained(base)
    return count_parameters(config) - (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)


def seconds_to(scores: list[list[float]], loss: float) -> float | None:
    """Return the seconds until the loss reached the given value, or None if it never did.

    The time is interpolated linearly between two scores.
    """
    previous: list[float] | None = None
    for seconds, value in scores:
        if value <= loss:
            if previous is None or previous[1] == value:
                return seconds
            return previous[0] + (seconds - previous[0]) * (previous[1] - loss) / (previous[1] - value)
        previous = [seconds, value]
    return None


def table(results: dict[str, dict[str, float]]) -> str:
    """Return the medians as a Markdown table, which includes the speed relative to `tutorial` and `trl-default`."""
    head = "| arm | tokens/s | x tutorial | x trl-default | loss tokens/s | MFU | job s | to first step s | peak MB "
    head += "| to first arm's final loss s |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|---|"]
    for arm, result in results.items():
        speedups = [
            f"{result['tokens_per_second'] / results[other]['tokens_per_second']:.1f}" if other in results else ""
            for other in ("tutorial", "trl-default")
        ]
        to_loss = f"{result['seconds_to_loss']:.1f}" if result.get("seconds_to_loss") else ""
        lines.append(
            f"| {arm} | {result['tokens_per_second']:,.0f} | {speedups[0]} | {speedups[1]} | "
            f"{result['trained_tokens_per_second']:,.0f} | {result['mfu']:.0%} | {result['job_seconds']:.1f} | "
            f"{result['seconds_to_first_step']:.1f} | {result['peak_bytes'] / 1e6:,.0f} | {to_loss} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    """Return the parser for the command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=ROOT / "demo" / "rows", help="a file or folder of rows with Alpaca's columns"
    )
    parser.add_argument("--base", type=Path, help="the folder of a base model (default: the demo's)")
    parser.add_argument("--vocabulary", type=Path, help="use a random Llama with this vocabulary instead of --base")
    parser.add_argument("--rows", type=int, default=0, help="number of training rows (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS), help="any of %(default)s, " + ", ".join(BF16_ARMS))
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=4, help="number of sequences of --max-length tokens per step")
    parser.add_argument(
        "--micro-batch-tokens", type=int, default=0, help="tokens per micro-batch in recipe arms (default: the batch)"
    )
    parser.add_argument("--target-modules", default="q_proj,v_proj", help="comma-separated module names, or all-linear")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--quantization",
        choices=["none", "nf4"],
        default="none",
        help="quantization of the base model in trl-packed and the recipe arms",
    )
    parser.add_argument(
        "--activation-checkpointing",
        action="store_true",
        help="use activation checkpointing in trl-packed and the recipe arms (the other arms always use it)",
    )
    parser.add_argument("--memory-gb", type=float, default=0, help="GPU memory limit for each arm")
    parser.add_argument("--to-loss", action="store_true", help="run each arm once more and score it during training")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    return parser


def main() -> None:
    """Run the arms and print the table."""
    options = arguments().parse_args()
    options.base = options.base or (None if options.vocabulary else ROOT / "demo" / "base")
    arms = options.arms.split(",")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        work = Path(name)
        plan = lay_out(options, work)
        peak, parameters = matmul_flops(options.threads), parameters_in_matmuls(plan["base"])
        runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for round_ in range(options.rounds):
            rotated = arms[round_ % len(arms) :] + arms[: round_ % len(arms)]
            for arm in rotated:
                runs[arm].append(run_arm(arm, work, options.threads))
                print(f"round {round_ + 1}, {arm}: {runs[arm][-1]['tokens_per_second']:,.0f} tokens/s", flush=True)
        results = {arm: _medians(arm_runs, parameters, peak) for arm, arm_runs in runs.items()}
        if options.to_loss:
            plan["score_every"] = max(1, int(results[arms[0]]["steps"]) // 20)
            (work / "plan.json").write_text(json.dumps(plan))
            scored = {arm: run_arm(arm, work, options.threads)["scores"] for arm in arms}
            target = scored[arms[0]][-1][1]
            print(f"{arms[0]} ends with a validation loss of {target:.4f}; " + ", ".join(
                f"{arm} {scores[-1][1]:.4f}" for arm, scores in scored.items()))  # fmt: skip
            for arm, scores in scored.items():
                results[arm]["seconds_to_loss"] = seconds_to(scores, target)
                results[arm]["scores"] = scores
    machine = f"{platform.processor() or platform.machine()}, {options.threads} threads; "
    machine += ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    print(f"\n{machine}\nmatmul peak {peak / 1e9:,.0f} GFLOP/s; MFU counts 4 operations per parameter and token\n")
    print(table(results))
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine, "peak_flops": peak, "plan": plan, "arms": results}, indent=1)
        )


def _medians(runs: list[dict[str, Any]], parameters: int, peak: float) -> dict[str, Any]:
    result = {name: statistics.median(run[name] for run in runs) for name in runs[0] if name != "scores"}
    return {**result, "mfu": result["tokens_per_second"] * 4 * parameters / peak}


if __name__ == "__main__":
    main()
