"""Shows the progress of training in the terminal, and logs it."""

import sys
import time
from contextlib import suppress
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from recipe.core.format import format_time
from recipe.core.services import Log
from recipe.report.loss_curve import CURVE
from recipe.train.interrupt import Stop


class Progress(TrainerCallback):
    """Shows and logs progress, and asks the trainer for a checkpoint after `save_seconds` and after a signal.

    The last step of an epoch can have fewer sequences than the others, so tokens are counted in epochs, not in steps.
    """

    def __init__(self, log: Log, tokens_per_epoch: int, stop: Stop, save_seconds: float) -> None:
        self.log, self.tokens_per_epoch, self.stop, self.save_seconds = log, tokens_per_epoch, stop, save_seconds
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock. If stderr is a terminal, also start the progress bar."""
        self.started = self.last_log = self.last_save = time.monotonic()
        self.first_step = state.global_step
        self.last_tokens = self.num_tokens(state)
        if sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance the progress bar, and log after the last step.

        If the last checkpoint is too old, save a checkpoint. After a signal, save a checkpoint and stop.
        """
        if self.bar:
            self.bar.update(state.global_step - self.bar.n)
        if state.global_step >= state.max_steps:
            control.should_log = True
        if time.monotonic() - self.last_save >= self.save_seconds:
            control.should_save = True
        if self.stop.signal_number:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Log the metrics and the training speed since the previous log point."""
        if "loss" not in logs:
            return
        now, step = time.monotonic(), state.global_step
        tokens = self.num_tokens(state)
        tokens_per_second = (tokens - self.last_tokens) / (now - self.last_log)
        self.last_log, self.last_tokens = now, tokens
        metrics = {name: float(logs[name]) for name in CURVE[1:]}
        self.log({**metrics, "tokens_per_second": tokens_per_second}, step)
        text = f"loss {logs['loss']:.3f}, {tokens:,.0f} tokens, {tokens_per_second:,.0f} tokens/s"
        if self.bar:
            self.bar.set_postfix_str(text)
        else:
            left = (state.max_steps - step) * (now - self.started) / (step - self.first_step)
            with suppress(OSError):  # after Ctrl-C in `dvc repro | tee log`, tee exits first
                print(f"step {step}/{state.max_steps}: {text}, {format_time(left)} left", flush=True)

    def num_tokens(self, state: Any) -> float:
        """Return the number of tokens so far: exact at the end of an epoch, an estimate within an epoch."""
        return float((state.epoch or 0) * self.tokens_per_epoch)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restart the clock for the next checkpoint."""
        self.last_save = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the progress bar."""
        if self.bar:
            self.bar.close()
