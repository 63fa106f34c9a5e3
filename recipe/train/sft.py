"""Extends TRL's SFTTrainer to compute logits only at loss positions, and to save and check its complete state.

The train stage imports this module inside a function, because torch and trl take seconds to load.
"""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from trl import SFTConfig, SFTTrainer

from recipe.core.errors import TrainingError
from recipe.core.io import read_json, write_json
from recipe.model.chunked_loss import head_loss, logits_are_head_of_backbone
from recipe.model.fused_lora import patch_lora_layers
from recipe.model.packed_attention import CU_SEQLENS, NAME
from recipe.model.processor import torch_dtype
from recipe.train.checkpoints import new_checkpoint
from recipe.train.interrupt import Stop
from recipe.train.ledger import Ledger, worst_rows
from recipe.train.params import TrainParams

NAMED_ROWS = 5  # in an error message
LOG_STATE = "log_state.json"  # the sums since the last log point, which transformers does not save


def sft_config(params: TrainParams, max_length: int, checkpoints: Path) -> Any:
    """Return an SFTConfig for the sequences that prepare wrote. TRL must not tokenize, pack or pad these sequences."""
    cuda, micro_batch_size = torch.cuda.is_available(), params.micro_batch_size(max_length)
    schedule = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}[params.lr_schedule]
    return SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=params.num_epochs,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=params.global_batch_size // micro_batch_size,
        learning_rate=params.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=params.warmup_ratio,  # a value below 1 is a fraction of all steps
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=torch_dtype(params.dtype) is torch.bfloat16,
        use_cpu=not cuda,
        activation_checkpointing=params.activation_checkpointing == "on",
        seed=params.seed,
        data_seed=params.seed,
        logging_steps=params.logging_steps,
        logging_nan_inf_filter=False,  # the filter would replace NaN with an average of earlier losses
        save_steps=params.save_steps,
        save_total_limit=None,  # new_checkpoint deletes old checkpoints
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=cuda,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        remove_unused_columns=False,
        completion_only_loss=False,  # the completion mask is already applied to the labels
    )


class StoppedWithinStep(Exception):
    """A signal has stopped training before all micro-batches of a step were computed."""


