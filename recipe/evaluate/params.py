"""The section `evaluate` of params.yaml."""

from typing import ClassVar

from pydantic import Field

from recipe.core.config import Section


class EvaluateParams(Section):
    """How much is evaluated, and how much at once."""

    RENAMED: ClassVar = {"num_prompts": "max_generations"}
    max_generations: int = Field(ge=0, description="validation rows answered in full")
    max_new_tokens: int = Field(ge=1)
    batch_tokens: int = Field(ge=1, description="tokens at once")
    tasks: list[str] = Field(description="of lm-evaluation-harness: names, or YAML files")
