"""Lets training stop with a checkpoint after SIGINT or SIGTERM: on Ctrl-C, on `docker stop`, or when `dvc` is killed.

with Stop() as stop:
    ...  # stop.signal_number is None until a signal arrives, then the number of that signal
"""

import signal
from contextlib import suppress
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Records the first signal that arrives in the `with` block. A later SIGINT interrupts training immediately.

    A later SIGTERM is ignored, because two processes may each send one.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __enter__(self) -> "Stop":
        self.previous_handlers = {number: signal.signal(number, self._record) for number in SIGNALS}
        return self

    def __exit__(self, error_type: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number = number
            with suppress(OSError, RuntimeError):  # stdout's reader may be gone, or another print was interrupted
                print("stopping at the next checkpoint (press Ctrl-C again to stop immediately)", flush=True)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
