"""What training needs: memory, from a trace of the model that allocates nothing, and floating-point operations.

The model is built without weights, given its adapter, and run on tensors that have a shape and no bytes (torch's
FakeTensor), while every tensor that autograd would keep for the backward pass is counted. So the count follows the
model's own code, of whatever family, and PEFT's.
"""

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from recipe.errors import ParamsError
from recipe.modeling import Dtype, check_target_modules

# Bytes a parameter of a quantised linear layer. nf4: half a byte, an 8-bit scale for each block of 64 and a 32-bit one
# for each 256 of those (Dettmers et al. 2023, arXiv 2305.14314, section 3).
QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
ADAPTER_BYTES = 16  # a parameter in fp32: itself, its gradient, AdamW's two moments
CUDA_CONTEXT_BYTES = 600_000_000  # the driver's and the libraries' own, and what the allocator cannot use


class Untraceable(Exception):
    """A model whose code needs real numbers to run (it branches on them, say), so that nothing is known of it."""


@dataclass(frozen=True)
class Need:
    """Bytes of memory by part, parameters, and operations a token. `peak` is their sum at the worst moment."""

    weights: int
    adapter: int
    activations: int
    logits: int
    other: int
    parameters: int
    trainable: int
    flops_per_token: float

    @property
    def peak(self) -> int:
        """Bytes at the worst moment: the loss, or a layer's backward pass where that holds more."""
        return self.weights + self.adapter + self.activations + self.logits + self.other


