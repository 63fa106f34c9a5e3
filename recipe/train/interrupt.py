"""Stops training at its next checkpoint on SIGINT or SIGTERM: Ctrl-C, `docker stop`, a killed `dvc`.

with Stop() as stop:
    ...  # stop.signal_number is the signal's number once it was received, else None
"""

import signal
from contextlib import suppress
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Records the first signal received in the block. A second SIGINT interrupts immediately.

    A second SIGTERM is ignored: two processes may each send one.
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
            with suppress(OSError, RuntimeError):  # the reader may be gone, or the signal interrupted another print
                print("stopping at the next checkpoint (press Ctrl-C again to stop immediately)", flush=True)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
