"""Talks to the trained adapter: what `recipe chat` runs."""

from collections.abc import Callable
from pathlib import Path

from recipe.errors import MachineError
from recipe.files import read_json
from recipe.modeling import Quantization, answer, load_adapter, load_base
from recipe.pipeline import Paths
from recipe.prompts import render_prompt
from recipe.tokenization import encode, leading_ids, load_tokenizer

MAX_NEW_TOKENS = 256


def open_chat(folder: Path, paths: Paths, *, with_adapter: bool) -> Callable[[str], str]:
    """Load base and adapter once; a function from an instruction (`instruction | input`) to its answer."""
    if with_adapter and not paths.adapter.is_dir():
        raise MachineError(f"there is no adapter at {paths.adapter} yet. Run `dvc repro`, or ask with --base.")
    manifest, meta = read_json(paths.base / "manifest.json"), read_json(paths.prepared / "meta.json")
    tokenizer = load_tokenizer(paths.base / "tokenizer")
    quantization: Quantization = read_json(paths.training)["quantization"] if with_adapter else "none"
    model = load_base(manifest, folder, len(tokenizer), quantization)
    if with_adapter:
        model = load_adapter(model, paths.adapter, manifest)

    def reply(line: str) -> str:
        instruction, _, given = (part.strip() for part in line.partition(" | "))
        text = (
            line
            if meta["template"] == "text"
            else render_prompt("alpaca", {"instruction": instruction, "input": given})
        )
        ids = leading_ids(tokenizer) + encode(tokenizer, [text])[0]
        return tokenizer.decode(answer(model, tokenizer, [ids], MAX_NEW_TOKENS)[0], skip_special_tokens=True).strip()

    return reply
