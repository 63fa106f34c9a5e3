"""Runs a model that has no weights, and counts what a training step would keep.

The model is built on the meta device, given its adapter, and run on tensors that have a shape and no bytes (torch's
FakeTensor), while every tensor that autograd would keep for the backward pass is counted. So the count follows the
model's own code, of whatever family, and PEFT's.
"""

from collections import Counter
from copy import deepcopy
from typing import Any

from recipe.core.errors import ParamsError


class Untraceable(Exception):
    """A model whose code needs real numbers to run (it branches on them, say), so that nothing is known of it."""


def empty_model(config: Any, dtype: Any, *, wide_attention: bool = False) -> Any:
    """A causal LM of a transformers config on the meta device: shapes, and no memory.

    `wide_attention` is in fp32 whatever the dtype, as a CPU has it (recipe/model/packed_attention.py).
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
    """Whether the model computes nothing beyond its backbone and head; recipe/train/sft.py compares the numbers."""
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
