"""Writes the outputs of the train stage: the adapter, the report with the ledger, the loss curve and the metrics."""

from typing import TYPE_CHECKING, Any

from recipe.core.adapter import is_trained
from recipe.core.errors import TrainingError
from recipe.core.io import new_folder, write_json, write_text
from recipe.core.paths import Paths
from recipe.model.load import save_adapter
from recipe.model.processor import torch_dtype
from recipe.report.loss_curve import curve_text, last_loss
from recipe.train.checkpoints import NUM_KEPT
from recipe.train.params import TrainParams
from recipe.train.report import write_report

if TYPE_CHECKING:
    from recipe.train.sft import PackedTrainer


def needed_bytes(trainer: "PackedTrainer", params: TrainParams) -> int:
    """Return about how many bytes the checkpoints and the adapter need on the disk.

    A checkpoint contains the adapter and the two moments of AdamW for each of its weights.
    """
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    steps = params.num_steps(len(trainer.train_dataset))
    num_checkpoints = NUM_KEPT + 1 if not params.keep_checkpoints else steps // params.save_steps + 2
    return sum(weight.numel() * weight.element_size() for weight in weights) * (1 + 3 * num_checkpoints)


def write_outputs(
    trainer: "PackedTrainer", params: TrainParams, paths: Paths, manifest: dict[str, Any], meta: dict[str, Any]
) -> None:
    """Write the adapter, the report, the loss curve and the metrics.

    Raises TrainingError if training did not change the adapter.
    """
    with new_folder(paths.adapter) as target:
        save_adapter(trainer.model, target, manifest)
        if not is_trained(target):
            raise TrainingError("training did not change the adapter. Raise train.learning_rate or train.num_epochs.")
    with new_folder(paths.training) as target:
        trainer.ledger.write(target)
        write_report(target, trainer, paths.prepared / "rows.arrow")
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    write_text(paths.loss_curve, curve_text(history))
    write_json(paths.train_metrics, train_metrics(trainer, history, params, meta))


def train_metrics(
    trainer: "PackedTrainer", history: list[dict[str, float]], params: TrainParams, meta: dict[str, Any]
) -> dict[str, Any]:
    """Return the contents of metrics/train.json. `history` contains the trainer's log entries that have a loss."""
    weights = list(trainer.model.parameters())
    return {
        "last_loss": round(last_loss(history, params.logging_steps), 6) if history else None,
        "first_loss": round(history[0]["loss"], 6) if history else None,
        "steps": trainer.state.global_step,
        "sequences": len(trainer.train_dataset),
        "dtype": str(torch_dtype(params.dtype)).removeprefix("torch."),
        "quantization": params.quantization,
        "tokens": meta["tokens"]["train"],
        "trained_token_fraction": round(meta["tokens"]["train_loss_tokens"] / meta["tokens"]["train"], 6),
        "trainable_parameters": sum(weight.numel() for weight in weights if weight.requires_grad),
        "parameters": sum(weight.numel() for weight in weights),
    }
