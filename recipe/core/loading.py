"""Describes how a model's weights differ from the tensors that its architecture expects.

    mismatches(info)    # ["model.layers.0.mlp.down_proj.weight is missing", ...]; empty if the weights fit

`info` is the loading information that `from_pretrained(..., output_loading_info=True)` returns. This information
already accounts for transformers' conversions, tied weights and the keys that a model's class ignores.
"""

from collections.abc import Collection, Mapping
from typing import Any

SHOWN_TENSORS = 5


def mismatches(info: Mapping[str, Collection[Any]]) -> list[str]:
    """Return descriptions of the tensors that are missing, unexpected or of the wrong shape, sorted by name."""
    shapes = {
        name: f"{name} has the shape {tuple(actual)}, not {tuple(expected)}"
        for name, actual, expected in info["mismatched_keys"]
    }
    missing = {name: f"{name} is missing" for name in info["missing_keys"]}
    extra = {name: f"{name} is not part of the model" for name in info["unexpected_keys"]}
    found = {**extra, **missing, **shapes}
    return [found[name] for name in sorted(found)] + [str(message) for message in info["error_msgs"]]


def describe_mismatches(found: list[str]) -> str:
    """Return a single line with the first SHOWN_TENSORS differences and the number of remaining differences."""
    rest = len(found) - SHOWN_TENSORS
    return "; ".join(found[:SHOWN_TENSORS]) + (f"; and {rest:,} more" if rest > 0 else "")
