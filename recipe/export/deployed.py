"""Writes what the servers of vLLM and MLflow are started from: the trained files themselves, and how to check a server.

    export_for_vllm(trained, Path("exports/vllm-bfloat16"), "bfloat16", scratch, say)

Nothing is merged or converted here. vLLM reads the base model and the adapter as they are, and MLflow a registered
version. Whether a server uses the adapter is checked when it starts (recipe/serve/run.py).
"""

import os
import shutil
from pathlib import Path

from recipe.core.adapter import ADAPTER_FILES, CONFIG, WEIGHTS
from recipe.core.errors import ParamsError, TrainingError
from recipe.core.io import new_folder, read_json, write_json
from recipe.core.quantized import stored_quantization
from recipe.export.chat_template import rendered_by_transformers, template_problem
from recipe.export.merged import reference_of, write_tokenizer
from recipe.export.outcome import Say, write_marker
from recipe.export.trained import Trained
from recipe.text.templates import TEMPLATES
from recipe.tokens.tokenizer import load_tokenizer

MAX_RANK = 512  # of vLLM; see recipe/serve/engines.py
MERGED = "Export a merged model, which vLLM can serve without --enable-lora: recipe export --to merged --dtype bfloat16"


def export_for_vllm(trained: Trained, folder: Path, precision: str, scratch: Path, say: Say) -> None:
    """Write the base model with the template of the training to `folder`/base, and the adapter to `folder`/adapter.

    Weights are hard links where the file system allows it, otherwise copies. Raises ParamsError if vLLM could load only
    a part of the adapter.
    """
    files = trained.base_files()
    rank = _check(trained, files)
    reference = reference_of(trained, scratch, say)
    with new_folder(folder) as target:
        base, adapter = target / "base", target / "adapter"
        base.mkdir()
        adapter.mkdir()
        for path in files:
            _link(path, base / path.name)
        write_tokenizer(trained, base)
        meta = trained.meta
        settings = {"do_sample": False, "temperature": 0.0, "eos_token_id": meta["end_token_ids"]}
        write_json(base / "generation_config.json", settings)
        for name in ADAPTER_FILES:
            shutil.copy(trained.adapter / name, adapter / name)
        tokenizer = load_tokenizer(base)
        if problem := template_problem(rendered_by_transformers(tokenizer), tokenizer, meta):
            raise TrainingError(f"the folder for vLLM was not kept: {problem}")
        write_marker(target, trained, "none", precision, reference, lora_rank=rank)


def export_for_mlflow(trained: Trained, folder: Path, version: str, scratch: Path, say: Say) -> None:
    """Write how to start and check MLflow's server for a registered version, such as `models:/my-model/3`."""
    template = TEMPLATES[trained.meta["template"]]
    prompt = {"messages": "messages"} if template.USES_CHAT_TEMPLATE else {"prompt": next(iter(template.INPUTS))}
    reference = reference_of(trained, scratch, say)
    with new_folder(folder) as target:
        write_marker(target, trained, "none", "float32", reference, version=version, invocation=prompt)


def _check(trained: Trained, files: list[Path]) -> int:
    """Return the rank of the adapter. Raises ParamsError if vLLM would leave out a part of the adapter or the base.

    vLLM reads LoRA matrices of linear layers only (vllm/lora/peft_helper.py), and no rows of embeddings.
    """
    from safetensors import safe_open

    with safe_open(trained.adapter / WEIGHTS, "pt") as weights:
        others = [name for name in weights.keys() if ".lora_A." not in name and ".lora_B." not in name]  # noqa: SIM118
    if others:
        raise ParamsError(
            f"--engine vllm: vLLM loads LoRA layers only, but the adapter also contains {others[0]}"
            f"{f' and {len(others) - 1} others' if len(others) > 1 else ''}. {MERGED}"
        )
    config = read_json(files[0].parent / "config.json")
    rows = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size", 0)
    tokenizer = load_tokenizer(trained.tokenizer)
    # A server never pads, so the row of a padding token that prepare added is not needed.
    if added := set(range(rows, len(tokenizer))) - {tokenizer.pad_token_id}:
        raise ParamsError(
            f"--engine vllm: the base model has {rows:,} rows, and none for {len(added):,} tokens of the tokenizer, "
            f"such as {tokenizer.convert_ids_to_tokens(min(added))}. {MERGED}"
        )
    if trained.quantization != "none" and stored_quantization(config, trained.manifest["id"]) == "none":
        raise ParamsError(
            f"--engine vllm: the adapter was trained on a base model in {trained.quantization}, and vLLM would use it "
            f"with the original weights. {MERGED}"
        )
    rank = int(read_json(trained.adapter / CONFIG)["r"])
    if rank > MAX_RANK:
        raise ParamsError(f"--engine vllm: the adapter has the rank {rank}, but vLLM supports {MAX_RANK}. {MERGED}")
    return rank


def _link(source: Path, target: Path) -> None:
    """Link a file of weights, which nobody changes, or copy another file, because a link shares its changes."""
    if source.suffix != ".safetensors":
        shutil.copyfile(source, target)
        return
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
