"""Records SIGINT and SIGTERM, so that training can save a checkpoint before it stops.

The signals come from Ctrl-C or `docker stop`, or are sent when `dvc` is killed.

with Stop() as stop:
    ...  # stop.signal_number is None until a signal arrives, and then the number of the first signal
"""

import signal
from contextlib import suppress
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Records the first signal that arrives during the `with` block. A later SIGINT interrupts training immediately.

    A later SIGTERM is ignored, because two processes may each send a SIGTERM to stop the same run.
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
            with suppress(OSError, RuntimeError):  # stdout may be closed, or another print may be in progress
                print(
                    "stopping after this micro-batch and saving a checkpoint (press Ctrl-C again to stop at once)",
                    flush=True,
                )
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
