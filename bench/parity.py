"""Compares every way out of a recipe with its trained adapter: exported files, and servers that answer requests.

    python -m bench.parity                          in the repository root, after `make demo`
    python -m bench.parity presets/my-recipe        after `dvc repro` in that folder
    python -m bench.parity --engines llama.cpp      only some servers

Exported files are compared by `recipe export` (token ids, logits, greedy answers). A server gets the prompts that the
evaluation answered, with OpenAI's client, and its answers are compared with the adapter's in
reports/evaluation/generations.jsonl. Prints a table for docs/RESULTS.md.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from recipe.cli import context
from recipe.core.errors import TrainingError
from recipe.core.io import read_json, read_json_lines
from recipe.core.paths import Paths
from recipe.export.chat_template import texts_around
from recipe.serve.engine import free_port

EXPORTS = (("merged", "float32"), ("merged", "bfloat16"), ("gguf", "float32"), ("gguf", "q8_0"))
ENGINES = {"transformers": "float32", "llama.cpp": "float32", "llama.cpp q8_0": "q8_0", "mlflow": "float32"}
HEADER = (
    "| form | equal prompts | largest difference of a logit | mean divergence | equal answers | equal first tokens |\n"
    "|---|---|---|---|---|---|"
)
SHOWN_ROWS = 32


def recipe(*arguments: str) -> str | None:
    """Run a command of the recipe. Returns the reason if it refuses an export, and exits if it fails otherwise."""
    done = subprocess.run([sys.executable, "-m", "recipe", *arguments], capture_output=True, text=True, check=False)
    if done.returncode == TrainingError.exit_code:
        return done.stderr.strip().splitlines()[-1].removeprefix("error: ")
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}{done.stderr[-2000:]}\nerror: recipe {' '.join(arguments)} failed.")
    return None


def exported_lines(paths: Paths, form: str, precision: str) -> Iterator[str]:
    """Export the model, and yield a line of the table for each choice of weights."""
    if refused := recipe("export", "--to", form, "--dtype", precision):
        yield f"| {form} {precision} | refused: {refused} | | | | |"
        return
    record = read_json(paths.analysis.parent / "export" / f"{form}-{precision}.json")
    for weights, parity in record["parities"].items():
        rows = parity["rows"]
        kept = "" if weights == record["kept"] else ", not kept"
        into = f" into the {weights} weights{kept}" if len(record["parities"]) > 1 else ""
        yield (
            f"| {form} {precision}{into} | {parity['prompts_with_equal_ids']} of {rows} "
            f"| {parity['largest_logit_difference']:.2g} | {parity['mean_divergence']:.2g} "
            f"| {parity['equal_answers']} of {rows} | {parity['equal_first_tokens']:.1%} |"
        )


def conversations(paths: Paths) -> list[tuple[list[dict[str, Any]], str]]:
    """Return up to 32 prompts as messages, each with the adapter's answer from the evaluation."""
    meta = read_json(paths.prepared / "meta.json")
    answered = read_json_lines(paths.evaluation / "generations.jsonl")
    if meta["chat_template"] is None:
        before, after = texts_around(meta)
        found = [
            ([{"role": "user", "content": row["prompt"].removeprefix(before).removesuffix(after)}], row["adapter"])
            for row in answered if row["prompt"].startswith(before) and row["prompt"].endswith(after)
        ]  # fmt: skip
    else:
        # The evaluation's rows contain rendered prompts. The messages are in the rows of the validation file.
        [file] = [
            file["name"] for file in read_json(paths.raw / "manifest.json")["files"] if file["split"] == "validation"
        ]
        rows = [json.loads(line) for line in (paths.raw / file).read_text().splitlines()]
        references = read_json_lines(paths.prepared / "validation.jsonl")
        if len(rows) != len(references):
            sys.exit("error: some validation rows were dropped, so the messages of the others are unknown.")
        column = meta["columns"].get("messages")
        if column is None:
            sys.exit("error: only rows with messages, or with single prompts, can be sent to a server here.")
        messages = {reference["prompt"]: row[column][:-1] for row, reference in zip(rows, references, strict=True)}
        found = [(messages[row["prompt"]], row["adapter"]) for row in answered]
    return found[:SHOWN_ROWS]


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """Run `recipe serve`, and yield the address when it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "recipe", "serve", "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("ready"):
                break
        else:
            sys.exit(f"{''.join(lines)}\nerror: recipe serve {' '.join(options)} failed.")
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def server_line(name: str, prompts: list[tuple[list[dict[str, Any]], str]], model: str, max_tokens: int) -> str:
    """Start a server, ask it all prompts, and return a line of the table."""
    import openai

    engine = name.split()[0]
    options = [] if engine == "mlflow" else ["--dtype", ENGINES[name]]
    version = [f"models:/{model}@champion"] if engine == "mlflow" else []
    with serving(*version, "--engine", engine, *options) as address:
        client = openai.OpenAI(base_url=address, api_key="none")
        equal = 0
        for messages, wanted in prompts:
            answer = client.chat.completions.create(
                model=model,
                messages=messages,
                max_tokens=max_tokens,
                temperature=0,  # type: ignore[arg-type]
            )
            equal += (answer.choices[0].message.content or "").strip() == wanted.strip()
    precision = "" if engine == "mlflow" else f", {ENGINES[name]}"
    return f"| server: {engine}{precision} | - | - | - | {equal} of {len(prompts)} | - |"


@click.command()
@click.argument("folder", default=".", type=click.Path(exists=True, file_okay=False))
@click.option("--engines", multiple=True, type=click.Choice(list(ENGINES)), help="Servers to ask. The default is all.")
@click.option("--exports/--no-exports", "with_exports", default=True, help="Also export and compare files.")
def main(folder: str, engines: tuple[str, ...], with_exports: bool) -> None:
    """Print the table for the recipe in FOLDER."""
    os.chdir(folder)
    paths, params = context.paths(), context.params()
    click.echo(HEADER)
    if with_exports:
        for form, precision in EXPORTS:
            for line in exported_lines(paths, form, precision):
                click.echo(line)
    prompts = conversations(paths)
    for name in engines or ENGINES:
        click.echo(server_line(name, prompts, params["registry"].name, params["evaluate"].max_new_tokens))


if __name__ == "__main__":
    main()
