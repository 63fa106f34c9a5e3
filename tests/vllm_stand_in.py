"""Stands in for `vllm serve`, which needs a GPU: the same options, names and errors, computed with transformers.

Like vLLM, it accepts only certain values of --max-lora-rank, serves the base model under the name of its folder, and
ignores tensors of an adapter whose names match no layer, without a word (vllm#34186).
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

import torch
from aiohttp import web
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

parser = argparse.ArgumentParser(prog="vllm")
parser.add_argument("command", choices=["serve"])
parser.add_argument("model")
parser.add_argument("--host", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--enable-lora", action="store_true")
parser.add_argument("--max-lora-rank", type=int, choices=RANKS, default=16)
parser.add_argument("--lora-modules", type=json.loads)
parser.add_argument("--chat-template")
parser.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"])
parser.add_argument("--max-num-seqs", type=int)
parser.add_argument("--max-model-len", type=int)
parser.add_argument("--generation-config")
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model)
template = Path(options.chat_template).read_text()
ends = GenerationConfig.from_pretrained(options.generation_config).eos_token_id
dtype = getattr(torch, options.dtype)
base = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
tuned = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()

adapter = Path(options.lora_modules["path"])
config = json.loads((adapter / "adapter_config.json").read_text())
if config["r"] > options.max_lora_rank:
    sys.exit(f"ValueError: LoRA rank {config['r']} is greater than max_lora_rank {options.max_lora_rank}.")
tensors = load_file(adapter / "adapter_model.safetensors")
layers = dict(tuned.named_modules())
for name, first in tensors.items():
    layer = layers.get(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
    if ".lora_A." in name and layer is not None:
        second = tensors[name.replace(".lora_A.", ".lora_B.")]
        layer.weight.data += (config["lora_alpha"] / config["r"] * (second.float() @ first.float())).to(dtype)


async def chat(request):
    body = await request.json()
    model = {options.model: base, options.lora_modules["name"]: tuned}.get(body["model"])
    if model is None:
        message = f"The model `{body['model']}` does not exist."
        return web.json_response({"error": {"message": message, "type": "NotFoundError", "code": 404}}, status=404)
    ids = tokenizer.apply_chat_template(
        body["messages"], chat_template=template, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    if options.max_model_len and ids.shape[1] >= options.max_model_len:
        message = f"This model's maximum context length is {options.max_model_len} tokens."
        return web.json_response({"error": {"message": message, "code": 400}}, status=400)
    out = model.generate(ids, max_new_tokens=body.get("max_tokens", 16), do_sample=False, eos_token_id=ends)
    text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    head = {"id": "1", "created": 0, "model": body["model"]}
    if not body.get("stream"):
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({**head, "object": "chat.completion", "choices": [choice]})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for part in [text[: len(text) // 2], text[len(text) // 2 :]]:
        choice = {"index": 0, "delta": {"content": part}, "finish_reason": None}
        chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await asyncio.sleep(0)
    await response.write(b"data: [DONE]\n\n")
    return response


async def health(_):
    return web.Response()


app = web.Application()
app.router.add_get("/health", health)
app.router.add_post("/v1/chat/completions", chat)
web.run_app(app, host=options.host, port=options.port, print=None)
