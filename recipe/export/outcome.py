"""What an export leaves: a folder with a marker file, and a comparison with the trained adapter."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.core.adapter import base_name
from recipe.core.errors import TrainingError
from recipe.core.io import write_json
from recipe.export.chat_template import accepted, exported_template, rendered_by_transformers
from recipe.export.limits import Limits, Parity
from recipe.export.parity import Reference
from recipe.export.trained import Trained
from recipe.serve.check import MARKER
from recipe.tokens.tokenizer import load_tokenizer

Say = Callable[[str], None]


@dataclass(frozen=True)
class Export:
    """What the report says about an exported model.

    `weights` are those into which the adapter was merged. `parities` contains the comparison for each choice of
    weights. `notes` are for the user.
    """

    weights: str
    parities: dict[str, Parity]
    limits: Limits
    notes: tuple[str, ...] = ()


def refuse_if(what: str, errors: list[str], over_the_limits: list[str]) -> None:
    """Raise TrainingError if there are sentences in one of the lists."""
    if errors or over_the_limits:
        way = "" if errors else " A mean divergence can be accepted with --tolerance."
        raise TrainingError(
            f"the {what} is not the trained one, so it was not kept: {' '.join([*errors, *over_the_limits])}{way}"
        )


def origin(trained: Trained, weights: str) -> dict[str, str]:
    """Say what an exported model was made from."""
    return {"adapter_sha256": trained.adapter_sha256, "base": base_name(trained.manifest), "merged_into": weights}


def write_marker(
    folder: Path, trained: Trained, weights: str, precision: str, reference: Reference, **others: Any
) -> None:
    """Write the file that marks an export.

    `recipe serve` reads from it which messages the model was trained on, and how to check a server.
    """
    render = rendered_by_transformers(load_tokenizer(trained.tokenizer), exported_template(trained.meta))
    facts: dict[str, Any] = {**origin(trained, weights), "precision": precision, **others, "accepts": accepted(render)}
    facts |= {"quantization": trained.quantization, "check": reference.check}
    write_json(folder / MARKER, facts)