class PackedTrainer(SFTTrainer):
    """An SFTTrainer that computes logits at loss positions only.

    On a CPU, TRL 1.16 computes logits at every position and then sets the loss to 0 at positions without a label.
    Skipping these positions therefore does not change the result. On CUDA with Triton, TRL also skips these positions.

    TRL's own loss is used if there are several processes, if the model has an auxiliary loss, or if the model modifies
    the output of its head, for example with a soft cap or a scale. To detect such a modification, `__init__` compares
    logits.

    A checkpoint is complete or absent. It contains everything that the remaining steps depend on, so training can
    resume after any step. After a signal, training stops within one micro-batch.

    `ledger` records every step. `row_names` returns the files and places of the rows with the given numbers, for error
    messages. Only the newest `num_checkpoints` checkpoints are kept, or all checkpoints if it is None.
    """

    def __init__(
        self, *args: Any, stop: Stop, row_names: Callable[[list[int]], list[str]], num_checkpoints: int | None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **kwargs)
        self.ledger, self.row_names, self.num_checkpoints = Ledger(), row_names, num_checkpoints
        self.micro_batch: tuple[torch.Tensor, torch.Tensor | None] | None = None  # the rows and the token losses
        self.stop, self.saved_step, self.checkpoint_folder = stop, -1, Path(self.args.output_dir)
        self.after_step: dict[str, Any] | None = None  # what `_capture` returned after the last complete step
        patch_lora_layers(self.model)
        base = self.model.get_base_model()
        self.backbone, self.head = base.base_model, base.get_output_embeddings()
        self.num_correct, self.num_scored = torch.zeros((), device=self.model.device), 0
        plain_loss = self.accelerator.num_processes == 1 and not self.aux_loss_enabled
        self.loss_positions_only = plain_loss and logits_are_head_of_backbone(self.model, self.backbone, self.head)
        if not self.loss_positions_only:
            print(
                "using TRL's own loss, because the model has an auxiliary loss, its logits are not the plain output of "
                "its head, or there are several processes"
            )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the cross entropy of a micro-batch, divided by the number of loss positions in the optimizer step.

        The cross entropy is summed over the loss positions of the micro-batch.
        """
        cu_seqlens = {name: inputs.pop(name) for name in CU_SEQLENS if name in inputs}
        attention_inputs = cu_seqlens if self.model.config._attn_implementation == NAME else {}
        positions, rows = inputs.pop("loss_positions"), inputs.pop("rows")
        if not self.loss_positions_only:
            self.micro_batch = (rows, None)
            inputs.update(attention_inputs)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        assert not return_outputs
        with self.accelerator.autocast():
            options = {"position_ids": inputs["position_ids"], "use_cache": False, **attention_inputs}
            hidden = self.backbone(inputs["input_ids"], **options)[0]
            labels = inputs["labels"].flatten()[positions + 1]
            loss, token_losses, num_correct = head_loss(hidden.flatten(0, 1)[positions], self.head, labels)
        self.micro_batch = (rows, token_losses)
        self.num_correct += num_correct
        self.num_scored += len(labels)
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Compute a micro-batch, unless a signal has arrived during the same optimizer step.

        In that case, raise StoppedWithinStep, after saving a checkpoint of the state after the previous step.
        """
        if self.stop.signal_number:
            if self.after_step is not None and self.saved_step < self.state.global_step:
                self._restore(self.after_step)
                self._save_checkpoint(self.model, None)
            raise StoppedWithinStep
        loss = super().training_step(*args, **kwargs)
        assert self.micro_batch is not None
        self.ledger.add(loss, *self.micro_batch)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the metrics, and the fraction of recent loss positions at which the model ranked the label first.

        The fraction covers the loss positions since the previous log point.
        """
        if self.loss_positions_only and self.num_scored:
            logs["mean_token_accuracy"] = self.num_correct.item() / self.num_scored
            self.num_correct.zero_()
            self.num_scored = 0
        super().log(logs, start_time)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip the gradients, and return their norm. Raises TrainingError if the norm or the loss is not finite.

        The optimizer has not used the gradients yet, so the adapter and the last checkpoint are still valid.
        """
        norm = super()._clip_grad_norm(model)
        step, loss, rate = self.state.global_step + 1, self.ledger.step_loss(), self._get_learning_rate()
        if not (math.isfinite(norm) and math.isfinite(loss)):
            no_update = "No weight has changed yet, so the cause is the base model or a row."
            advice = "Lower train.learning_rate or raise train.warmup_ratio." if step > 1 else no_update
            raise TrainingError(
                f"the loss is {loss:g} and the gradient norm is {float(norm):g} in step {step}, with a learning rate "
                f"of {rate:g}. {advice}{self._describe_worst_rows()}"
            )
        self.ledger.end_step(step, float(norm), rate)
        return norm

    def _describe_worst_rows(self) -> str:
        """Return a list of the rows of the current step with the highest losses, or an empty string if unknown."""
        records = worst_rows(self.ledger.step_rows(), NAMED_ROWS)
        if not records:
            return ""
        names = self.row_names([row for row, _, _ in records])
        lines = [f"\n  {name}: {loss:g}" for name, (_, loss, _) in zip(names, records, strict=True)]
        return " The rows with the highest loss in this step:" + "".join(lines)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.after_step = self._capture()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoint_folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a complete checkpoint or none. Raises TrainingError if a weight of the adapter is not finite."""
        step = self.state.global_step
        if not all(torch.isfinite(weight).all() for weight in self.model.parameters() if weight.requires_grad):
            raise TrainingError(
                f"the adapter has NaN or infinite weights after step {step}. Lower train.learning_rate."
            )
        with new_checkpoint(Path(self.args.output_dir), step, self.num_checkpoints) as self.checkpoint_folder:
            super()._save_checkpoint(model, trial)
            folder = self.checkpoint_folder / f"checkpoint-{step}"
            write_json(folder / LOG_STATE, self._capture()["log"])
            self.ledger.write(folder)
        self.saved_step = step

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the generators and, from the same checkpoint, the ledger and the sums since the last log point."""
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self._restore({"log": read_json(Path(checkpoint) / LOG_STATE)})
            self.ledger.read(Path(checkpoint))

    def _capture(self) -> dict[str, Any]:
        """Return the generators' states and the sums since the last log point."""
        state = {
            "log": {
                "loss": self._tr_loss.item(),
                "last_logged_step": self._globalstep_last_logged,
                "num_correct": int(self.num_correct.item()),
                "num_scored": self.num_scored,
            },
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        """Restore what `_capture` returned. Generators that `state` does not contain keep their state."""
        log = state["log"]
        self._tr_loss.fill_(log["loss"])
        self._globalstep_last_logged, self.num_scored = log["last_logged_step"], log["num_scored"]
        self.num_correct.fill_(log["num_correct"])
        if "torch" in state:
            random.setstate(state["python"])
            np.random.set_state(state["numpy"])
            torch.set_rng_state(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"])
