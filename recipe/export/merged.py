"""Exports a merged model: a folder in transformers' layout, in which the adapter is part of the base model's weights.

    export_merged(trained, Path("exports/merged"), "float32", scratch, say)

If the base model was quantized for training, the adapter was trained on rounded weights. It is therefore merged twice,
into the original and into the rounded weights, and the merge that is nearer to the trained adapter is kept.
"""

import gc
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from recipe.core.io import new_folder, read_json, write_json, write_text
from recipe.core.quantized import stored_quantization
from recipe.export.chat_template import exported_template, rendered_by_transformers, template_problem
from recipe.export.check import make_check
from recipe.export.limits import Parity, differences, exceeded, limits_for
from recipe.export.outcome import Export, Say, refuse_if, write_marker
from recipe.export.parity import Reference, TorchEngine, choose_rows, make_reference, measure
from recipe.export.trained import Trained
from recipe.model.load import load_adapter, load_base, load_trained
from recipe.tokens.tokenizer import load_tokenizer

Dtype = Literal["float32", "bfloat16"]
TEMPLATE_FILE = "chat_template.jinja"
ORIGINAL, ROUNDED = "original", "rounded"  # the weights into which the adapter is merged


def export_merged(
    trained: Trained, folder: Path, dtype: Dtype, scratch: Path, say: Say, tolerance: float | None = None
) -> Export:
    """Write the merged model to `folder`, after comparing it with the adapter.

    `scratch` is an existing folder for temporary files. Raises TrainingError if the merged model differs from the
    adapter by more than the limits, and keeps nothing then. With a `tolerance`, the limit is a mean divergence (nats).
    """
    limits = limits_for(dtype, trained.quantization, tolerance)
    reference = reference_of(trained, scratch, say)
    with new_folder(folder) as target:
        parities, template = best_merge(trained, target, dtype, reference, scratch, say)
        kept = next(iter(parities))
        refuse_if("merged model", [*differences(parities[kept]), *template], exceeded(parities[kept], limits))
        write_marker(target, trained, kept, dtype, reference)
    return Export(kept, parities, limits)


def best_merge(
    trained: Trained, folder: Path, dtype: Dtype, reference: Reference, scratch: Path, say: Say
) -> tuple[dict[str, Parity], list[str]]:
    """Write the merge that is nearest to the adapter to `folder`.

    Returns the comparison for each choice of weights, the nearest first, and the problem with its chat template if
    there is one.
    """
    found: dict[str, tuple[Parity, str | None]] = {}
    for weights in merge_choices(trained):
        candidate = scratch / weights
        candidate.mkdir()
        say(f"merging the adapter into the {weights} weights, and comparing the result with the adapter")
        write_merged(trained, candidate, dtype, weights)
        engine = _loaded(candidate, trained)
        render = rendered_by_transformers(engine.tokenizer)
        found[weights] = measure(engine, reference), template_problem(render, engine.tokenizer, trained.meta)
        del engine, render
        gc.collect()
    nearest = sorted(found, key=lambda weights: found[weights][0].mean_divergence)
    shutil.rmtree(folder)
    shutil.move(scratch / nearest[0], folder)
    for weights in nearest[1:]:
        shutil.rmtree(scratch / weights)
    return {weights: found[weights][0] for weights in nearest}, [*filter(None, [found[nearest[0]][1]])]


def reference_of(trained: Trained, scratch: Path, say: Say) -> Reference:
    """Compute the logits and answers of the trained adapter and of its base model, for the rows of the comparison."""
    say("computing the answers of the adapter and of the base model")
    tokenizer, model = load_trained(
        trained.manifest, trained.folder, trained.tokenizer, trained.adapter, trained.quantization
    )
    engine = TorchEngine(model, tokenizer, trained.meta)
    reference = make_reference(engine, choose_rows(engine, trained.rows), scratch)
    return replace(reference, check=make_check(engine, trained))


