"""Tiny trained models for the tests of exports, and the kinds of damage that a comparison must find."""

import json
import shutil

import torch
from conftest import paths_in
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config, tiny_repository
from transformers import AutoModelForCausalLM

from recipe.export.merged import reference_of, write_merged
from recipe.export.trained import Trained
from recipe.fetch.params import ModelParams
from recipe.fetch.stage import fetch_model
from recipe.model.load import load_base, save_adapter
from recipe.model.targets import peft_config
from recipe.text.builtin_chat_templates import TEMPLATES
from recipe.tokens.tokenizer import load_tokenizer
from recipe.train.params import LoraParams

CASES = {  # the model's family, and changes of its config and of `lora`
    "Llama": ("Llama", {}, {}),
    "Qwen3-tied": ("Qwen3-tied", {}, {}),
    "GPT2": ("GPT2", {}, {}),
    "GPTNeoX": ("GPTNeoX", {}, {}),
    "Phi3": ("Phi3", {}, {"target_modules": ("qkv_proj", "down_proj")}),
    "Mixtral": ("Mixtral", {}, {}),
    "experts": ("Qwen3Moe", {}, {"target_modules": ("q_proj", "gate_up_proj", "down_proj"), "dropout": 0.0}),
    "grown": ("Llama", {"vocab_size": 317}, {}),
    "grown in bfloat16": ("Llama-tied", {"vocab_size": 317, "dtype": "bfloat16"}, {}),
    "grown-tied": ("Llama-tied", {"vocab_size": 317}, {}),
}


def made(folder, family, changes=None, lora=None, *, quantization="none", tokens=(), shard=None, **meta):
    """A Trained: a tiny random base model, and an adapter with random values."""
    base = folder / "source"
    if family:
        tiny_repository(base, tiny_config(family, **(changes or {})), TEMPLATES["chatml"])
    if shard:
        model = AutoModelForCausalLM.from_pretrained(base)
        (base / "model.safetensors").unlink()
        model.save_pretrained(base, max_shard_size=shard)
    paths = paths_in(folder, base=folder / "base", folder=folder)
    fetch_model(ModelParams(source=str(base), id="tiny", revision=None, trust_remote_code=False), paths)
    manifest = {**json.loads((paths.base / "manifest.json").read_text()), "path": str(base)}
    tokenizer = load_tokenizer(paths.base / "tokenizer")
    model = load_base(manifest, folder, len(tokenizer), quantization)
    params = LoraParams(
        **{"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": "all-linear", "untrained_tokens": "train",
           **(lora or {})}
    )  # fmt: skip
    model = get_peft_model(model, peft_config(params, model, tokens))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "trainable_tokens_delta" in name:
                weight.normal_(std=0.3)
    save_adapter(model, folder / "adapter", manifest)
    facts = {"template": "chat", "chat_template": TEMPLATES["chatml"], "columns": {"messages": "messages"}}
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    rows = [
        {"prompt": f"<|im_start|>user\nwhat is {n} ?<|im_end|>\n<|im_start|>assistant\n", "completion": f"it is {n} ."}
        for n in range(40)
    ]
    return Trained(
        folder=folder, manifest=manifest, adapter=folder / "adapter", tokenizer=paths.base / "tokenizer", rows=rows,
        meta={**facts, "pad_token_id": tokenizer.pad_token_id, "end_token_ids": ends, **meta},
        metrics={"quantization": quantization},
    )  # fmt: skip


def damaged(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def ignore_adapter(folder, trained):
    for path in trained.base_files():
        if path.suffix == ".safetensors":
            shutil.copy(path, folder / path.name)


def scale_twice(folder, trained):
    """As if alpha / r were applied twice."""
    base = load_file(next(path for path in trained.base_files() if path.suffix == ".safetensors"))
    damaged(folder, lambda weights: weights.update({n: 2 * w - base[n] for n, w in weights.items() if n in base}))


def swap_two_tensors(folder, trained):
    first, second = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
    damaged(folder, lambda weights: weights.update({first: weights[second], second: weights[first]}))


def rename_a_tensor(folder, trained):
    """transformers would then fill the missing tensor with random values."""
    damaged(folder, lambda weights: weights.update(other=weights.pop("model.layers.1.mlp.up_proj.weight")))


def shift_tokens(folder, trained):
    text = (folder / "tokenizer.json").read_text()
    tokens = json.loads(text)
    vocab = tokens["model"]["vocab"]
    names = sorted(vocab, key=vocab.get)[3:]
    for name, after in zip(names, names[1:] + names[:1], strict=True):
        vocab[name] = tokens["model"]["vocab"].get(after, vocab[name])
    ids = sorted(vocab[name] for name in names)
    tokens["model"]["vocab"] = {**vocab, **dict(zip(names, ids[1:] + ids[:1], strict=True))}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))


DAMAGE = [ignore_adapter, scale_twice, swap_two_tensors, rename_a_tensor, shift_tokens]


def merged_example(folder):
    """A trained model, its merged export, and what the comparison needs."""
    trained = made(folder, "Llama", {"initializer_range": 0.3})  # confident answers, as those of a trained model
    for name in ("scratch", "merged"):
        (folder / name).mkdir()
    write_merged(trained, folder / "merged", "float32", "original")
    return trained, folder / "merged", reference_of(trained, folder / "scratch", print)
