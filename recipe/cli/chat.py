"""Implements `recipe chat`: loads the adapter of this recipe folder or a registered version, and starts the chat."""

import sys
import tempfile
from pathlib import Path

import click

from recipe.chat.model import ChatModel
from recipe.chat.screen import Chat, talk
from recipe.cli import context
from recipe.cli.context import HERE
from recipe.cli.trained import registered
from recipe.core.adapter import base_name
from recipe.core.errors import MachineError, ParamsError
from recipe.core.io import read_json
from recipe.model.load import load_trained
from recipe.model.processor import Quantization


def start(version: str | None, system: str | None, max_new_tokens: int, *, base: bool, compare: bool) -> None:
    """Chat with the adapter, with the base model alone (`base`), or with both side by side (`compare`).

    Raises MachineError if the adapter or the tokenizer is missing, and ParamsError if options exclude each other.
    """
    if base and compare:
        raise ParamsError("--base and --compare exclude each other. --compare shows the base model beside the adapter.")
    model, name = _load_registered(version) if version else _load_here(with_adapter=not base)
    variants = [True, False] if compare else [base]
    chat = Chat(model, variants, system, max_new_tokens)
    if sys.stdin.isatty():
        form = "Enter a message." if model.remembers else "Enter one `instruction` or `instruction | input`."
        click.echo(f"{name}. {form} /help lists the commands, Ctrl-D ends the chat.")
    talk(chat)


def _load_here(*, with_adapter: bool) -> tuple[ChatModel, str]:
    paths = context.paths()
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
    loaded = load_trained(manifest, HERE, paths.base / "tokenizer", adapter, quantization)
    return ChatModel(*loaded, meta), f"{paths.adapter} on {base_name(manifest)}" if adapter else base_name(manifest)


def _load_registered(version: str) -> tuple[ChatModel, str]:
    with tempfile.TemporaryDirectory() as place:
        trained = registered(version, Path(place), with_rows=False)[0]
        loaded = load_trained(
            trained.manifest, trained.folder, trained.tokenizer, trained.adapter, trained.quantization
        )
    return ChatModel(*loaded, trained.meta), f"{version} on {base_name(trained.manifest)}"
