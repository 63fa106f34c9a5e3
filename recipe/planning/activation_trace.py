"""Runs a model without weights and counts the bytes that a training step saves for the backward pass.

The model is built on the meta device, gets an adapter, and runs on tensors without data (torch's FakeTensor). Every
tensor that autograd would save for the backward pass is counted. The count therefore reflects the actual PEFT
and model code, for any model family.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from recipe.core.errors import ParamsError


class Untraceable(Exception):
    """The model can't be traced, typically because its code needs real values, for example to branch on them."""


def empty_model(config: Any, dtype: Any, *, wide_attention: bool = False) -> Any:
    """Build the causal LM for a transformers config on the meta device, which allocates no memory.

    If `wide_attention` is true, attention is computed in fp32 regardless of `dtype`, as on a CPU
    (recipe/model/packed_attention.py). Raises ParamsError if the config does not describe a causal LM.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ParamsError(
            f"params.yaml: model.id: a {config.model_type} model is not a causal language model. Choose a causal model."
        )
    with torch.device("meta"):  # from_config modifies the config, so pass a copy
        try:
            return AutoModelForCausalLM.from_config(
                deepcopy(config), dtype=dtype, attn_implementation=_attention(wide=wide_attention)
            )
        except KeyError:  # this model family has its own table of attention functions, so trace its default attention
            return AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype)


def _use_fake_weights(model: Any) -> Any:
    """Replace the weights and buffers of a model on the meta device with FakeTensors.

    Return the FakeTensorMode in which the model must run.
    """
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
    """Return the number of bytes that autograd saves in one forward pass through a PEFT model, excluding the head.

    The model's weights are not counted.
    """
    import torch

    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    saved: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = tensor  # keep a reference, so that no new storage reuses this address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_base_model().base_model(ids, position_ids=positions, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def head_is_the_only_operation(model: Any, ids: Any, positions: Any) -> bool:
    """Return whether the model runs only the operations of its backbone and its head.

    recipe/train/sft.py performs the same check by comparing logits.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class OperationCounter(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: Counter[str] = Counter()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.namespace == "aten" and not function.is_view:
                self.calls[str(function)] += 1
            return function(*args, **(kwargs or {}))

    base, options = model.get_base_model(), {"position_ids": positions, "use_cache": False}
    with torch.no_grad():
        with OperationCounter() as model_operations:
            base(ids, **options)
        with OperationCounter() as backbone_and_head:
            base.get_output_embeddings()(base.base_model(ids, **options)[0])
    return model_operations.calls == backbone_and_head.calls


def trace(model: Any, micro_batch_size: int, max_length: int, *, mixed: bool) -> tuple[int, bool]:
    """Trace a forward pass of a PEFT model on the meta device.

    Return the number of bytes that autograd saves, and whether the logits are the unmodified output of the head. If
    `mixed` is true, the model runs under bf16 autocast, as in bf16 training. Raises Untraceable if the model's code
    needs real values.
    """
    import torch

    with (
        _use_fake_weights(model), _traceable_experts(), torch.autocast("cpu", torch.bfloat16, enabled=mixed)
    ):  # fmt: skip
        ids = torch.zeros((micro_batch_size, max_length), dtype=torch.long)
        positions = torch.arange(max_length).expand(micro_batch_size, -1)
        try:
            saved = _saved_bytes(model, ids, positions)
            return saved, head_is_the_only_operation(model, ids[:, :8], positions[:, :8])
        except (RuntimeError, TypeError) as error:
            raise Untraceable(f"{type(model.get_base_model()).__name__}: {error}") from None


@contextmanager
def _traceable_experts() -> Iterator[None]:
    """Use transformers' own operation for experts, which saves the same tensors as torch's grouped_mm.

    In torch 2.13, grouped_mm accepts only bf16 for tensors without data.
    """
    from transformers.integrations import moe

    before = moe._can_use_grouped_mm
    moe._can_use_grouped_mm = lambda *_, **__: False
    try:
        yield
    finally:
        moe._can_use_grouped_mm = before


def _attention(*, wide: bool) -> str:
    """Register an attention function that saves the same tensors as fused kernels: q, k, v and the output.

    Return the name under which the function is registered. The function computes in fp32 if `wide` is true.
    """
    import torch
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            output = query.new_empty((*query.shape[:-1], value.shape[-1]))
            ctx.save_for_backward(query, key, value, output)
            return output

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **_: Any) -> tuple[Any, None]:
        if wide:
            output = Attend.apply(query.float(), key.float(), value.float()).to(query.dtype)
        else:
            output = Attend.apply(query, key, value)
        return output.transpose(1, 2), None

    name = "traced_wide" if wide else "traced"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, lambda *_, **__: None)
    return name
