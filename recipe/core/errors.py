"""Defines errors that a user can cause and fix. Each class has its own exit code for the command line.

Messages should say what is wrong, where (file, line, key), what was found, and how to fix it.
"""


class RecipeError(ValueError):
    """An error that a user can cause and fix. The command exits with `exit_code`."""

    exit_code = 1


class ParamsError(RecipeError):
    """params.yaml, dvc.yaml or the command line is invalid."""

    exit_code = 2


class DataError(RecipeError):
    """A file is damaged or invalid, or its content differs from what the recipe specifies."""

    exit_code = 3


class MachineError(RecipeError):
    """This machine lacks something that the command needs, such as a file, a package, memory, disk space or a GPU."""

    exit_code = 4


class TrainingError(RecipeError):
    """Training failed: the loss, the gradients or the weights are not finite, or memory ran out."""

    exit_code = 5


class TrackingError(RecipeError):
    """The tracking server or the model registry could not complete a request."""

    exit_code = 6


class Stopped(RecipeError):
    """A signal stopped the command at a point from which the next run can resume."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number  # the exit code that shells report for a process killed by this signal
