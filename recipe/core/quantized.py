"""Determines from a model's config.json whether the model's stored weights are already quantized."""

from typing import Any, Literal

from recipe.core.errors import DataError, ParamsError

Quantized = Literal["none", "int8", "nf4"]


def stored_quantization(config: dict[str, Any], name: str) -> Quantized:
    """Return the quantization of a model's stored weights, according to its config.

    Weights that bitsandbytes quantized to int8 or nf4 can be used for training. Raises DataError for any other method
    (GPTQ, AWQ, FP8, fp4 and so on).
    """
    stored = config.get("quantization_config")
    if not stored:
        return "none"
    if not isinstance(stored, dict):
        raise DataError(f"config.json of {name}: quantization_config is {stored!r}, but it must be an object.")
    method = stored.get("quant_method", "an unknown method")
    if method == "bitsandbytes" and stored.get("load_in_8bit"):
        return "int8"
    if method == "bitsandbytes" and stored.get("load_in_4bit"):
        if stored.get("bnb_4bit_quant_type", "fp4") == "nf4":
            return "nf4"
        method = f"bitsandbytes {stored.get('bnb_4bit_quant_type', 'fp4')}"
    raise DataError(
        f"the weights of {name} are quantized already ({method}), which is not supported. Choose the original "
        "model, and set train.quantization to nf4 or int8."
    )


def check_quantization(config: dict[str, Any], name: str, quantization: str) -> None:
    """Raise ParamsError if the stored weights are already quantized, but not as `train.quantization` specifies."""
    stored = stored_quantization(config, name)
    if stored not in ("none", quantization):
        raise ParamsError(
            f"params.yaml: train.quantization is {quantization}, but the weights of {name} are already quantized to "
            f"{stored}. Set train.quantization to {stored}, or choose the original model."
        )
