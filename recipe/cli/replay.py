"""Implements `recipe replay`, which computes a step of the last training again and compares it with the record.

Training is deterministic, so the rows, the losses and the gradient norm must be the same to the last bit.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.cli.ledger import check_step, describe, recorded_lines
from recipe.cli.run_metadata import read_notes
from recipe.core.environment import installed_lock
from recipe.core.errors import ParamsError
from recipe.core.io import read_json, sha256_file
from recipe.core.paths import Paths, fingerprint
from recipe.train.checkpoints import KEPT, checkpoints_in, damage

STATE = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def replay(step: int, params: dict[str, Any], paths: Paths, fit_to_memory: Callable[[], Any]) -> bool:
    """Compute a step again, print how it compares with the record, and return whether it is identical.

    Starts from the nearest kept checkpoint before the step, or from the beginning. Raises ParamsError if there is no
    such step, or if an input of the training has changed.
    """
    recorded = recorded_lines(paths)
    check_step(step, len(recorded))
    check_inputs(paths)
    start = nearest_checkpoint(paths.local / KEPT, step)
    first = number_of(start) + 1 if start else 1
    print(f"replaying step {step} from {start.name if start else 'the beginning, because no checkpoint was kept'}")
    with tempfile.TemporaryDirectory(dir=paths.local) as temporary:
        trainer = run_until(step, params, fit_to_memory(), paths, start, Path(temporary))
        identical = compare_lines(recorded[first - 1 : step], trainer.ledger.lines[first - 1 :])
        after = paths.local / KEPT / f"checkpoint-{step}"
        if identical and after.is_dir():
            identical = compare_states(after, Path(temporary) / after.name)
    return identical


def check_inputs(paths: Paths) -> None:
    """Raise ParamsError if the params, the rows, the base model, the code or the lock changed since the training."""
    current = f"{fingerprint(paths.folder, 'train')[:16]}-{installed_lock()[:8]}"
    trained = read_notes(paths.local).get("train", {}).get("training", current)
    if trained != current:
        raise ParamsError(
            "params.yaml, the rows, the base model, the code or the installed packages have changed since the last "
            "training, so its steps can't be replayed. Undo the change (for example, with `git stash`), or run "
            "`dvc repro` to train again."
        )


def number_of(checkpoint: Path) -> int:
    """Return the number of the step after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def nearest_checkpoint(kept: Path, step: int) -> Path | None:
    """Return the newest undamaged checkpoint that was saved before `step`, or None."""
    for checkpoint in checkpoints_in(kept):
        if number_of(checkpoint) < step:
            problem = damage(checkpoint)
            if problem is None:
                return checkpoint
            print(f"{checkpoint.name} can't be used, because {problem}")
    return None


def run_until(
    step: int, params: dict[str, Any], train_params: Any, paths: Paths, start: Path | None, temporary: Path
) -> Any:
    """Train from the checkpoint `start` to the end of `step`, and return the trainer.

    Saves a checkpoint after `step` in the folder `temporary`.
    """
    from transformers import TrainerCallback
    from transformers.trainer_utils import SaveStrategy

    from recipe.model.processor import be_deterministic
    from recipe.train.interrupt import Stop
    from recipe.train.progress import Progress
    from recipe.train.stage import make_trainer

    class StopAfterStep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_save = control.should_training_stop = state.global_step >= step

    be_deterministic(train_params.num_threads)
    manifest, meta = read_json(paths.base / "manifest.json"), read_json(paths.prepared / "meta.json")
    progress = Progress(lambda values, number: None, meta["tokens"]["train"], Stop(), math.inf)
    trainer = make_trainer(params["lora"], train_params, paths, manifest, meta, temporary, progress)
    trainer.args.save_strategy = SaveStrategy.NO
    trainer.add_callback(StopAfterStep())
    if start:
        shutil.copytree(start, temporary / start.name)
    trainer.train(resume_from_checkpoint=str(temporary / start.name) if start else None)
    return trainer


def compare_lines(recorded: list[str], computed: list[str]) -> bool:
    """Print whether the records of the replayed steps are identical to the recorded ones, and return it."""
    assert len(recorded) == len(computed), (len(recorded), len(computed))
    for before, now in zip(recorded, computed, strict=True):
        if before != now:
            old, new = json.loads(before), json.loads(now)
            keys = [key for key in old if old[key] != new[key]]
            shown = [f"{key} was {_first_difference(old[key], new[key])}" for key in keys]
            print(f"step {old['step']} differs: {'; '.join(shown)}")
            return False
    first, last = (json.loads(line)["step"] for line in (computed[0], computed[-1]))
    print(
        f"identical to the record: {f'step {last}' if first == last else f'steps {first} to {last}'} "
        "(the rows, their losses, the loss and the gradient norm)"
    )
    print(describe(json.loads(computed[-1])))
    return True


def compare_states(recorded: Path, computed: Path) -> bool:
    """Print whether the adapter, the optimizer and the generators are those of a kept checkpoint, and return it."""
    names = [name for name in STATE if (recorded / name).is_file()]
    different = [name for name in names if sha256_file(recorded / name) != sha256_file(computed / name)]
    if different:
        print(f"the state after the step differs from {recorded.name}: {', '.join(different)}")
        return False
    print(f"identical to {recorded.name}: the adapter, the optimizer, the schedule and the random generators")
    return True


def _first_difference(old: Any, new: Any) -> str:
    """Return the first differing values of two records, such as `0.5, and is 0.25`."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = next((a, b) for a, b in zip(old, new, strict=True) if a != b)
    return f"{old}, and is {new}"
