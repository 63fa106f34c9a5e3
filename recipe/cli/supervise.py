"""Runs a stage in a child process, so that the user gets an explanation if the kernel kills it.

When memory runs out, Linux kills a process with SIGKILL, which the process can't catch. A parent process, which needs
hardly any memory, survives and explains what happened.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from recipe.core.errors import TrainingError
from recipe.core.format import format_bytes

FORWARDED = (signal.SIGTERM, signal.SIGINT)


def supervise(what: str, advice: str, prepare_child: Callable[[], None]) -> None:
    """Continue in a child process. In the parent process, this function never returns: it exits as the child does.

    The child is not in the terminal's foreground process group, so that Ctrl-C reaches it only once, through the
    parent. If the parent dies, the child gets a SIGTERM. `prepare_child` runs first in the child.

    Raises TrainingError, in the parent, if the kernel killed the child because memory ran out. Does nothing if torch is
    already loaded, because its threads would not exist in the child.
    """
    if "torch" in sys.modules:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kills = out_of_memory_kills()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until the handlers exist
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        prepare_child()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return
    _pass_signals_to(child)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    _, status, usage = os.wait4(child, 0)
    if os.WIFEXITED(status):
        sys.exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL and out_of_memory_kills() > kills:
        raise TrainingError(
            f"{what} ran out of memory, and the kernel killed it when it used {format_bytes(usage.ru_maxrss * 1024)}. "
            f"{advice}"
        )
    print(f"error: {what} was ended by {signal.Signals(number).name}. Run `dvc repro` to resume.", file=sys.stderr)
    sys.exit(128 + number)


def out_of_memory_kills(counters: Path = Path("/proc/vmstat")) -> int:
    """Return how many processes the kernel has killed because memory ran out, also in containers, since it started."""
    if not counters.is_file():
        return 0
    values = dict(line.split() for line in counters.read_text(encoding="ascii").splitlines())
    return int(values.get("oom_kill", 0))


def _pass_signals_to(child: int) -> None:
    def forward(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    def suspend(number: int, frame: FrameType | None) -> None:
        os.kill(child, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.kill(child, signal.SIGCONT)  # after `fg` or `bg`

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.signal(signal.SIGTSTP, suspend)
