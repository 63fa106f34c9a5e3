"""The `lora` and `train` sections of params.yaml."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from recipe.core.config import Section
from recipe.core.errors import ParamsError
from recipe.model.processor import Dtype, Quantization


class LoraParams(Section):
    """Settings of the adapter, which adds (alpha / r) B A to the weight of each target module.

    Source: Hu et al. 2021, arXiv 2106.09685.
    """

    HEADS: ClassVar = {"lm_head", "embed_out"}  # the names of output heads in transformers models
    r: int = Field(ge=1, description="rank of the update")
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)]
    untrained_tokens: Literal["train", "ignore", "error"] = Field(
        description="train, ignore or reject special tokens that the base model never learned"
    )

    @model_validator(mode="after")
    def _head_is_not_a_target(self) -> "LoraParams":
        heads = [name for name in self.target_modules if name.rsplit(".", 1)[-1] in self.HEADS]
        if heads and self.target_modules != "all-linear":
            raise ValueError(
                f"target_modules lists {', '.join(heads)}. The output head is not trained: remove it from the list"
            )
        return self


class TrainParams(Section):
    """Training settings."""

    RENAMED: ClassVar = {"batch_size": "global_batch_size"}
    num_epochs: float = Field(gt=0)
    global_batch_size: int = Field(ge=1, description="packed sequences per optimizer step")
    micro_batch_tokens: int = Field(ge=8, description="maximum number of tokens per micro-batch")
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
    save_minutes: float = Field(gt=0, description="maximum time between two checkpoints")
    keep_checkpoints: bool = Field(description="keep all checkpoints after training, for `recipe replay`")

    def memory_advice(self) -> str:
        """Return a sentence that says which keys to change if training runs out of memory."""
        return (
            f"Lower train.micro_batch_tokens (now {self.micro_batch_tokens}), or set train.activation_checkpointing: "
            f"on (now {self.activation_checkpointing}) or train.quantization: nf4 (now {self.quantization})."
        )

    def num_steps(self, num_sequences: int) -> int:
        """Return the number of optimizer steps for `num_sequences` training sequences."""
        return math.ceil(math.ceil(num_sequences / self.global_batch_size) * self.num_epochs)

    def check_warmup(self, num_sequences: int) -> None:
        """Raise ParamsError if every step is a warm-up step.

        The first warm-up step has a learning rate of 0. If it were the only step, the adapter would not change.
        """
        steps = self.num_steps(num_sequences)
        warmup = math.ceil(steps * self.warmup_ratio)
        if warmup >= steps:
            raise ParamsError(
                f"params.yaml: train.warmup_ratio is {self.warmup_ratio:g}, so the warm-up takes all training steps "
                f"({steps}), and the first has a learning rate of 0. Set train.warmup_ratio to 0, raise "
                "train.num_epochs, or lower train.global_batch_size."
            )

    def micro_batch_size(self, max_length: int) -> int:
        """Return the number of sequences per micro-batch.

        This is the largest divisor of the global batch size for which a micro-batch does not exceed micro_batch_tokens.
        Raises ParamsError if a single sequence exceeds micro_batch_tokens.
        """
        divisors = [size for size in range(1, self.global_batch_size + 1) if self.global_batch_size % size == 0]
        fitting = [size for size in divisors if size * max_length <= self.micro_batch_tokens]
        if not fitting:
            raise ParamsError(
                f"params.yaml: train.micro_batch_tokens is {self.micro_batch_tokens}, but one sequence can have "
                f"{max_length} tokens. Raise train.micro_batch_tokens or lower sequence.max_length."
            )
        return fitting[-1]
