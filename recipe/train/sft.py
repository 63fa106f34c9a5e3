"""Extends TRL's SFTTrainer to compute logits only at loss positions, and to show, log and check training progress.

The train stage imports this module inside a function, because torch and trl take seconds to load.
"""

import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from recipe.core.errors import TrainingError
from recipe.core.format import format_time
from recipe.core.services import Log
from recipe.model.chunked_loss import head_loss, logits_are_head_of_backbone
from recipe.model.fused_lora import patch_lora_layers
from recipe.model.packed_attention import CU_SEQLENS, NAME
from recipe.model.processor import torch_dtype
from recipe.report.loss_curve import CURVE
from recipe.train.checkpoints import mark_complete
from recipe.train.interrupt import Stop
from recipe.train.params import TrainParams


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
        save_total_limit=2,  # if the process is killed, the newest checkpoint may be incomplete
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=cuda,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        remove_unused_columns=False,
        completion_only_loss=False,  # the completion mask is already applied to the labels
    )


class PackedTrainer(SFTTrainer):
    """An SFTTrainer that computes logits at loss positions only.

    On a CPU, TRL 1.16 computes logits at every position and then sets the loss to 0 at positions without a label.
    Skipping these positions therefore does not change the result. On CUDA with Triton, TRL also skips these positions.

    TRL's own loss is used if there are several processes, if the model has an auxiliary loss, or if the model modifies
    the output of its head, for example with a soft cap or a scale. To detect such a modification, `__init__` compares
    logits.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
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
        positions = inputs.pop("loss_positions")
        if not self.loss_positions_only:
            inputs.update(attention_inputs)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        assert not return_outputs
        with self.accelerator.autocast():
            options = {"position_ids": inputs["position_ids"], "use_cache": False, **attention_inputs}
            hidden = self.backbone(inputs["input_ids"], **options)[0]
            labels = inputs["labels"].flatten()[positions + 1]
            loss, num_correct = head_loss(hidden.flatten(0, 1)[positions], self.head, labels)
        self.num_correct += num_correct
        self.num_scored += len(labels)
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the metrics, and the fraction of recent loss positions at which the model ranked the label first.

        The fraction covers the loss positions since the previous log point.
        """
        if self.loss_positions_only and self.num_scored:
            logs["mean_token_accuracy"] = self.num_correct.item() / self.num_scored
            self.num_correct.zero_()
            self.num_scored = 0
        super().log(logs, start_time)


class Progress(TrainerCallback):
    """Shows and logs progress, marks checkpoints as complete, and stops on a signal or a non-finite loss."""

    def __init__(self, checkpoints: Path, log: Log, tokens_per_step: float, stop: Stop) -> None:
        self.checkpoints, self.log, self.tokens_per_step, self.stop = checkpoints, log, tokens_per_step, stop
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock. If stderr is a terminal, also start the progress bar."""
        self.started = self.last_log = time.monotonic()
        self.first_step = self.last_step = state.global_step
        if sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance the progress bar, and log after the last step.

        After a signal, save a checkpoint and stop at the next log point.
        """
        if self.bar:
            self.bar.update(state.global_step - self.bar.n)
        if state.global_step >= state.max_steps:
            control.should_log = True
        # A logged loss is the mean over the steps since the previous log point. Checkpoints do not store the running
        # sum of the losses, so stop only at a log point.
        if self.stop.signal_number and state.global_step % args.logging_steps == 0:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Log the metrics and the training speed since the previous log point.

        Raises TrainingError if the loss or the gradient norm is not finite.
        """
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]) or not math.isfinite(logs["grad_norm"]):
            raise TrainingError(
                f"the loss is {logs['loss']} and the gradient norm is {logs['grad_norm']} at step {state.global_step}. "
                "Lower train.learning_rate or raise train.warmup_ratio."
            )
        now, step = time.monotonic(), state.global_step
        tokens_per_second = (step - self.last_step) * self.tokens_per_step / (now - self.last_log)
        self.last_log, self.last_step = now, step
        metrics = {name: float(logs[name]) for name in CURVE[1:]}
        self.log({**metrics, "tokens_per_second": tokens_per_second}, step)
        tokens = step * self.tokens_per_step
        text = f"loss {logs['loss']:.3f}, {tokens:,.0f} tokens, {tokens_per_second:,.0f} tokens/s"
        if self.bar:
            self.bar.set_postfix_str(text)
        else:
            left = (state.max_steps - step) * (now - self.started) / (step - self.first_step)
            with suppress(OSError):  # after Ctrl-C in `dvc repro | tee log`, tee exits first
                print(f"step {step}/{state.max_steps}: {text}, {format_time(left)} left", flush=True)

    def on_save(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Mark the checkpoint as complete. Raises TrainingError if an adapter weight is not finite."""
        if not all(torch.isfinite(weight).all() for weight in model.parameters() if weight.requires_grad):
            raise TrainingError(
                f"the adapter has NaN or infinite weights after step {state.global_step}. Lower train.learning_rate."
            )
        mark_complete(self.checkpoints / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the progress bar."""
        if self.bar:
            self.bar.close()