def write_merged(trained: Trained, folder: Path, dtype: Dtype, weights: str) -> None:
    """Write the merged weights, the config, the generation settings, and the tokenizer with its chat template."""
    import torch

    files = trained.base_files()
    source = files[0].parent
    stored = stored_quantization(read_json(source / "config.json"), trained.manifest["id"])
    tokenizer = load_tokenizer(trained.tokenizer)
    if stored != "none" or not _merge_files(trained, files, folder, getattr(torch, dtype), weights, len(tokenizer)):
        _merge_loaded(trained, folder, getattr(torch, dtype), len(tokenizer))
    for path in files:
        if path.suffix == ".py":
            shutil.copy(path, folder / path.name)
    write_tokenizer(trained, folder)
    meta = trained.meta
    settings = {"do_sample": False, "eos_token_id": meta["end_token_ids"], "pad_token_id": meta["pad_token_id"]}
    write_json(folder / "generation_config.json", settings)


def write_tokenizer(trained: Trained, folder: Path) -> None:
    """Copy the tokenizer, and give it the chat template of the training."""
    for path in trained.tokenizer.iterdir():
        if path.is_file() and path.name != TEMPLATE_FILE:
            shutil.copy(path, folder / path.name)
    config = read_json(folder / "tokenizer_config.json")
    config.pop("chat_template", None)  # TEMPLATE_FILE would take precedence in some programs only
    write_json(folder / "tokenizer_config.json", config)
    write_text(folder / TEMPLATE_FILE, exported_template(trained.meta))


def merge_choices(trained: Trained) -> list[str]:
    """Return the weights into which the adapter can be merged."""
    if trained.quantization == "none":
        return [ORIGINAL]
    config = read_json(trained.base_files()[0].parent / "config.json")
    is_stored = stored_quantization(config, trained.manifest["id"]) != "none"
    return [ROUNDED] if is_stored else [ORIGINAL, ROUNDED]


def _merge_files(trained: Trained, files: list[Path], folder: Path, dtype: Any, weights: str, num_tokens: int) -> bool:
    """Merge file by file, and return whether that was possible."""
    from recipe.export.merge import Merge, dequantized, quantized_layers, read_updates, skeleton
    from recipe.model.processor import torch_dtype

    source = files[0].parent
    model = skeleton(source, trust_remote_code=trained.manifest["remote_code"])
    updates = read_updates(trained.adapter)
    if updates is None:
        return False
    rounded = dequantized(trained.quantization, torch_dtype("auto")) if weights == ROUNDED else None
    stored = [path for path in files if path.suffix == ".safetensors"]
    merge = Merge(stored, updates, model, num_tokens, dtype, rounded, quantized_layers(model))
    if merge.missing():
        return False
    merge.write(folder)
    config = read_json(source / "config.json")
    config.pop("quantization_config", None)
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    text = next((config[key] for key in ("text_config",) if "vocab_size" in config.get(key, {})), config)
    text["vocab_size"] = max(merge.old_rows, num_tokens)
    write_json(folder / "config.json", config)
    return True


def _merge_loaded(trained: Trained, folder: Path, dtype: Any, num_tokens: int) -> None:
    """Merge with PEFT, which needs memory for the whole model, for layers that files store in another form."""
    model = load_base(trained.manifest, trained.folder, num_tokens, trained.quantization)
    if trained.quantization != "none":
        model = model.dequantize()
        model._weight_conversions = None  # transformers can't revert those of a quantized model when it saves this one
    model = load_adapter(model.float(), trained.adapter, trained.manifest).merge_and_unload()
    model.to(dtype).save_pretrained(folder)


def _loaded(folder: Path, trained: Trained) -> TorchEngine:
    """Load a merged model as its users do."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype="auto", trust_remote_code=trained.manifest["remote_code"]
    )
    return TorchEngine(model.eval(), load_tokenizer(folder), trained.meta)
