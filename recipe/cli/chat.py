"""Talks to the trained adapter: what `recipe chat` runs."""

from collections.abc import Callable
from pathlib import Path

from recipe.core.errors import MachineError
from recipe.core.io import read_json
from recipe.core.paths import Paths
from recipe.model.generate import answer_rows
from recipe.model.load import Quantization, load_adapter, load_base
from recipe.tokens.tokenizer import load_tokenizer

MAX_NEW_TOKENS = 256


def open_chat(folder: Path, paths: Paths, *, with_adapter: bool) -> Callable[[str], str]:
    """Load base and adapter once; a function from an instruction (`instruction | input`) to its answer."""
    if with_adapter and not paths.adapter.is_dir():
        raise MachineError(f"there is no adapter at {paths.adapter} yet. Run `dvc repro`, or ask with --base.")
    manifest, meta = read_json(paths.base / "manifest.json"), read_json(paths.prepared / "meta.json")
    tokenizer = load_tokenizer(paths.base / "tokenizer")
    quantization: Quantization = read_json(paths.train_metrics)["quantization"] if with_adapter else "none"
    model = load_base(manifest, folder, len(tokenizer), quantization)
    if with_adapter:
        model = load_adapter(model, paths.adapter, manifest)

    def reply(line: str) -> str:
        instruction, _, given = (part.strip() for part in line.partition(" | "))
        row = {"instruction": instruction, "input": given, "text": line}
        return answer_rows(model, tokenizer, meta, [row], MAX_NEW_TOKENS)[0].strip()

    return reply
