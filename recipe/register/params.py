"""The `registry` section of params.yaml."""

from typing import Literal

from pydantic import Field

from recipe.core.config import Section


class RegistryParams(Section):
    """Settings for the registry: where the adapter is registered, and when it becomes the champion."""

    name: str = Field(min_length=1, pattern=r"^[^/:.%\"']+$", description="name of the registered model")
    experiment: str = Field(min_length=1, description="name of the MLflow experiment")
    promote: Literal["if_better", "always", "never"]
    general_margin: float = Field(
        ge=0, description="acceptable loss increase (nats per token) and exact match decrease (share) on general rows"
    )
