"""Compares the speed and the peak memory of prepare with those of SFTTrainer, which also tokenizes and packs rows.

The `ours` arm (fetch data and prepare) and the `trl` arm (SFTTrainer) turn a file into packed sequences. The `analyze`
arm runs the analyze stage, which reports on the prepared rows.

    python -m bench.prepare                                        use the demo's rows and tokenizer
    python -m bench.prepare --data rows.json --vocabulary FOLDER   use GPT-2's vocabulary, as in bench.train
    python -m bench.prepare --sizes 1000,10000,100000,1000000 --arms ours,analyze --rounds 1

If a size exceeds the number of rows in the data, the rows are repeated. A different number is appended to each row's
instruction. Each run uses a separate process on a single core. The times do not include imports.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from bench.train import OPTIONAL, REQUIRED, ROOT
from recipe.text.alpaca import alpaca_turns
from recipe.text.readers import read_rows
from recipe.text.rows import BadRow, pick_columns

COLUMNS = {"instruction": "instruction", "input": "input", "output": "output"}


def paths_in(work: Path) -> Any:
    """Return the paths of the stage outputs in the folder `work`."""
    from recipe.core.paths import Paths

    return Paths(
        folder=Path("/"), raw=work / "raw", base=work / "b", prepared=work / "prepared", analysis=work / "report"
    )


def ours(rows: Path, base: Path, work: Path, max_length: int) -> float:
    """Run fetch@data and prepare, and return their total time in seconds."""
    from recipe.fetch.params import DataParams, ModelParams
    from recipe.fetch.stage import fetch_data, fetch_model
    from recipe.prepare.params import SequenceParams
    from recipe.prepare.stage import prepare

    paths = paths_in(work)
    fetch_model(ModelParams(source=str(base), id="bench", revision=None, trust_remote_code=False), paths)
    sequence = SequenceParams(
        template="alpaca", chat_template=None, columns=COLUMNS, max_length=max_length, on_overlong="truncate",
        loss_on="completion", packing=True, validation_fraction=0.01, on_bad_row="error",
    )  # fmt: skip
    for module in ("orjson", "pandas", "pyarrow", "tiktoken"):  # imported here, because no arm's time includes imports
        importlib.import_module(module)
    started = time.monotonic()
    data = DataParams(
        source=str(rows), id=None, revision=None, subset=None, sha256=None, train_split="train",
        validation_split=None, general=None, general_sha256=None,
    )  # fmt: skip
    fetch_data(data, paths)
    prepare(sequence, paths, lambda items, *_: items)
    return time.monotonic() - started


def analysis(rows: Path, base: Path, work: Path, max_length: int) -> float:
    """Run analyze and return the seconds that it takes.

    The prepare stage runs first, in a separate process, so that its memory is not counted.
    """
    from multiprocessing import get_context

    from recipe.analyze.params import AnalyzeParams
    from recipe.analyze.stage import analyze

    process = get_context("spawn").Process(target=ours, args=(rows, base, work, max_length))
    process.start()
    process.join()
    for module in (
        "datasketch",
        "fontTools.unicodedata",
        "ftfy",
        "matplotlib.figure",
        "pyarrow.compute",
        "transformers",
    ):
        importlib.import_module(module)
    started = time.monotonic()
    analyze(AnalyzeParams(num_rows=5, num_bins=50), paths_in(work), lambda items, *_: items)
    return time.monotonic() - started


def trl(rows: Path, base: Path, work: Path, max_length: int) -> float:
    """Load the rows, run SFTTrainer's constructor, and return the total time in seconds.

    The time does not include writing the prompts and completions to a file.
    """
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(base)
    turns = [alpaca_turns(json.loads(line))[0] for line in rows.read_text().splitlines()]
    file = work / "completions.jsonl"
    file.write_text("".join(json.dumps({"prompt": t.prompt, "completion": t.completion}) + "\n" for t in turns))
    started = time.monotonic()
    dataset = load_dataset("json", data_files=str(file), split="train", cache_dir=str(work / "cache"))
    config = SFTConfig(
        output_dir=str(work / "out"), packing=True, max_length=max_length, bf16=False, use_cpu=True, report_to="none"
    )
    SFTTrainer(model=model, args=config, train_dataset=dataset, peft_config=LoraConfig(task_type="CAUSAL_LM"))
    return time.monotonic() - started


def run(arm: str, rows: Path, base: Path, max_length: int) -> dict[str, float]:
    """Run an arm in a separate process on a single core, and return its result."""
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        command = [sys.executable, "-m", "bench.prepare", "--arm", arm, "--data", rows, "--base", base]
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TMPDIR": work,
        }  # fmt: skip
        done = subprocess.run(
            [*map(str, command), "--max-length", str(max_length)], cwd=ROOT, env=environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            sys.exit(f"{done.stderr[-2000:]}\nerror: arm {arm} failed; the end of its output is above.")
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=ROOT / "demo" / "rows" / "train.jsonl", help="a file of rows with Alpaca's columns"
    )
    parser.add_argument("--base", type=Path, help="the folder of a base model (default: the demo's)")
    parser.add_argument("--vocabulary", type=Path, help="a folder with GPT-2's vocabulary, to use instead of --base")
    parser.add_argument(
        "--sizes", default="1000,4000", help="numbers of rows, separated by commas (default: %(default)s)"
    )
    parser.add_argument("--arms", default="trl,ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--arm", choices=["trl", "ours", "analyze"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        with tempfile.TemporaryDirectory() as work:
            arm = {"trl": trl, "ours": ours, "analyze": analysis}[options.arm]
            seconds = arm(options.data.resolve(), options.base.resolve(), Path(work), options.max_length)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}))
        return
    rows: list[dict[str, Any]] = []
    for row in read_rows(options.data):
        picked = row if isinstance(row, BadRow) else pick_columns(row, REQUIRED, OPTIONAL)
        if isinstance(picked, BadRow):
            sys.exit(f"error: {picked.file}, {picked.place}: {picked.reason}")
        rows.append(picked)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        base = options.base or ROOT / "demo" / "base"
        if options.vocabulary:
            from bench.train import random_llama

            base = random_llama(options.vocabulary, Path(name) / "base")
        print("| rows | arm | seconds | rows/s | peak MB |\n|---|---|---|---|---|")
        for size in map(int, options.sizes.split(",")):
            file = Path(name) / f"{size}.jsonl"
            with file.open("w") as out:
                for number, row in enumerate(islice(cycle(rows), size)):
                    out.write(json.dumps({**row, "instruction": f"{row['instruction']} ({number})"}) + "\n")
            for arm in options.arms.split(","):
                runs = [run(arm, file, base, options.max_length) for _ in range(options.rounds)]
                seconds = statistics.median(result["seconds"] for result in runs)
                peak = statistics.median(result["peak_bytes"] for result in runs)
                print(f"| {size:,} | {arm} | {seconds:.1f} | {size / seconds:,.0f} | {peak / 1e6:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
