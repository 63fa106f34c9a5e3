"""Selects the layers that get an adapter, and creates PEFT's configuration for them.

    peft_config(lora, model)        # a LoraConfig
    describe_targets(lora, model)   # what all-linear selects in a mixture of experts, for `recipe plan`

In a mixture of experts, transformers 5 does not store the experts as linear layers. Instead, a single tensor contains
the same weight for all experts in a layer. `all-linear` therefore selects only the linear layers outside the experts.
The experts can be named as targets, but PEFT 0.21 does not support dropout for them. The router decides which experts
process a token. It is never trained, because even a small change can make it choose different experts.
"""

import re
from collections.abc import Sequence
from typing import Any

from recipe.core.errors import ParamsError

LINEAR = {"Linear", "Conv1D", "Linear8bitLt", "Linear4bit"}  # GPT-2 uses Conv1D, and bitsandbytes the last two
# The names of routers in transformers' mixture-of-experts models, including the gate of a shared expert.
ROUTER = re.compile(r"(^|_)(gate|router)$")
# The names of the experts' layers in transformers 4. For some model families, PEFT 0.21 replaces these names with the
# names of the experts' tensors, even if the model has a layer with one of these names (_MOE_TARGET_MODULE_MAPPING in
# PEFT's source).
NAMES_OF_EXPERTS = {"w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"}


def linear_layers(model: Any) -> set[str]:
    """Return the last part of the name of each linear layer that can get an adapter.

    The head is left out. In a mixture of experts, so are routers and layers whose names are in NAMES_OF_EXPERTS.
    """
    head = model.get_output_embeddings()
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if type(module).__name__ in LINEAR and module is not head
    }
    if not expert_weights(model):
        return names
    return {name for name in names if not ROUTER.search(name) and name not in NAMES_OF_EXPERTS}


def expert_tensors(model: Any) -> dict[str, Any]:
    """Return {name: tensor} for the experts' weights, or {} if there are no experts.

    Each tensor has shape (experts, rows, columns).
    """
    return {name: weight for name, weight in model.named_parameters() if weight.ndim == 3 and ".experts." in name}


def expert_weights(model: Any) -> set[str]:
    """Return the last part of each expert weight's name."""
    return {name.rsplit(".", 1)[-1] for name in expert_tensors(model)}


def check_target_modules(model: Any, target_modules: str | tuple[str, ...], dropout: float = 0.0) -> None:
    """Raise ParamsError if a target module is neither a linear layer nor an expert weight of the model.

    The head and routers are also invalid. Experts are invalid if `dropout` is not 0.
    """
    if isinstance(target_modules, str):
        return
    layers, experts = linear_layers(model), expert_weights(model)
    of_experts = experts & set(target_modules)
    unknown = [name for name in target_modules if name not in layers | experts]
    if unknown:
        choice = f"Its linear layers are {', '.join(sorted(layers))}"
        choice += f", and its experts {', '.join(sorted(experts))}" if experts else ""
        raise ParamsError(
            f"params.yaml: lora.target_modules lists {', '.join(unknown)}, which {type(model).__name__} does not have "
            f"or which can't be trained (head, router). {choice}; `all-linear` selects all linear layers."
        )
    if of_experts and dropout:
        raise ParamsError(
            f"params.yaml: lora.dropout is {dropout:g}, but it must be 0 to train experts "
            f"({', '.join(sorted(of_experts))}), because PEFT does not support dropout for them."
        )


def peft_config(lora: Any, model: Any, tokens: Sequence[int] = ()) -> Any:
    """Return the adapter's PEFT configuration, based on the `lora` section of params.yaml.

    The rows of `tokens` in the embeddings and in the head are also trained. Raises ParamsError if a target module is
    invalid for the model.
    """
    from peft import LoraConfig

    check_target_modules(model, lora.target_modules, lora.dropout)
    experts = expert_weights(model)
    modules: str | list[str] = lora.target_modules if isinstance(lora.target_modules, str) else [*lora.target_modules]
    parameters = None
    if experts and modules == "all-linear":
        modules = sorted(linear_layers(model))
    elif experts:
        parameters = sorted(experts & set(modules)) or None
        modules = [name for name in modules if name not in experts]
    return LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=modules,
        target_parameters=parameters, task_type="CAUSAL_LM", trainable_token_indices=_rows(model, tokens),
    )  # fmt: skip


def _rows(model: Any, tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """Return PEFT's `trainable_token_indices` for the embeddings and, unless the two are tied, for the head."""
    if not tokens:
        return None
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [embeddings] if head.weight is embeddings.weight else [embeddings, head]
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(layer)].rsplit(".", 1)[-1]: list(tokens) for layer in layers}


def describe_targets(lora: Any, model: Any) -> str | None:
    """For a mixture of experts, return what `all-linear` selects and what it leaves out. Otherwise, return None."""
    experts = expert_weights(model)
    if not experts or lora.target_modules != "all-linear":
        return None
    return (
        f"all-linear selects {', '.join(sorted(linear_layers(model)))}, but not the router and the experts. To train "
        f"the experts, add {', '.join(sorted(experts))} to lora.target_modules, and set lora.dropout to 0"
    )
