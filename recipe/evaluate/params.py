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

    def memory_advice(self) -> str:
        """Return a sentence that says which keys to change if the evaluation runs out of memory."""
        return (
            f"Lower evaluate.batch_tokens (now {self.batch_tokens}) or evaluate.max_new_tokens (now "
            f"{self.max_new_tokens}), or set train.quantization: nf4."
        )
