"""Lets SIGINT and SIGTERM end training at its next checkpoint: Ctrl-C, `docker stop`, a killed `dvc`.

with Stop() as stop:
    ...  # stop.asked is the signal's number once it came
"""

import signal
from contextlib import suppress
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Notes the first signal in the block. A second SIGINT interrupts at once; SIGTERM may come from two sides."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = number
            with suppress(OSError, RuntimeError):  # whoever read this may be gone, or the signal came in another print
                print("stopping at the next checkpoint (Ctrl-C again stops at once)", flush=True)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