def empty_model(config: Any, dtype: Any, *, wide_attention: bool = False) -> Any:
    """A causal LM of a transformers config on the meta device: shapes, and no memory.

    `wide_attention` is in fp32 whatever the dtype, as a CPU has it (recipe/attention.py).
    Raises ParamsError for a config that is no causal LM's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ParamsError(f"params.yaml: model.id: a {config.model_type} is no causal language model.")
    with torch.device("meta"):  # from_config writes into its config: it gets a copy
        try:
            return AutoModelForCausalLM.from_config(
                deepcopy(config), dtype=dtype, attn_implementation=_attention(wide=wide_attention)
            )
        except KeyError:  # a family that looks its attention up in a list of its own: traced with that
            return AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype)


def count_parameters(config: Any) -> int:
    """The parameters of a causal LM; shared ones count once."""
    import torch

    return sum(weight.numel() for weight in empty_model(config, torch.float32).parameters())


def training_need(
    config: Any, lora: Any, *, quantization: str, activation_checkpointing: bool, micro_batch_size: int,
    max_length: int, trained_fraction: float, cuda: bool, dtype: Dtype = "auto",
) -> Need:  # fmt: skip
    """What one training step needs. `lora` is the section of params.yaml; `trained_fraction` the tokens in the loss.

    Raises ParamsError for target modules that the model does not have, and Untraceable.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from recipe.lora import fuse
    from recipe.loss import chunk_tokens, is_frozen_linear

    mixed = cuda or dtype == "bfloat16"
    weight_dtype = torch.bfloat16 if mixed else torch.float32
    model = empty_model(config, weight_dtype, wide_attention=mixed and not cuda)
    weights, largest = _weight_bytes(model, quantization, weight_dtype)
    parameters = sum(weight.numel() for weight in model.parameters())
    lookup, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embeddings = 0 if head is lookup else lookup.numel()  # looking a row up is no multiplication; a tied head is one
    check_target_modules(model, lora.target_modules)
    if quantization != "none":  # prepare_model_for_kbit_training puts what is not quantised in fp32
        quantised = {id(one.weight) for one in _quantised_layers(model)}
        for weight in model.parameters():
            if id(weight) not in quantised:
                weight.data = weight.data.float()
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    with torch.device("meta"):
        adapter = LoraConfig(
            r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, adapter).train()
    fuse(model)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    tokens, size = micro_batch_size * max_length, weight_dtype.itemsize
    saved, head_is_all = trace(model, micro_batch_size, max_length, mixed=mixed)
    vocab_size, hidden_size = config.get_text_config().vocab_size, config.get_text_config().hidden_size
    projected = int(tokens * trained_fraction) if head_is_all else tokens  # else TRL's loss takes every position
    if head_is_all and is_frozen_linear(model.get_base_model().get_output_embeddings()):
        # Some tokens at a time: their logits, on CUDA a copy in fp32, and the log-softmax; the gradient of all of them.
        at_once = min(projected, chunk_tokens(vocab_size, "cuda" if cuda else "cpu"))
        logits = at_once * vocab_size * (size + 8 if mixed else 8) + 2 * projected * hidden_size * size
    else:  # logits in the model's dtype and in fp32, their log-softmax, both gradients
        logits = projected * vocab_size * (2 * size + 8 if mixed else 12)
    # The loss's moment, or the backward pass of a layer: its activations' gradients, about half as large at any time.
    layers = config.get_text_config().num_hidden_layers
    layer = saved // layers
    if activation_checkpointing:
        # Every layer's input stays; a layer's own activations are there one layer at a time, after the logits.
        # A quantised model's norms are in fp32, and so is what its layers hand on.
        inputs = layers * tokens * hidden_size * (4 if quantization != "none" else size)
        saved = inputs + max(layer + layer // 2 - logits, 0)
    else:
        saved += max(layer // 2 - logits, 0)
    # A quantised layer is expanded while it computes.
    other = (CUDA_CONTEXT_BYTES if cuda else 0) + (largest * 2 if quantization != "none" else 0)
    if quantization != "none" and mixed:
        other += head.numel() * 2  # the fp32 head's copy in bf16 under autocast
    passes = 6 if activation_checkpointing else 4  # 2 N a token forward, 2 N backward, 2 N to compute it again
    return Need(
        weights=weights, adapter=trainable * ADAPTER_BYTES, activations=saved, logits=logits, other=other,
        parameters=parameters, trainable=trainable,
        flops_per_token=float(passes * (parameters - embeddings) + 6 * trainable),
    )  # fmt: skip


def _weight_bytes(model: Any, quantization: str, dtype: Any) -> tuple[int, int]:
    """Bytes of the frozen weights, and the parameters of the largest quantised layer."""
    if quantization == "none":
        return sum(weight.numel() for weight in model.parameters()) * dtype.itemsize, 0
    layers = _quantised_layers(model)
    small = sum(one.weight.numel() for one in layers)
    # prepare_model_for_kbit_training puts what is not quantised in fp32.
    rest = (sum(weight.numel() for weight in model.parameters()) - small) * 4
    return int(small * QUANTIZED_BYTES[quantization]) + rest, max(one.weight.numel() for one in layers)


def _quantised_layers(model: Any) -> list[Any]:
    """The linear layers that bitsandbytes takes: all but the head."""
    head = model.get_output_embeddings()
    return [one for one in model.modules() if type(one).__name__ in {"Linear", "Conv1D"} and one is not head]


def _without_bytes(model: Any) -> Any:
    """Give a model on the meta device weights that have a shape and no bytes; the mode in which it then runs."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    mode, cpu = FakeTensorMode(), torch.device("cpu")
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = FakeTensor(mode, weight.data.to("meta"), cpu)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = FakeTensor(mode, buffer.to("meta"), cpu)
    return mode


def _saved_bytes(model: Any, ids: Any, positions: Any) -> int:
    """Bytes that autograd keeps of one forward pass through a PEFT model, its head left out."""
    import torch

    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = tensor  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_base_model().base_model(ids, position_ids=positions, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _head_is_all(model: Any, ids: Any, positions: Any) -> bool:
    """Whether the model computes nothing beyond its backbone and head; recipe/trainer.py compares the numbers."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: Counter[str] = Counter()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.namespace == "aten" and not function.is_view:
                self.calls[str(function)] += 1
            return function(*args, **(kwargs or {}))

    whole, options = model.get_base_model(), {"position_ids": positions, "use_cache": False}
    with torch.no_grad():
        with Count() as all_of_it:
            whole(ids, **options)
        with Count() as known:
            whole.get_output_embeddings()(whole.base_model(ids, **options)[0])
    return all_of_it.calls == known.calls


def trace(model: Any, micro_batch_size: int, max_length: int, *, mixed: bool) -> tuple[int, bool]:
    """Bytes that autograd keeps of a PEFT model on the meta device, and whether its logits are its head's output.

    `mixed` is bf16 autocast, as the trainer has it on CUDA. Raises Untraceable.
    """
    import torch

    with _without_bytes(model), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        ids = torch.zeros((micro_batch_size, max_length), dtype=torch.long)
        positions = torch.arange(max_length).expand(micro_batch_size, -1)
        try:
            return _saved_bytes(model, ids, positions), _head_is_all(model, ids[:, :8], positions[:, :8])
        except (RuntimeError, TypeError) as error:
            raise Untraceable(f"{type(model.get_base_model()).__name__}: {error}") from None


def _attention(*, wide: bool) -> str:
    """The name of an attention that keeps for its backward pass what the fused kernels do: q, k, v and the output."""
    import torch
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            made = query.new_empty((*query.shape[:-1], value.shape[-1]))
            ctx.save_for_backward(query, key, value, made)
            return made

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **_: Any) -> tuple[Any, None]:
        if wide:
            made = Attend.apply(query.float(), key.float(), value.float()).to(query.dtype)
        else:
            made = Attend.apply(query, key, value)
        return made.transpose(1, 2), None

    name = "traced_wide" if wide else "traced"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, lambda *_, **__: None)
    return name
