"""Ours beside what a user would run instead: tokens a second, time, memory, and the way to the same loss.

    python -m bench.train                                   the embedded rows and base
    python -m bench.train --data rows.json --vocabulary FOLDER --rows 96      a random Llama of 20M parameters
    python -m bench.train --to-loss                         and the seconds until the loss that A ends with

Every arm is a process of its own (bench/arm.py says what each does); the order turns with each round, and the table
holds medians. Vocabulary: a folder with GPT-2's `vocab.json` and `merges.txt` (or `encoder.json` and `vocab.bpe`).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.arm import ARMS
from recipe.text.readers import BadRow, pick_columns, read_rows
from recipe.text.templates import alpaca_turns

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
REQUIRED, OPTIONAL = {"instruction": "instruction", "output": "output"}, {"input": "input"}


def random_llama(vocabulary: Path, folder: Path) -> Path:
    """A Llama of 20M parameters (6 layers, hidden 288, tied head) with GPT-2's vocabulary and random weights."""
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
    """Write the same rows as each arm takes them, and the plan that all arms read."""
    from transformers import AutoConfig, AutoTokenizer

    files = sorted(options.data.glob("train.*")) if options.data.is_dir() else [options.data]
    rows = []
    for file in files:
        for row in read_rows(file):
            picked = row if isinstance(row, BadRow) else pick_columns(row, REQUIRED, OPTIONAL)
            if isinstance(picked, BadRow):
                sys.exit(f"error: {picked.file}, {picked.place}: {picked.reason}")
            rows.append(picked)
    held = rows[:: max(2, len(rows) // 48)][:48]
    kept = [row for row in rows if row not in held][: options.rows or None]
    base = options.base or random_llama(options.vocabulary, work / "model")
    tokenizer = AutoTokenizer.from_pretrained(base)
    turns = [alpaca_turns(row)[0] for row in kept]
    lengths = [len(tokenizer(turn.prompt + turn.completion)["input_ids"]) + 1 for turn in turns]
    for split, some in (("train", kept), ("validation", held)):
        _write(work / "rows" / f"{split}.jsonl", some)
    _write(work / "text.jsonl", [{"text": turn.prompt + turn.completion} for turn in turns])
    _write(work / "trl" / "train.jsonl", [{"prompt": t.prompt, "completion": t.completion} for t in turns])
    validation = []
    for row in held:
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
        # A padding token of its own, as recipe/tokens/tokenizer.py adds it.
        "pad_token_id": len(tokenizer) if pad is None or pad == tokenizer.eos_token_id else pad,
        "vocab_size": config.vocab_size, "quantization": options.quantization, "memory_gb": options.memory_gb,
        "activation_checkpointing": options.activation_checkpointing,
        "logging_steps": 10, "save_steps": 10_000, "stop_after": 0,
    }  # fmt: skip
    (work / "plan.json").write_text(json.dumps(plan))
    print(
        f"{len(kept):,} rows, {sum(lengths):,} tokens; {len(held)} held out; {plan['tokens_per_step']:,} tokens a step"
    )
    return plan


def _targets(text: str) -> str | list[str]:
    return text if text == "all-linear" else text.split(",")


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_arm(arm: str, work: Path, threads: int) -> dict[str, Any]:
    """The result of one arm, run in a process of its own."""
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
        last = (work / f"{arm}.log").read_text().splitlines()[-15:]
        sys.exit("\n".join([*last, f"error: arm {arm} failed; its last lines are above."]))
    return json.loads((out / "result.json").read_text())


def matmul_flops(threads: int) -> float:
    """The peak of this machine: floating-point operations a second of a large matmul in the training dtype."""
    import torch

    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    size = 8192 if cuda else 1536
    kind = {"dtype": torch.bfloat16, "device": "cuda"} if cuda else {"dtype": torch.float32}
    a, b = torch.randn(size, size, **kind), torch.randn(size, size, **kind)
    best = 0.0
    for _ in range(8):
        started = time.monotonic()
        for _ in range(4):
            a @ b
        if cuda:
            torch.cuda.synchronize()
        best = max(best, 4 * 2 * size**3 / (time.monotonic() - started))
    return best


def parameters_in_matmuls(base: str) -> int:
    """Parameters that a token is multiplied with: all but a lookup table that is not the head."""
    from transformers import AutoConfig

    from recipe.planning.memory_estimate import count_parameters

    config = AutoConfig.from_pretrained(base)
    return count_parameters(config) - (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)


def seconds_to(scores: list[list[float]], loss: float) -> float | None:
    """When training first had at most this loss, by straight lines between the scores."""
    before: list[float] | None = None
    for at, value in scores:
        if value <= loss:
            if before is None or before[1] == value:
                return at
            return before[0] + (at - before[0]) * (before[1] - loss) / (before[1] - value)
        before = [at, value]
    return None


def table(results: dict[str, dict[str, float]]) -> str:
    """The medians as Markdown, beside what they are of A's and B's."""
    head = "| arm | tokens/s | x A | x B | trained tokens/s | MFU | job s | to first step s | peak MB "
    head += "| to the first arm's loss s |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|---|"]
    for arm, one in results.items():
        times = [
            f"{one['tokens_per_second'] / results[other]['tokens_per_second']:.1f}" if other in results else ""
            for other in "AB"
        ]
        to_loss = f"{one['seconds_to_loss']:.1f}" if one.get("seconds_to_loss") else ""
        lines.append(
            f"| {arm} | {one['tokens_per_second']:,.0f} | {times[0]} | {times[1]} | "
            f"{one['trained_tokens_per_second']:,.0f} | {one['mfu']:.0%} | {one['job_seconds']:.1f} | "
            f"{one['seconds_to_first_step']:.1f} | {one['peak_bytes'] / 1e6:,.0f} | {to_loss} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=ROOT / "demo" / "rows", help="a file or folder of Alpaca's columns"
    )
    parser.add_argument("--base", type=Path, help="a base model's folder (default: the embedded one)")
    parser.add_argument("--vocabulary", type=Path, help="instead of --base: a random Llama with this vocabulary")
    parser.add_argument("--rows", type=int, default=0, help="of the training rows, how many (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS), help="of %(default)s, and C-bf16, D-bf16, E-bf16")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=4, help="sequences of max-length a step")
    parser.add_argument("--micro-batch-tokens", type=int, default=0, help="ours: tokens at once (default: the batch)")
    parser.add_argument("--target-modules", default="q_proj,v_proj", help="or all-linear")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quantization", choices=["none", "nf4"], default="none", help="of the base, in C, D and E")
    parser.add_argument("--activation-checkpointing", action="store_true", help="in C, D and E; A and B have it")
    parser.add_argument("--memory-gb", type=float, default=0, help="of the GPU's memory, how much an arm may take")
    parser.add_argument("--to-loss", action="store_true", help="one more run of each arm, scored as it goes")
    parser.add_argument("--json", type=Path, help="where the numbers go, too")
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
            turned = arms[round_ % len(arms) :] + arms[: round_ % len(arms)]
            for arm in turned:
                runs[arm].append(run_arm(arm, work, options.threads))
                print(f"round {round_ + 1}, {arm}: {runs[arm][-1]['tokens_per_second']:,.0f} tokens/s", flush=True)
        results = {arm: _medians(some, parameters, peak) for arm, some in runs.items()}
        if options.to_loss:
            plan["score_every"] = max(1, int(results[arms[0]]["steps"]) // 20)
            (work / "plan.json").write_text(json.dumps(plan))
            scored = {arm: run_arm(arm, work, options.threads)["scores"] for arm in arms}
            aim = scored[arms[0]][-1][1]
            print(f"{arms[0]} ends with a validation loss of {aim:.4f}; " + ", ".join(
                f"{arm} {scores[-1][1]:.4f}" for arm, scores in scored.items()))  # fmt: skip
            for arm, scores in scored.items():
                results[arm]["seconds_to_loss"] = seconds_to(scores, aim)
                results[arm]["scores"] = scores
    machine = f"{platform.processor() or platform.machine()}, {options.threads} threads; "
    machine += ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    print(f"\n{machine}\nmatmul peak {peak / 1e9:,.0f} GFLOP/s; MFU counts 4 operations a parameter and token\n")
    print(table(results))
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine, "peak_flops": peak, "plan": plan, "arms": results}, indent=1)
        )


def _medians(runs: list[dict[str, Any]], parameters: int, peak: float) -> dict[str, Any]:
    result = {name: statistics.median(one[name] for one in runs) for name, value in runs[0].items() if name != "scores"}
    return {**result, "mfu": result["tokens_per_second"] * 4 * parameters / peak}


if __name__ == "__main__":
    main()
