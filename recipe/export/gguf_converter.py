"""Converts a model in transformers' layout to GGUF, with llama.cpp's converter, and makes files that test a tokenizer.

    python gguf_converter.py '{"model": "exports/merged", "out": "model.gguf", "type": "q8_0", ...}'
    python gguf_converter.py '{"model": "exports/merged", "probes": {"gpt-2": "a.gguf", "qwen2": "b.gguf"}, ...}'

This program runs in a process of its own, with llama.cpp's converter on the search path. Options:

- `pre`: llama.cpp's name for the way in which a tokenizer splits text before it merges bytes (`tokenizer.ggml.pre`).
  The converter knows it for published tokenizers only. null: what the converter finds.
- `adds_bos`: false if prompts contain the begin token already. null: what the tokenizer says.
- `end_ids`: the tokens that end an answer.
- `name`, `facts`: the model's name, and further texts for the file's metadata.

The last line on the standard output is JSON. `pre` is what the converter finds, or null if it does not know the
tokenizer; `needs_pre` is false for tokenizers that are not split in this way, such as those of SentencePiece.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 32  # of the model in a probe, which only contains the tokenizer


def main(options: dict[str, Any]) -> dict[str, Any]:
    """Convert the model, or write the probes."""
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    from conversion.base import TextModel

    found: dict[str, Any] = {"pre": None, "needs_pre": False}
    known = TextModel.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        found["needs_pre"] = True
        try:
            found["pre"] = known(self, tokenizer)
        except NotImplementedError:  # raised for tokenizers that the converter does not know
            found["pre"] = None
        return options.get("pre") or found["pre"] or "default"

    TextModel.get_vocab_base_pre = get_vocab_base_pre
    folder = Path(options["model"])
    probes = options.get("probes")
    with torch.inference_mode():
        hparams = with_old_names(ModelBase.load_hparams(folder, False))
        kind = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        model = kind(
            folder, file_type(options.get("type", "f32")), Path(options["out"]), model_name=options["name"],
            hparams=hparams,
        )  # fmt: skip
        if probes is None:
            model.prepare_tensors()
        model.prepare_metadata(vocab_only=probes is not None)
        complete(model.gguf_writer, options)
        if probes is None:
            model.gguf_writer.write_header_to_file(path=model.fname_out)
            model.gguf_writer.write_kv_data_to_file()
            model.gguf_writer.write_tensors_to_file(progress=False)
        else:
            for pre, path in probes.items():
                write_probe(model.gguf_writer.kv_data[0], path, pre or None)
        model.gguf_writer.close()
    return found


def with_old_names(hparams: dict[str, Any]) -> dict[str, Any]:
    """Add settings under the names that older configs have, for which the converter looks."""
    old = {
        "n_ctx": hparams.get("n_positions"),
        "rotary_pct": (hparams.get("rope_parameters") or {}).get("partial_rotary_factor"),
    }
    return {**{name: value for name, value in old.items() if value is not None}, **hparams}


def file_type(name: str) -> Any:
    """Return gguf's constant for a type of weights."""
    import gguf

    return {
        "f32": gguf.LlamaFileType.ALL_F32,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }[name]


def complete(writer: Any, options: dict[str, Any]) -> None:
    """Write what the converter can't know, over what it guessed."""

    def value(key: str) -> Any:
        return next((pairs[key].value for pairs in writer.kv_data if key in pairs), None)

    if options.get("adds_bos") is False:
        for key in ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"):
            writer.remove_key(key)
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(False)
    ends = [token for token in options["end_ids"] if token != value("tokenizer.ggml.eos_token_id")]
    if ends and value("tokenizer.ggml.eot_token_id") not in ends:
        writer.remove_key("tokenizer.ggml.eot_token_id")
        writer.add_eot_token_id(ends[0])
    for name, text in sorted(options.get("facts", {}).items()):
        writer.add_string(f"recipe.{name}", text)


def write_probe(pairs: dict[str, Any], path: str, pre: str | None) -> None:
    """Write a model of one layer with zeros for weights, and with the tokenizer in `pairs` of names and values."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-6)
    for name, pair in pairs.items():
        if name.startswith("tokenizer."):
            writer.add_key_value(name, pair.value, pair.type, pair.sub_type)
    if pre:
        writer.remove_key("tokenizer.ggml.pre")
        writer.add_tokenizer_pre(pre)
    num_tokens = len(pairs["tokenizer.ggml.tokens"].value)
    square, vector = np.zeros((WIDTH, WIDTH), np.float32), np.ones(WIDTH, np.float32)
    writer.add_tensor("token_embd.weight", np.zeros((num_tokens, WIDTH), np.float32))
    writer.add_tensor("output_norm.weight", vector)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", square)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    report = main(json.loads(sys.argv[1]))
    sys.stdout.write("\n" + json.dumps(report) + "\n")
