"""The sections `lora` and `train` of params.yaml."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from recipe.core.config import Section
from recipe.core.errors import ParamsError
from recipe.model.load import Quantization
from recipe.model.processor import Dtype


class LoraParams(Section):
    """The adapter: W + alpha / r * B A on every target module (Hu et al. 2021, arXiv 2106.09685)."""

    r: int = Field(ge=1, description="rank of the update")
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)]


class TrainParams(Section):
    """How the adapter is trained."""

    RENAMED: ClassVar = {"batch_size": "global_batch_size"}
    num_epochs: float = Field(gt=0)
    global_batch_size: int = Field(ge=1, description="packed sequences an optimiser step")
    micro_batch_tokens: int = Field(ge=8, description="tokens at once, as whole sequences")
    learning_rate: float = Field(gt=0)
    lr_schedule: Literal["linear", "cosine", "constant"]
    warmup_ratio: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    dtype: Dtype
    quantization: Quantization
    activation_checkpointing: Literal["auto", "on", "off"]
    seed: int = Field(ge=0, lt=2**32)
    num_threads: int = Field(ge=1)
    logging_steps: int = Field(ge=1)
    save_steps: int = Field(ge=1)

    @model_validator(mode="after")
    def _steps_fit(self) -> "TrainParams":
        if self.save_steps % self.logging_steps:
            # A point of the curve is a mean since the last one; a checkpoint between two points would lose a part.
            raise ValueError(f"save_steps {self.save_steps} is no multiple of logging_steps {self.logging_steps}")
        return self

    def micro_batch_size(self, max_length: int) -> int:
        """Sequences at once: the largest part of a batch with at most micro_batch_tokens tokens."""
        parts = [size for size in range(1, self.global_batch_size + 1) if self.global_batch_size % size == 0]
        fitting = [size for size in parts if size * max_length <= self.micro_batch_tokens]
        if not fitting:
            raise ParamsError(
                f"params.yaml: train.micro_batch_tokens is {self.micro_batch_tokens}, less than one sequence of "
                f"sequence.max_length, {max_length} tokens. Raise it, or lower that."
            )
        return fitting[-1]
