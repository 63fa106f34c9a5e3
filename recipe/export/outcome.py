"""What an export leaves: a folder with a marker file, and a comparison with the trained adapter."""

from collections.abc import Callable
from dataclasses import dataclass

from recipe.core.errors import TrainingError
from recipe.export.limits import Limits, Parity

Say = Callable[[str], None]
MARKER = "export.json"  # says what an exported model was made from; only folders with it are replaced


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
