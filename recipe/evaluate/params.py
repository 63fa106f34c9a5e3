"""The `evaluate` section of params.yaml."""

from typing import ClassVar

from pydantic import Field

from recipe.core.config import Section


class EvaluateParams(Section):
    """Settings of the evaluation: the number and length of the answers, the batch size, and the tasks."""

    RENAMED: ClassVar = {"num_prompts": "max_generations"}
    max_generations: int = Field(ge=0, description="maximum number of validation rows for which to generate answers")
    max_new_tokens: int = Field(ge=1)
    batch_tokens: int = Field(ge=1, description="maximum number of tokens per batch")
    tasks: list[str] = Field(description="lm-evaluation-harness tasks, as names or YAML files")
