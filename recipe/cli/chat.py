"""Implements `recipe chat`, which uses the trained adapter or the base model to respond to the user's instructions."""

import sys
from collections.abc import Callable
from pathlib import Path

import click

from recipe.core.errors import MachineError
from recipe.core.io import read_json
from recipe.core.paths import Paths
from recipe.model.generate import answer_rows
from recipe.model.load import load_trained
from recipe.model.processor import Quantization

MAX_NEW_TOKENS = 256


def open_chat(folder: Path, paths: Paths, *, with_adapter: bool) -> Callable[[str], str]:
    """Load the base model, with the adapter if `with_adapter` is true, and return a function that replies to a line.

    A line has the form `instruction` or `instruction | input`. Raises MachineError if the adapter or the tokenizer is
    missing.
    """
    if with_adapter and not (paths.adapter / "adapter_config.json").is_file():
        raise MachineError(
            f"{paths.adapter} contains no adapter. Run `dvc repro` to train one, or use --base to chat with the base "
            "model."
        )
    manifest, meta = read_json(paths.base / "manifest.json"), read_json(paths.prepared / "meta.json")
    if not (paths.base / "tokenizer").is_dir():
        raise MachineError(f"{paths.base / 'tokenizer'} is missing. Run `dvc repro`.")
    quantization: Quantization = read_json(paths.train_metrics)["quantization"] if with_adapter else "none"
    adapter = paths.adapter if with_adapter else None
    tokenizer, model = load_trained(manifest, folder, paths.base / "tokenizer", adapter, quantization)

    def reply(line: str) -> str:
        instruction, _, input_text = (part.strip() for part in line.partition(" | "))
        row = {"instruction": instruction, "input": input_text, "text": line, "prompt": line}
        return answer_rows(model, tokenizer, meta, [row], MAX_NEW_TOKENS)[0].strip()

    return reply


def talk(reply: Callable[[str], str]) -> None:
    """Reply to each line of standard input until the input ends or, in a terminal, until an empty line."""
    interactive = sys.stdin.isatty()
    if interactive:
        click.echo("Enter one `instruction` or `instruction | input` per line. An empty line or Ctrl-D ends the chat.")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if line:
            click.echo(reply(line))
        elif interactive:
            break
