"""TRL's SFTTrainer with the loss on trained tokens alone, and the callback that shows, logs and guards training.

Imported inside the train stage: torch and trl take seconds to load.
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
from recipe.model.chunked_loss import head_loss
from recipe.model.fused_lora import patch_lora_layers
from recipe.model.packed_attention import CU_SEQLENS, NAME
from recipe.model.processor import torch_dtype
from recipe.report.loss_curve import CURVE
from recipe.train.checkpoints import mark_complete
from recipe.train.interrupt import Stop
from recipe.train.params import TrainParams


def sft_config(params: TrainParams, max_length: int, checkpoints: Path) -> Any:
    """SFTConfig for sequences that prepare has packed: TRL tokenises, packs and pads nothing."""
    cuda, micro_batch_size = torch.cuda.is_available(), params.micro_batch_size(max_length)
    schedule = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}[params.lr_schedule]
    return SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=params.num_epochs,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=params.global_batch_size // micro_batch_size,
        learning_rate=params.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=params.warmup_ratio,  # below 1 it is a share of all steps
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=torch_dtype(params.dtype) is torch.bfloat16,
        use_cpu=not cuda,
        activation_checkpointing=params.activation_checkpointing == "on",
        seed=params.seed,
        data_seed=params.seed,
        logging_steps=params.logging_steps,
        logging_nan_inf_filter=False,  # it would show the last good loss in place of NaN
        save_steps=params.save_steps,
        save_total_limit=2,  # the last one may be cut off by a kill
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=cuda,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        remove_unused_columns=False,
        completion_only_loss=False,  # our labels say what is trained
    )


class PackedTrainer(SFTTrainer):
    """SFTTrainer that sends only trained positions through the head.

    With the loss on completions, most positions are prompt: TRL 1.16 projects and scores them too, on a CPU even the
    padding, and then multiplies by 0. The loss is the same. Where a model does more to its logits than a linear head
    (a soft cap, a scale, an auxiliary loss), TRL's own loss is used; `__init__` finds out by comparing the two.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        patch_lora_layers(self.model)
        whole = self.model.get_base_model()
        self.backbone, self.head = whole.base_model, whole.get_output_embeddings()
        self.num_right, self.num_scored = torch.zeros((), device=self.model.device), 0
        alone = self.accelerator.num_processes == 1 and not self.aux_loss_enabled
        self.trained_only = alone and _head_is_all(self.model, self.backbone, self.head)
        if not self.trained_only:
            print("this model's logits are more than a linear head: the loss goes through every position")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The summed cross entropy of the trained tokens, over their number in the whole optimiser step."""
        known = {name: inputs.pop(name) for name in CU_SEQLENS if name in inputs}
        borders = known if self.model.config._attn_implementation == NAME else {}
        positions = inputs.pop("loss_positions")
        if not self.trained_only:
            inputs.update(borders)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        assert not return_outputs
        with self.accelerator.autocast():
            options = {"position_ids": inputs["position_ids"], "use_cache": False, **borders}
            hidden = self.backbone(inputs["input_ids"], **options)[0]
            wanted = inputs["labels"].flatten()[positions + 1]
            loss, num_right = head_loss(hidden.flatten(0, 1)[positions], self.head, wanted)
        self.num_right += num_right
        self.num_scored += len(wanted)
        return loss / (len(wanted) if num_items_in_batch is None else num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the share of trained tokens ranked first since the last point."""
        if self.trained_only and self.num_scored:
            logs["mean_token_accuracy"] = self.num_right.item() / self.num_scored
            self.num_right.zero_()
            self.num_scored = 0
        super().log(logs, start_time)


def _head_is_all(model: Any, backbone: Any, head: Any) -> bool:
    """Whether the model's logits are its head's output on its backbone's hidden states, and nothing more."""
    ids = torch.arange(8, device=model.device)[None]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        options = {"position_ids": ids, "use_cache": False}
        same = torch.allclose(
            model(ids, **options).logits.float(), head(backbone(ids, **options)[0]).float(), atol=1e-3
        )
    model.train(was_training)
    return same


class Progress(TrainerCallback):
    """Shows and logs progress, marks whole checkpoints, and stops when asked to and at a loss that is not a number."""

    def __init__(self, checkpoints: Path, log: Log, tokens_per_step: float, stop: Stop) -> None:
        self.checkpoints, self.log, self.tokens_per_step, self.stop = checkpoints, log, tokens_per_step, stop
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock and, on a terminal, the bar."""
        self.started, self.first_step = time.monotonic(), state.global_step
        if sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar; the curve ends where training ends, however few the steps. A stop leaves a checkpoint."""
        if self.bar:
            self.bar.update(state.global_step - self.bar.n)
        if state.global_step >= state.max_steps:
            control.should_log = True
        # At a point of the curve alone: a point is a mean since the last one, which no checkpoint holds.
        if self.stop.asked and state.global_step % args.logging_steps == 0:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Hand the numbers on; raises TrainingError where they are not finite."""
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]) or not math.isfinite(logs["grad_norm"]):
            raise TrainingError(
                f"the loss is {logs['loss']} and the gradient's norm {logs['grad_norm']} at step {state.global_step}. "
                "Lower train.learning_rate, or raise train.warmup_ratio."
            )
        steps = state.global_step - self.first_step
        tokens_per_second = steps * self.tokens_per_step / (time.monotonic() - self.started)
        kept = {name: float(logs[name]) for name in CURVE[1:]}
        self.log({**kept, "tokens_per_second": tokens_per_second}, state.global_step)
        tokens = state.global_step * self.tokens_per_step
        text = f"loss {logs['loss']:.3f}, {tokens:,.0f} tokens, {tokens_per_second:,.0f} tokens/s"
        if self.bar:
            self.bar.set_postfix_str(text)
        else:
            left = (state.max_steps - state.global_step) * self.tokens_per_step / tokens_per_second
            with suppress(OSError):  # `dvc repro | tee log` and Ctrl-C: tee is gone first
                print(f"step {state.global_step}/{state.max_steps}: {text}, {format_time(left)} left", flush=True)

    def on_save(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Mark the checkpoint whole; raises TrainingError where its weights are not finite."""
        if not all(torch.isfinite(weight).all() for weight in model.parameters() if weight.requires_grad):
            raise TrainingError(
                f"the adapter holds numbers that are not finite after step {state.global_step}. "
                "Lower train.learning_rate."
            )
        mark_complete(self.checkpoints / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        if self.bar:
            self.bar.close()
