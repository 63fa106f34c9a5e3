"""The section `registry` of params.yaml."""

from typing import Literal

from pydantic import Field

from recipe.core.config import Section


class RegistryParams(Section):
    """The registered model and its experiment."""

    name: str = Field(min_length=1, pattern=r"^[^/:.%\"']+$", description="of the registered model")
    experiment: str = Field(min_length=1, description="the MLflow experiment")
    promote: Literal["if_better", "always", "never"]
